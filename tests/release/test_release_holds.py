"""A person holds a rollout and lets it go on: what stops, what does not, and what is one row."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from csrm_tasks.errors import RefusedError
from csrm_tasks.release import ledger, manage, rollout
from csrm_tasks.settings import Settings
from tests.release.test_release_rollout import CONFIG, advance, shares
from tests.release_fixtures import MARKET
from tests.release_world import World


@pytest.fixture
def world(settings: Settings) -> World:
    """An installation whose second release is in shadow."""
    world = World(settings)
    world.promote(world.release("one"))
    world.start(world.release("two"), CONFIG)
    return world


def hold(world: World) -> ledger.Entry:
    return manage.hold(world.settings, MARKET, "ann", "a campaign runs")


def resume(world: World) -> ledger.Entry:
    return manage.resume(world.settings, MARKET, "bob", "it is over")


def test_what_a_person_holds_goes_on_only_when_resumed(world: World) -> None:
    row = hold(world)
    assert (row.action, row.actor, row.payload["step"]) == ("held", "ann", "0")
    assert world.settle(world.judgement(day=1), CONFIG) == "wait"
    assert world.settle(world.judgement(day=9), CONFIG) == "wait"
    assert shares(world) == (row.release_id, True, 0, 0)
    assert resume(world).actor == "bob"
    assert world.settle(world.judgement(day=10), CONFIG) == "advance"
    assert shares(world) == (row.release_id, False, 10, 0)
    world.agrees()


def test_failures_still_end_what_a_person_holds(world: World) -> None:
    hold(world)
    assert world.settle(world.judgement("FAILURE", 1), CONFIG) == "wait"
    assert world.settle(world.judgement("FAILURE", 2), CONFIG) == "abort"
    assert world.opened() is None


def test_a_person_may_take_a_held_rollout_on_and_the_next_step_is_free(world: World) -> None:
    hold(world)
    advance(world)
    state = world.opened()
    assert state is not None and (state.step, state.paused) == (1, False)
    assert world.settle(world.judgement(day=2), CONFIG) == "advance"


def test_saying_it_again_is_no_new_row(world: World) -> None:
    rows = [hold(world), hold(world), resume(world), resume(world), hold(world), hold(world)]
    assert rows[0] == rows[1] and rows[2] == rows[3] and rows[4] == rows[5]
    said = [e.action for e in manage.history(world.settings, MARKET)][-3:]
    assert said == ["held", "resumed", "held"]


def test_a_hold_that_comes_while_the_evidence_is_settled_counts(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    true = rollout.next_move

    def slow(*args: Any) -> str:
        move = true(*args)
        hold(world)
        return move

    monkeypatch.setattr(rollout, "next_move", slow)
    look = world.judgement(day=1)
    with pytest.raises(RefusedError, match="held at step 0 by a person"):
        world.settle(look, CONFIG)
    monkeypatch.undo()
    assert world.settle(look, CONFIG) == "wait"  # the task once more


def test_nothing_to_hold_or_resume_is_said(world: World) -> None:
    with pytest.raises(RefusedError, match="is not held by a person"):
        resume(world)
    for _ in range(3):
        world.settle(world.judgement(day=2), CONFIG)
    with pytest.raises(RefusedError, match="nothing of tiny is being rolled out"):
        hold(world)  # launched


@hypothesis_settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from(["hold", "resume", "look", "advance"]), max_size=8))
def test_never_two_ways_of_reading_a_hold(world: World, said: list[str]) -> None:
    """The state after any sequence is that of a person with a pencil: the last word of the step."""
    world.clear()
    world.promote(world.release("one"))
    world.start(world.release("two"), CONFIG)
    step, held = 0, False
    for word in said:
        if word == "look" and step < len(CONFIG.rollout.steps):
            move = world.settle(world.judgement(day=2), CONFIG)
            assert move == ("wait" if held else "advance")
            step, held = step + (not held), held
        elif word == "advance" and held:
            advance(world)
            step, held = step + 1, False
        elif word == "hold" and step < len(CONFIG.rollout.steps):
            hold(world)
            held = True
        elif word == "resume" and held:
            resume(world)
            held = False
        state = world.opened()
        assert state is not None and (state.step, state.paused) == (step, held)


def test_a_decision_by_an_old_page_is_refused(world: World) -> None:
    three = world.release("three")
    seen = manage.history(world.settings, MARKET)[-1].hash
    row = manage.reject(world.settings, MARKET, three.id, "ann", "no", seen)
    again = manage.reject(world.settings, MARKET, three.id, "ann", "no", seen)
    assert again == row  # a double click
    with pytest.raises(RefusedError, match=f"out of date, {three.id} was rejected by ann"):
        manage.approve(world.settings, MARKET, three.id, "bob", "yes", seen)
    assert manage.history(world.settings, MARKET)[-1] == row
