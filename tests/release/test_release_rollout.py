"""Rollouts: the state from the ledger, the moves, every guard, and death after every write."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from csrm_tasks.errors import RefusedError
from csrm_tasks.release import ledger, manage, promote, rollback, rollout, rollout_moves
from csrm_tasks.sections import Rollout, Step
from csrm_tasks.settings import Settings
from tests.release_fixtures import MARKET, market
from tests.release_world import Killed, World, kill_after

STEPS = (Step(weight=0), Step(weight=10, days=2), Step(weight=50))
PLAN = Rollout(steps=STEPS, max_days=5, failures=2, errors=2, holdout=5, holdout_days=3)
CONFIG = market(rollout=PLAN)
MANUAL = market(approval="manual", rollout=PLAN)


@pytest.fixture
def world(settings: Settings) -> World:
    """An installation with a live release, made before there were steps."""
    world = World(settings)
    world.promote(world.release("one"))
    return world


def shares(world: World) -> tuple[Any, ...]:
    doc = world.doc()
    return doc["next"], doc["shadow"], doc["weights"]["next"], doc["weights"]["holdout"]


def run_to_launch(world: World, made: Any) -> list[str]:
    world.start(made, CONFIG)
    return [world.settle(world.judgement(day=d), CONFIG) for d in (1, 2, 1)]


def test_a_release_that_succeeds_goes_up_step_by_step_and_keeps_a_holdout(world: World) -> None:
    one, two = world.live(), world.release("two")
    world.start(two, CONFIG)
    assert shares(world) == (two.id, True, 0, 0)
    assert world.settle(world.judgement(), CONFIG) == "advance"
    assert shares(world) == (two.id, False, 10, 0)
    assert world.settle(world.judgement(day=1), CONFIG) == "wait"  # two days are asked for
    assert world.settle(world.judgement(day=2), CONFIG) == "advance"
    assert shares(world) == (two.id, False, 50, 0) and world.live() == one
    assert world.settle(world.judgement(), CONFIG) == "advance"
    assert world.live() == two.id and world.doc()["holdout"] == one
    assert shares(world) == (None, False, 0, 5)
    assert world.settle(world.judgement(day=2), CONFIG) == "wait"
    assert world.settle(world.judgement(day=3), CONFIG) == "close"
    assert shares(world) == (None, False, 0, 0) and world.opened() is None
    world.agrees()


def test_failures_in_a_row_roll_back_and_the_release_stays_back(world: World) -> None:
    one, two = world.live(), world.release("two")
    world.start(two, CONFIG)
    assert world.settle(world.judgement("FAILURE", 1), CONFIG) == "wait"
    assert world.settle(world.judgement("INCONCLUSIVE", 2), CONFIG) == "wait"
    assert world.settle(world.judgement("FAILURE", 3), CONFIG) == "wait"
    assert world.settle(world.judgement("FAILURE", 4), CONFIG) == "abort"
    assert (world.live(), world.opened(), shares(world)) == (one, None, (None, False, 0, 0))
    world.agrees()
    with pytest.raises(RefusedError, match="stays back"):
        world.start(two, CONFIG)


def test_a_launched_release_that_fails_goes_back_to_the_one_before(world: World) -> None:
    one, two = world.live(), world.release("two")
    assert run_to_launch(world, two) == ["advance"] * 3
    assert world.settle(world.judgement("FAILURE", 1), CONFIG) == "wait"
    assert world.settle(world.judgement("FAILURE", 2), CONFIG) == "abort"
    assert world.live() == one
    world.agrees()


def test_no_decision_in_time_holds_and_a_person_decides(world: World) -> None:
    two = world.release("two")
    world.start(two, CONFIG)
    with pytest.raises(RefusedError, match="is held: its evidence decides"):
        advance(world)
    assert world.settle(world.judgement("INCONCLUSIVE", 4), CONFIG) == "wait"
    assert world.settle(world.judgement("INCONCLUSIVE", 5), CONFIG) == "hold"
    assert world.settle(world.judgement("INCONCLUSIVE", 6), CONFIG) == "hold"
    held = [e for e in manage.history(world.settings, MARKET) if e.action == "held"]
    assert [e.release_id for e in held] == [two.id]  # asked once
    advance(world)
    assert shares(world) == (two.id, False, 10, 0)
    row = manage.history(world.settings, MARKET)[-1]
    assert (row.action, row.actor, row.reason) == ("advanced", "ann", "looks right")


def advance(world: World) -> Any:
    return rollout_moves.advance_held(
        world.settings, CONFIG, world.api, actor="ann", reason="looks right"
    )


def test_errors_are_no_failures_and_ask_after_some_in_a_row(world: World) -> None:
    world.start(world.release("two"), CONFIG)
    moves = [world.settle(world.judgement(o, d), CONFIG) for d, o in enumerate(
        ["ERROR", "INCONCLUSIVE", "ERROR", "ERROR"], start=1
    )]  # fmt: skip
    assert moves == ["wait", "wait", "wait", "hold"]
    state = world.opened()
    assert state is not None and state.held


def test_a_newer_release_waits_and_starts_ends_a_holdout(world: World) -> None:
    two, three = world.release("two"), world.release("three")
    run = world.start(two, CONFIG)
    with pytest.raises(RefusedError, match=f"{three.id} has to wait: {two.id} is being rolled out"):
        world.start(three, CONFIG)
    assert world.start(two, CONFIG) == run  # again: nothing new
    for day in (1, 2, 1):
        world.settle(world.judgement(day=day), CONFIG)
    with pytest.raises(RefusedError, match=r"expected .* to be live"):
        world.start(three, CONFIG)  # judged against the release before
    four = world.release("four")
    world.start(four, CONFIG)
    assert shares(world) == (four.id, True, 0, 0)
    world.agrees()


def test_without_approval_nothing_starts(world: World) -> None:
    two = world.release("two")
    with pytest.raises(RefusedError, match="waits for approval"):
        world.start(two, MANUAL)
    assert world.opened() is None
    manage.approve(world.settings, MARKET, two.id, "ann", "yes")
    world.start(two, MANUAL)
    assert shares(world) == (two.id, True, 0, 0)


def test_promotion_past_the_steps_is_refused(world: World) -> None:
    one, two = world.live(), world.release("two")
    with pytest.raises(RefusedError, match="has not passed the last one"):
        world.promote(two, CONFIG)
    world.start(two, CONFIG)
    world.settle(world.judgement(), CONFIG)
    with pytest.raises(RefusedError, match="has not passed the last one"):
        world.promote(two, CONFIG)
    assert world.live() == one


def test_the_first_release_has_nothing_to_be_compared_with(settings: Settings) -> None:
    world = World(settings)
    one = world.release("one")
    with pytest.raises(RefusedError, match="nothing to compare with"):
        world.start(one, CONFIG)
    world.promote(one, CONFIG)
    assert world.live() == one.id


def test_a_judgement_of_another_step_is_refused(world: World) -> None:
    world.start(world.release("two"), CONFIG)
    old = world.judgement("FAILURE")
    world.settle(world.judgement(), CONFIG)
    with pytest.raises(RefusedError, match=r"since then .* was advanced"):
        world.settle({**old, "day": "2001-01-01"}, CONFIG)
    with pytest.raises(RefusedError, match="not in the ledger"):
        world.settle({**world.judgement(), "release": "tiny-other"}, CONFIG)


def test_steps_that_are_removed_are_followed_by_servers_whatever_is_refused_then(
    world: World,
) -> None:
    world.start(world.release("two"), CONFIG)
    world.settle(world.judgement(), CONFIG)
    assert world.doc()["weights"]["next"] == 10
    other = {**world.judgement(), "release": "tiny-other"}
    with pytest.raises(RefusedError, match="not in the ledger"):
        world.settle(other, market())  # without steps
    assert world.doc()["next"] is None and world.opened() is None
    world.agrees()


def test_a_rollback_gives_up_what_is_being_rolled_out(world: World) -> None:
    one, two = world.live(), world.release("two")
    world.start(two, CONFIG)
    row = world.roll_back()
    assert (row.action, row.release_id, world.live()) == ("aborted", two.id, one)
    assert world.roll_back(leaving=two.id) == row
    world.agrees()


def test_a_rollback_of_the_live_release_ends_the_rollout_against_it(world: World) -> None:
    one = world.live()
    two = world.release("two")
    run_to_launch(world, two)
    three = world.release("three")
    world.start(three, CONFIG)
    world.roll_back(leaving=two.id)
    assert (world.live(), world.opened()) == (one, None)
    world.agrees()


def test_a_rollout_that_starts_beside_a_rollback_is_not_left_half_served(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = world.live(), world.release("two")
    run_to_launch(world, two)
    three = world.release("three")
    verify = rollback._verify

    def beside(settings: Settings, target: ledger.Entry) -> None:
        monkeypatch.undo()
        world.start(three, CONFIG)
        verify(settings, target)

    monkeypatch.setattr(rollback, "_verify", beside)
    with pytest.raises(RefusedError, match=f"{three.id} was started by row .*; re-evaluate"):
        world.roll_back(leaving=two.id)
    state = world.opened()
    assert (world.live(), state and state.release) == (two.id, three.id)
    world.roll_back(leaving=two.id)
    assert (world.live(), world.opened()) == (one, None)
    assert world.moves()[-1] == ("rolled_back", one)
    world.agrees()


def at_last_step(world: World) -> dict[str, Any]:
    """Return the judgement that launches; the longest chain of writes there is."""
    world.start(world.release("two"), CONFIG)
    world.settle(world.judgement(), CONFIG)
    world.settle(world.judgement(day=2), CONFIG)
    return world.judgement()


def writes(world: World, act: Any) -> int:
    """Count the durable writes of ``act``."""
    with pytest.MonkeyPatch.context() as patch:
        done = kill_after(patch, 0)
        act(world)
        return done()


def begin(world: World) -> Any:
    made = world.release("two")
    return lambda w: w.start(made, CONFIG)


def launch(world: World) -> Any:
    judgement = at_last_step(world)
    return lambda w: w.settle(judgement, CONFIG)


def step_up(world: World) -> Any:
    world.start(world.release("two"), CONFIG)
    judgement = world.judgement()
    return lambda w: w.settle(judgement, CONFIG)


def fail(world: World) -> Any:
    world.start(world.release("two"), CONFIG)
    world.settle(world.judgement("FAILURE", 1), CONFIG)
    judgement = world.judgement("FAILURE", 2)
    return lambda w: w.settle(judgement, CONFIG)


def fail_launched(world: World) -> Any:
    run_to_launch(world, world.release("two"))
    world.settle(world.judgement("FAILURE", 1), CONFIG)
    judgement = world.judgement("FAILURE", 2)
    return lambda w: w.settle(judgement, CONFIG)


def give_up(world: World) -> Any:
    made = world.release("two")
    world.start(made, CONFIG)
    return lambda w: w.roll_back(leaving=made.id)


def by_hand(world: World) -> Any:
    at_last_step(world)
    world.settle(world.judgement("INCONCLUSIVE", 5), CONFIG)
    done = rollout.current_rollout(ledger.verified(world.settings, MARKET))

    def act(w: World) -> None:
        if w.live() != done.release:  # type: ignore[union-attr]
            advance(w)
        else:
            promote.refresh_views(w.settings, CONFIG, w.api)  # as csrm release reconcile does

    return act


@pytest.mark.parametrize(
    ("prepare", "ends"),
    [
        (begin, ["started"]),
        (step_up, ["judged", "advanced"]),
        (launch, ["judged", "advanced", "promoted"]),
        (fail, ["judged", "aborted"]),
        (fail_launched, ["judged", "rolled_back"]),
        (give_up, ["aborted"]),
        (by_hand, ["advanced", "promoted"]),
    ],
)
def test_killed_after_any_write_and_run_again_it_happened_once(
    both_settings: Settings, prepare: Any, ends: list[str]
) -> None:
    kill, total = 0, 1
    while kill < total:
        kill += 1
        world = World(both_settings)
        world.clear()
        world.promote(world.release("one"))
        act = prepare(world)
        before = len(manage.history(both_settings, MARKET))
        with pytest.MonkeyPatch.context() as patch:
            done = kill_after(patch, kill)
            try:
                act(world)
                total = done()
            except Killed:
                total = kill + 1
        act(world)
        rows = manage.history(both_settings, MARKET)[before:]
        assert [e.action for e in rows] == ends, kill
        assert manage.verify(both_settings, MARKET) == before + len(ends)
        world.agrees()
    assert kill > len(ends)  # the views are writes as well


@given(
    st.lists(st.sampled_from(["SUCCESS", "FAILURE", "INCONCLUSIVE", "ERROR"]), min_size=1),
    st.floats(0, 30),
    st.booleans(),
)
def test_only_failures_abort_and_only_success_advances(
    outcomes: list[str], days: float, held: bool
) -> None:
    window = (rollout.ShareWindow("2026-01-01T00:00:00+00:00", 0.1),)
    state = rollout.CurrentRollout("new", "old", PLAN, 1, 1, window, held=held)
    move = rollout.next_move(state, outcomes, days)
    if move == "abort":
        assert outcomes[-2:] == ["FAILURE"] * 2
    if move == "advance":
        assert outcomes[-1] == "SUCCESS" and days >= 2
    if move == "hold":
        assert not held
    if outcomes[-2:] == ["FAILURE"] * 2:
        assert move == "abort"


def test_weights_must_rise() -> None:
    with pytest.raises(ValueError, match="must be above the one before"):
        Rollout(steps=(Step(weight=10), Step(weight=10)))
