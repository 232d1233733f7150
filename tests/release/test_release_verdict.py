"""A verdict is for what was live when it was given, and for data no older than the live release's.

Also: what becomes of a rollout whose plan lost its steps, of a release that was rolled back, and of
two people who go back at once.
"""

from __future__ import annotations

from typing import Any

import pytest

from csrm_tasks import tracking
from csrm_tasks.blobs import open_blobs
from csrm_tasks.cli.main import main
from csrm_tasks.errors import RefusedError
from csrm_tasks.release import ledger, manage, promote, rollout_moves
from csrm_tasks.release.guard import vouched
from csrm_tasks.release.reconcile import reconcile
from csrm_tasks.release.rollback import roll_back
from csrm_tasks.sections import Release, Rollout, Step
from csrm_tasks.settings import Settings
from csrm_tasks.steps import run_step
from tests.release_fixtures import MARKET, market, publish, store_of, write_snapshot
from tests.release_world import AUTO, World

PLAN = Rollout(steps=(Step(weight=0), Step(weight=50)), holdout=5, holdout_days=2)
STEPS = market(rollout=PLAN)


@pytest.fixture
def world(settings: Settings) -> World:
    return World(settings)


def of_week(world: World, key: str, until: str) -> Any:
    """Return a release that learnt from data up to a day."""
    facts = {"until": until}
    made = publish(world.settings, "snapshot", key, write_snapshot, facts, stage=2, until=until)
    return world.release(key, snapshot=made.ref)


def actions(world: World, skip: int = 0) -> list[tuple[str, str]]:
    rows = ledger.verified(world.settings, MARKET)[skip:]
    return [(e.action, e.release_id) for e in rows if e.action != "registered"]


def launched(world: World, key: str) -> Any:
    made = world.release(key)
    world.start(made, STEPS)
    for _ in PLAN.steps:
        world.settle(world.judgement(), STEPS)
    assert world.live() == made.id
    return made


@pytest.mark.parametrize(
    ("live", "candidate", "goes"),
    [
        ("2026-01-18", "2026-01-11", False),
        ("2026-01-18", "2026-01-17", False),
        ("2026-01-18", "2026-01-18", True),  # the same week again
        ("2026-01-18", "2026-01-25", True),
    ],
)
def test_data_older_than_the_live_releases_are_refused(
    world: World, live: str, candidate: str, goes: bool
) -> None:
    one = of_week(world, "one", live)
    world.promote(one)
    two = of_week(world, "two", candidate)
    if goes:
        world.promote(two)
        assert world.live() == two.id
        return
    said = f"data up to {candidate}, the live {one.id} from data up to {live}"
    with pytest.raises(RefusedError, match=said):
        world.promote(two)
    with pytest.raises(RefusedError, match=said):
        world.start(two, STEPS)
    assert (world.live(), world.opened()) == (one.id, None)


def test_an_older_week_goes_once_the_newer_release_was_rolled_back(world: World) -> None:
    world.promote(of_week(world, "one", "2026-01-04"))
    world.promote(of_week(world, "two", "2026-01-18"))
    world.roll_back()
    three = of_week(world, "three", "2026-01-11")
    world.promote(three)
    assert world.live() == three.id


@pytest.mark.parametrize("said_by", ["ledger", "artifacts"])
def test_the_age_of_the_live_releases_data_is_known_from_either(
    world: World, monkeypatch: pytest.MonkeyPatch, said_by: str
) -> None:
    """From the ledger, whatever was collected since; from artifacts for rows of before it said."""
    one = of_week(world, "one", "2026-01-18")
    with monkeypatch.context() as patch:
        if said_by == "artifacts":
            patch.setattr(promote, "vouched", lambda s, b, v: untold(vouched(s, b, v)))
        row = world.promote(one)
    assert row.payload.get("until") == ("2026-01-18" if said_by == "ledger" else None)
    two = of_week(world, "two", "2026-01-11")
    if said_by == "ledger":
        open_blobs(world.settings.artifacts).delete_tree(f"{MARKET}/snapshot/one")
    with pytest.raises(RefusedError, match="an older week does not replace a newer one"):
        world.promote(two)


def untold(payload: dict[str, str]) -> dict[str, str]:
    return {k: v for k, v in payload.items() if k != "until"}


def test_a_verdict_is_refused_when_another_release_is_live(world: World) -> None:
    """After a promotion, after a rollback, and while a hold-out is open."""
    one = world.release("one")
    world.promote(one)
    stale, two = world.release("stale"), world.release("two")
    world.promote(two)
    late = world.release("late")  # judged against two
    with pytest.raises(RefusedError, match=f"expected {one.id} to be live in tiny, but {two.id}"):
        world.promote(stale)
    world.roll_back()
    with pytest.raises(RefusedError, match=f"expected {two.id} to be live in tiny, but {one.id}"):
        world.promote(late)
    before = world.release("before")
    three = launched(world, "three")
    assert world.doc()["holdout"] == one.id
    for door in (world.promote, lambda made: world.start(made, STEPS)):
        with pytest.raises(RefusedError, match=f"expected {one.id} to be live"):
            door(before)
    assert world.live() == three.id
    world.promote(world.release("fresh"))  # judged against what is live
    world.agrees()


def test_what_was_rolled_back_or_replaced_is_not_promoted_by_a_rerun(world: World) -> None:
    one = world.release("one")
    world.promote(one)
    two = world.release("two")
    world.promote(two)
    with pytest.raises(RefusedError, match=f"but since then {two.id} went live by row 4"):
        world.promote(one)
    world.roll_back()
    with pytest.raises(RefusedError, match=r"rolled back by t, row 5 \(drill\), and stays back"):
        world.promote(two)
    with pytest.raises(RefusedError, match="csrm release restore"):
        manage.approve(world.settings, MARKET, two.id, "ann", "again")
    assert world.live() == one.id


def restore(world: World, release: str) -> ledger.Entry:
    given = {"actor": "ann", "reason": "false alarm"}
    return promote.restore(world.settings, AUTO, release, world.api, **given)


def go_back(world: World, who: str, leaving: str | None = None) -> ledger.Entry:
    given = {"actor": who, "reason": f"{who}'s", "leaving": leaving}
    return roll_back(world.settings, AUTO, world.api, **given)


def test_a_person_brings_a_rolled_back_release_back_with_a_reason(world: World) -> None:
    one = world.release("one")
    world.promote(one)
    two = world.release("two")
    world.promote(two)
    for number in (1, 2):  # as often as it is rolled back
        world.roll_back(leaving=two.id)
        row = restore(world, two.id)
        assert (row.action, row.actor, row.reason) == ("promoted", "ann", "false alarm")
        assert restore(world, two.id) == row
        assert world.live() == two.id and len(world.moves()) == 2 + 2 * number
        world.agrees()
    assert world.promote(two) == row  # a rerun of its promotion finds it live
    with pytest.raises(RefusedError, match="is live in tiny since row 2"):
        world.roll_back(leaving=two.id)
        restore(world, one.id)


def test_bringing_back_needs_what_any_promotion_needs(world: World) -> None:
    one = world.release("one")
    world.promote(one)
    two, three = world.release("two"), world.release("three")
    with pytest.raises(RefusedError, match="was not rolled back in tiny: promote it"):
        restore(world, two.id)
    world.promote(two)
    world.roll_back()
    world.promote(three)
    with pytest.raises(RefusedError, match=f"expected {one.id} to be live"):
        restore(world, two.id)
    four = world.release("four")
    world.start(four, STEPS)
    with pytest.raises(RefusedError, match="is being rolled out"):
        restore(world, two.id)
    world.roll_back()
    with pytest.raises(RefusedError, match="was given up by t"):
        restore(world, four.id)


def test_two_people_who_see_the_same_release_go_back_once(world: World) -> None:
    made = []
    for key in ("one", "two", "three"):
        made.append(world.release(key))
        world.promote(made[-1])
    one, two, three = (m.id for m in made)
    first = go_back(world, "ann")
    assert go_back(world, "ann") == first == go_back(world, "cho", leaving=three)  # by name
    said = f"ann has left {three} already, row 7 .*{two} is live; .*--leaving {two}"
    with pytest.raises(RefusedError, match=said):
        go_back(world, "ben")
    assert world.live() == two
    assert go_back(world, "ben", leaving=two).release_id == one
    four = world.release("four")
    world.promote(four)
    assert (
        go_back(world, "ben").release_id == one
    )  # something went live since: this is a new way back
    assert len([e for e in world.moves() if e[0] == "rolled_back"]) == 3


def test_two_people_who_give_up_a_rollout_leave_the_live_release_alone(world: World) -> None:
    for key in ("one", "two"):
        world.promote(world.release(key))
    live = world.live()
    world.start(world.release("three"), STEPS)
    world.roll_back()
    with pytest.raises(RefusedError, match=f"{live} is live"):
        go_back(world, "ben")
    assert world.live() == live


DOORS = {
    "settle": lambda w, made: w.settle(w.judgement(), AUTO),
    "promote": lambda w, made: w.promote(made),
    "begin": lambda w, made: rollout_moves.begin(w.settings, AUTO, w.api, made.id),
    "reconcile": lambda w, made: reconcile(w.settings, AUTO, w.api),
}


@pytest.mark.parametrize("door", DOORS)
def test_a_plan_without_steps_gives_up_what_is_under_way_with_a_row(
    world: World, door: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(world.api, "get_model_version", version(world), raising=False)
    one = world.release("one")
    world.promote(one)
    two, three = world.release("two"), world.release("three")
    world.start(two, STEPS)
    world.settle(world.judgement(), STEPS)
    assert world.doc()["weights"]["next"] == 50
    before = len(ledger.verified(world.settings, MARKET))
    DOORS[door](world, three)
    row = ledger.verified(world.settings, MARKET)[before]
    assert (row.action, row.release_id, row.actor) == ("aborted", two.id, "csrm rollout")
    assert row.reason == "the market's file has no rollout steps any more"
    goes = [("promoted", three.id)] if door in ("promote", "begin") else []
    assert actions(world, before) == [("aborted", two.id), *goes]
    assert world.doc()["next"] is None and world.doc()["stable"] == world.live()
    with pytest.raises(RefusedError, match="stays back"):
        world.promote(two)
    world.agrees()


def version(world: World) -> Any:
    """MLflow's ``get_model_version`` on the registry in memory."""

    def get(_: str, number: str) -> Any:
        return next(v for v in world.api.versions if str(v.version) == number)

    return get


def test_the_release_under_way_does_not_go_live_by_its_steps_being_removed(world: World) -> None:
    one = world.release("one")
    world.promote(one)
    two = world.release("two")
    world.start(two, STEPS)
    with pytest.raises(RefusedError, match="no rollout steps any more"):
        world.promote(two)
    assert (world.live(), actions(world)[-1]) == (one.id, ("aborted", two.id))


def test_a_release_that_passed_every_step_may_still_be_promoted(world: World) -> None:
    """It was killed between its last step and its promotion; then the steps were removed."""
    world.promote(world.release("one"))
    two = world.release("two")
    world.start(two, STEPS)
    world.settle(world.judgement(), STEPS)
    said = world.judgement()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rollout_moves, "_promote", lambda *_: None)
        world.settle(said, STEPS)
    state = world.opened()
    assert state is not None and state.passed
    world.settle(said, AUTO)
    assert world.live() == two.id


def test_a_holdout_is_no_rollout_under_way(world: World) -> None:
    world.promote(world.release("one"))
    two = launched(world, "two")
    assert world.settle(world.judgement(day=1), AUTO) == "wait"
    assert world.settle(world.judgement(day=2), AUTO) == "close"
    assert world.live() == two.id


def test_the_commands_say_what_the_ledger_says_is_live(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tracking, "client", lambda _: world.api)
    world.at_the_command_line(STEPS, monkeypatch)

    def said(*args: str, actor: str = "ann") -> str:
        who = ["--market", MARKET, "--actor", actor, "--reason", "bad"]
        code = main(["release", args[0], *who, *args[1:]])
        told = capsys.readouterr()
        return str(told.out if code == 0 else told.err.splitlines()[-1])

    one = world.release("one")
    world.promote(one)
    two = world.release("two")
    world.start(two, STEPS)
    assert said("rollback") == f"{two.id} is given up (row 5); {one.id} is live\n"
    assert f"ann has left {two.id} already" in said("rollback", actor="ben")
    three = launched(world, "three")
    out = said("rollback")
    assert out.startswith(f"{three.id} is left") and out.endswith(f"{one.id} is live\n")
    out = said("restore", three.id)
    assert out.startswith(f"{three.id} is back") and out.endswith(f"{three.id} is live\n")


def test_the_step_says_what_is_live(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "client", lambda _: world.api)
    one = world.release("one")
    world.promote(one)
    two = world.release("two")
    world.start(two, STEPS)
    given = {"reason": "bad", "actor": "ann", "run": "manual__1"}
    ref = run_step("roll_back", STEPS, {}, given, world.settings)
    facts = store_of(world.settings).open(ref).facts
    assert (facts["did"], facts["release"], facts["live"]) == ("aborted", two.id, one.id)


def live(world: World, key: str) -> Any:
    """Return a release that everybody is served."""
    made = world.release(key)
    world.promote(made)
    return made


def test_a_release_that_failed_after_its_last_step_is_not_promoted(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its promotion was interrupted, and the next day's evidence says that it is bad."""
    one = live(world, "one")
    two = world.release("two")
    world.start(two, STEPS)
    world.settle(world.judgement(), STEPS)
    with monkeypatch.context() as patch:
        patch.setattr(rollout_moves, "_promote", lambda *_: None)
        world.settle(world.judgement(), STEPS)
    state = world.opened()
    assert state is not None and state.passed
    assert world.settle(world.judgement("FAILURE", day=2), STEPS) == "abort"
    assert (world.live(), actions(world)[-1]) == (one.id, ("aborted", two.id))
    world.agrees()


@pytest.mark.parametrize("command", ["advance", "promote", "begin"])
def test_what_lost_its_steps_is_served_to_nobody_whatever_is_refused_next(
    world: World, command: str
) -> None:
    one = live(world, "one")
    two, other = world.release("two"), world.release("other")
    world.start(two, STEPS)
    world.settle(world.judgement(), STEPS)
    assert two.id in str(world.doc())
    bare = AUTO.model_copy(update={"release": Release(approval="manual")})
    with pytest.raises(RefusedError):
        if command == "advance":
            rollout_moves.advance_held(world.settings, bare, world.api, actor="t", reason="r")
        elif command == "promote":
            world.promote(other, bare)  # nobody has approved it
        else:
            rollout_moves.begin(world.settings, bare, world.api, two.id)
    assert (world.live(), actions(world)[-1]) == (one.id, ("aborted", two.id))
    world.agrees()


def test_reconcile_spares_what_has_passed_every_step(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(world.api, "get_model_version", version(world), raising=False)
    live(world, "one")
    two = world.release("two")
    world.start(two, STEPS)
    world.settle(world.judgement(), STEPS)
    with monkeypatch.context() as patch:
        patch.setattr(rollout_moves, "_promote", lambda *_: None)
        world.settle(world.judgement(), STEPS)
    reconcile(world.settings, market(rollout=Rollout(steps=())), world.api)
    assert ("aborted", two.id) not in actions(world)


def test_leaving_the_live_release_gives_up_what_was_compared_with_it(world: World) -> None:
    zero, one = live(world, "zero"), live(world, "one")
    two = world.release("two")
    world.start(two, STEPS)
    world.settle(world.judgement(), STEPS)
    row = world.roll_back(leaving=one.id)
    assert (row.action, row.release_id, world.live()) == ("rolled_back", zero.id, zero.id)
    assert actions(world)[-2:] == [("aborted", two.id), ("rolled_back", zero.id)]
    assert world.roll_back(leaving=one.id).seq == row.seq
    world.agrees()
    with pytest.raises(RefusedError):
        world.start(two, STEPS)


def test_a_command_that_only_reads_says_that_the_database_is_away(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    world.at_the_command_line(STEPS, monkeypatch)
    monkeypatch.setenv("CSRM_DB_URL", "postgresql+psycopg2://u:secret@127.0.0.1:1/nowhere")
    for args in (["release", "history"], ["release", "live"], ["release", "verify"],
                 ["rollout", "status"], ["digest"]):  # fmt: skip
        assert main([*args, "--market", MARKET]) == 2, args
        said = capsys.readouterr().err.strip().splitlines()
        assert len(said) == 1 and "database does not answer" in said[0], said
        assert "secret" not in said[0]
