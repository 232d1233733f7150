"""What was last decided of a release: one function, asked by every door."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from csrm_tasks import tracking
from csrm_tasks.cli.main import main
from csrm_tasks.errors import RefusedError
from csrm_tasks.markets import MarketConfig
from csrm_tasks.release import approval, guard, ledger, manage, rollout, rollout_moves
from csrm_tasks.sections import Rollout, Step
from csrm_tasks.settings import Settings
from tests.release_fixtures import MARKET, market
from tests.release_world import World

MANUAL = market(approval="manual")
STEPS = market(approval="manual", rollout=Rollout(steps=(Step(weight=5),)))
START = datetime(2026, 1, 1, tzinfo=UTC)
YES, NO, LATE = "yes", "no", "timeout"


def rows(*said: str, verdict: str = "v") -> list[ledger.Entry]:
    """Return ledger rows, a minute apart, that say so much of release r."""
    found = []
    for number, word in enumerate(said):
        actor = approval.TIMEOUT if word == LATE else "ann"
        action = "approved" if word == YES else "rejected"
        at = (START + timedelta(minutes=number)).isoformat()
        payload = {"verdict": verdict}
        found.append(
            ledger.Entry("m", number + 1, at, actor, action, "r", None, "", payload, "", "")
        )
    return found


@pytest.mark.parametrize(
    ("said", "word", "manual", "auto", "asks"),
    [
        ((), "nothing", False, True, True),
        ((YES,), "approved", True, True, False),
        ((NO,), "rejected", False, False, False),
        ((LATE,), "timed out", False, True, False),
        ((YES, NO), "rejected", False, False, False),
        ((NO, YES), "approved", True, True, False),
        ((LATE, YES), "approved", True, True, False),
        ((LATE, NO), "rejected", False, False, False),
        ((YES, LATE), "approved", True, True, False),  # a timeout overrules nobody
        ((NO, LATE), "rejected", False, False, False),
        ((YES, LATE, NO), "rejected", False, False, False),
        ((NO, LATE, YES), "approved", True, True, False),
        ((YES, NO, YES), "approved", True, True, False),
        ((NO, YES, LATE, NO), "rejected", False, False, False),
        ((LATE, LATE), "timed out", False, True, False),
    ],
)
def test_the_truth_table(
    said: tuple[str, ...], word: str, manual: bool, auto: bool, asks: bool
) -> None:
    found = approval.decided(rows(*said), "r", "v")
    assert found.word == word
    assert (found.allows("manual"), found.allows("auto")) == (manual, auto)
    assert (found.asks("manual"), found.asks("auto")) == (asks, False)


def test_a_decision_is_about_one_release_and_one_verdict() -> None:
    said = rows(YES)
    assert approval.decided(said, "r", "another").word == "nothing"
    assert approval.decided(said, "other", "v").word == "nothing"


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from([YES, NO, LATE]), max_size=8))
def test_the_last_person_decides_whatever_timed_out(said: list[str]) -> None:
    people = [word for word in said if word != LATE]
    slow = {YES: "approved", NO: "rejected"}[people[-1]] if people else None
    slow = slow or ("timed out" if said else "nothing")
    assert approval.decided(rows(*said), "r", "v").word == slow


@pytest.fixture
def world(settings: Settings) -> World:
    world = World(settings)
    world.promote(world.release("one"))
    return world


def approve(world: World, made: Any, who: str = "ann") -> ledger.Entry:
    return manage.approve(world.settings, MARKET, made.id, who, "looks right")


def reject(world: World, made: Any, who: str = "bob") -> ledger.Entry:
    return manage.reject(world.settings, MARKET, made.id, who, "looks wrong")


def answer(
    world: World, made: Any, approved: bool, who: str, run: str = "run1", **more: str
) -> bool:
    return rollout_moves.record_answer(
        world.settings, STEPS, world.api, made.id, approved=approved, actor=who, run=run, **more
    )


def doors(world: World, made: Any) -> tuple[bool, bool, str]:
    """Return what each door says: the question's (waits), the graph's, promotion's own guard."""
    entries = ledger.verified(world.settings, MARKET)
    waits = rollout.next_candidate(entries) is not None
    may = approval.decided(entries, made.id, made.verdict["digest"]).allows("manual")
    try:
        world.promote(made, MANUAL)
    except RefusedError as e:
        return waits, may, str(e)
    return waits, may, "promoted"


def test_a_question_that_times_out_overrules_no_approval(world: World) -> None:
    two = world.release("two")
    approve(world, two)  # by command, while Airflow asks
    assert answer(world, two, False, "") is True  # it goes on: somebody has approved
    assert doors(world, two) == (True, True, "promoted")


def test_an_approval_after_a_timeout_counts_and_the_task_run_again_goes_on(world: World) -> None:
    two = world.release("two")
    assert answer(world, two, False, "") is False
    assert doors(world, two)[:2] == (False, False)
    approve(world, two)
    assert answer(world, two, False, "") is True  # the task of the timed-out question, cleared
    assert [e.action for e in ledger.verified(world.settings, MARKET)][-2:] == [
        "rejected", "approved",
    ]  # fmt: skip
    assert doors(world, two) == (True, True, "promoted")


def test_a_rejection_after_an_approval_stops_it_and_an_approval_starts_it_again(
    world: World,
) -> None:
    two = world.release("two")
    approve(world, two)
    reject(world, two)
    waits, may, said = doors(world, two)
    assert (waits, may) == (False, False) and "rejected: bob, row 5 (looks wrong)" in said
    approve(world, two)
    reject(world, two)
    assert doors(world, two)[:2] == (False, False)
    approve(world, two, "cho")
    assert doors(world, two) == (True, True, "promoted")
    assert [e.action for e in ledger.verified(world.settings, MARKET)][3:] == [
        "approved", "rejected", "approved", "rejected", "approved", "promoted",
    ]  # fmt: skip


def test_saying_the_same_again_is_one_row(world: World) -> None:
    two = world.release("two")
    assert approve(world, two) == approve(world, two, "bob")
    assert reject(world, two) == reject(world, two)
    before = len(ledger.history(world.settings, MARKET))
    for _ in range(2):
        answer(world, two, True, "ann", run="run2", said="2999-01-01T00:00:00+00:00")
    assert len(ledger.history(world.settings, MARKET)) == before + 1


def test_an_answer_that_is_recorded_late_is_as_old_as_it_is(world: World) -> None:
    two = world.release("two")
    before = datetime.now(UTC).isoformat()
    reject(world, two)  # after ann's answer was given, before its task has run
    assert answer(world, two, True, "ann", said=before) is False
    later = (datetime.now(UTC) + timedelta(minutes=1)).isoformat()
    assert answer(world, two, True, "ann", run="run2", said=later) is True


def test_an_answer_is_about_the_verdict_that_was_asked_about(world: World) -> None:
    two = world.release("two")
    asked = two.verdict["digest"]
    newer = {**two.verdict, "digest": "newer"}
    world.register(two.bundle, newer, two.gate.ref)  # judged anew while the question stands
    assert answer(world, two, True, "ann", verdict=asked) is False
    row = rollout.next_candidate(ledger.verified(world.settings, MARKET))
    assert row is not None and row.payload["verdict"] == "newer"
    found = approval.decided(ledger.verified(world.settings, MARKET), two.id, "newer")
    assert found.word == "nothing"
    with pytest.raises(RefusedError, match="was judged again since: row 4 says PASS"):
        world.promote(two, MANUAL)


def test_a_persons_no_holds_where_nobody_needs_to_approve(world: World) -> None:
    two = world.release("two")
    reject(world, two)
    assert rollout.next_candidate(ledger.verified(world.settings, MARKET), "auto") is None
    with pytest.raises(RefusedError, match="rejected: bob"):
        world.promote(two)
    with pytest.raises(RefusedError, match="rejected: bob"):
        world.start(two, market(rollout=STEPS.rollout))


def test_a_timeout_of_before_does_not_hold_where_nobody_needs_to_approve_now(world: World) -> None:
    two = world.release("two")
    answer(world, two, False, "")
    assert rollout.next_candidate(ledger.verified(world.settings, MARKET), "auto") is not None
    world.promote(two)
    assert world.live() == two.id


def test_a_no_between_the_guard_and_the_row_holds(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    two = world.release("two")
    approve(world, two)
    true = ledger.append

    def append(*args: Any, **given: Any) -> ledger.Entry:
        monkeypatch.setattr(ledger, "append", true)
        reject(world, two)
        return true(*args, **given)

    monkeypatch.setattr(ledger, "append", append)
    with pytest.raises(RefusedError, match="rejected: bob"):
        world.promote(two, MANUAL)
    assert world.live() != two.id


def test_it_is_too_late_to_reject_what_is_on_its_way(world: World) -> None:
    two = world.release("two")
    approve(world, two)
    world.start(two, STEPS)
    under_way = rf"at step 0 \(5 %\): .*--leaving {two.id} --actor NAME --reason WHY gives it up"
    with pytest.raises(RefusedError, match=under_way):
        reject(world, two)
    with pytest.raises(RefusedError, match=under_way):  # in Airflow, where somebody else said yes
        answer(world, two, False, "bob", said="2999-01-01T00:00:00+00:00")
    before = world.opened()
    assert before is not None and before.release == two.id and world.doc()["next"] == two.id
    world.roll_back()
    for no in (reject, lambda w, made: answer(w, made, False, "bob")):
        with pytest.raises(RefusedError, match="was aborted by t, row 6, and stays back"):
            no(world, two)
    with pytest.raises(RefusedError, match="stays back; train a new one"):
        approve(world, two)


def test_a_late_no_is_refused_and_a_no_of_before_and_a_timeout_overrule_nothing(
    world: World,
) -> None:
    two = world.release("two")
    before = datetime.now(UTC).isoformat()
    approve(world, two)
    world.start(two, STEPS)
    assert answer(world, two, False, "") is True  # nobody answered in time
    assert answer(world, two, False, "bob", run="run2", said=before) is True
    for _ in range(2):
        with pytest.raises(RefusedError, match="too late to reject"):
            answer(world, two, False, "bob", run="run3")
    assert [e.action for e in ledger.verified(world.settings, MARKET)][-3:] == [
        "started", "rejected", "rejected",
    ]  # fmt: skip
    state = world.opened()
    assert state is not None and state.release == two.id


def test_a_recorded_no_is_found_again_when_the_release_was_approved_and_began_since(
    world: World,
) -> None:
    two = world.release("two")
    assert answer(world, two, False, "bob") is False
    approve(world, two)
    world.start(two, STEPS)
    assert answer(world, two, False, "bob") is True  # its task, run again


def test_a_no_to_what_is_or_was_live_says_what_can_be_done(world: World) -> None:
    two = world.release("two")
    world.promote(two)
    goes_back = f"is live since row 4.*--leaving {two.id} --actor NAME --reason WHY"
    with pytest.raises(RefusedError, match=goes_back):
        answer(world, two, False, "bob")
    three = world.release("three")
    world.promote(three)
    with pytest.raises(
        RefusedError, match=f"{two.id} was live before {three.id}: there is nothing"
    ):
        reject(world, two)


def test_a_start_between_the_question_and_a_no_is_noticed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    two = world.release("two")
    approve(world, two)
    true = ledger.append

    def append(*args: Any, **given: Any) -> ledger.Entry:
        monkeypatch.setattr(ledger, "append", true)
        world.start(two, STEPS)
        return true(*args, **given)

    monkeypatch.setattr(ledger, "append", append)
    with pytest.raises(RefusedError, match="too late to reject"):
        reject(world, two)
    assert ledger.verified(world.settings, MARKET)[-1].action == "started"


def test_approving_an_older_release_names_the_one_that_awaits_rollout(world: World) -> None:
    two, three = world.release("two"), world.release("three")
    with pytest.raises(RefusedError) as said:
        approve(world, two)
    assert f"{three.id} (row 4), registered after {two.id}, is awaiting rollout" in str(said.value)
    first = f"csrm release reject --market {MARKET} --actor NAME --reason WHY {three.id}"
    assert first in str(said.value)
    reject(world, three)  # as the message says
    assert waits(world, "manual") is waits(world, "auto") is None  # nobody has asked for two
    approve(world, two)
    assert waits(world, "manual") == waits(world, "auto") == two.id
    world.start(two, STEPS)
    assert world.doc()["next"] == two.id


def story(said: list[tuple[str, int]]) -> list[ledger.Entry]:
    """Return ledger rows about a few releases; a registration has a verdict of its own."""
    found: list[ledger.Entry] = []
    verdicts: dict[str, str] = {}
    for number, (action, which) in enumerate(said, start=1):
        release, outcome = f"r{which}", "FAIL" if action == "failed" else "PASS"
        if action in ("registered", "failed"):
            action, verdicts[release] = "registered", f"v{number}"
        payload = {"verdict": verdicts.get(release, ""), "outcome": outcome}
        at = (START + timedelta(minutes=number)).isoformat()
        found.append(
            ledger.Entry("m", number, at, "ann", action, release, None, "", payload, "", "")
        )
    return found


@settings(max_examples=1000, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["registered"] * 4 + ["failed", "approved", "rejected", "started"]),
            st.integers(0, 3),
        ),
        max_size=12,
    ),
    st.integers(0, 3),
)
def test_what_may_be_approved_is_rolled_out_next(said: list[tuple[str, int]], which: int) -> None:
    entries, release = story(said), f"r{which}"
    begun = any(e.action == "started" and e.release_id == release for e in entries)
    newest = {e.release_id: e for e in entries if e.action == "registered"}.get(release)
    if begun or newest is None or newest.payload["outcome"] != "PASS":
        return  # refused before
    try:
        guard.refuse_older("m", entries, release)
        refused = ""
    except RefusedError as e:
        refused = str(e)
    approved = [*entries, *story([*said, ("approved", which)])[-1:]]
    row = rollout.next_candidate(approved, "manual")
    assert (row is not None and row.release_id == release) is not bool(refused), refused
    if row is not None and refused:
        assert row.release_id in refused  # the message names what waits


def test_approving_a_release_that_a_newer_one_has_passed_is_refused(world: World) -> None:
    two, three = world.release("two"), world.release("three")
    approve(world, three)
    world.start(three, STEPS)
    with pytest.raises(
        RefusedError, match=f"{three.id}, registered after it, was started by row 6"
    ):
        approve(world, two)
    world.roll_back()
    with pytest.raises(RefusedError, match=f"{three.id}, registered after it, was aborted by row"):
        approve(world, two)
    assert waits(world, "manual") is waits(world, "auto") is None


def test_a_newer_release_that_failed_its_gate_stands_in_nobodys_way(world: World) -> None:
    two = world.release("two")
    world.release("three", "FAIL")
    approve(world, two)
    assert waits(world, "manual") == two.id


def waits(world: World, policy: str) -> str | None:
    row = rollout.next_candidate(ledger.verified(world.settings, MARKET), policy)
    return row.release_id if row else None


def test_a_challenger_is_taken_off_when_it_is_rejected_or_judged_a_fail(world: World) -> None:
    two = world.release("two")
    world.refresh()
    assert world.aliases()["challenger"] == two.id
    answer(world, two, False, "bob")
    assert "challenger" not in world.aliases()
    approve(world, two)
    world.refresh()
    assert world.aliases()["challenger"] == two.id
    world.register(two.bundle, {**two.verdict, "outcome": "FAIL", "digest": "newer"}, two.gate.ref)
    world.refresh()
    assert "challenger" not in world.aliases()
    world.agrees()


def test_the_challenger_behind_a_rejected_one_is_the_one_before(world: World) -> None:
    two, three = world.release("two"), world.release("three")
    reject(world, three)
    world.refresh()
    assert world.aliases()["challenger"] == two.id


def test_the_commands_take_a_challenger_off_and_put_it_back(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    two = world.release("two")
    world.at_the_command_line(MANUAL, monkeypatch)
    monkeypatch.setattr(tracking, "client", lambda _: world.api)
    args = ["--market", MARKET, "--actor", "ann", "--reason", "so", two.id]
    assert main(["release", "reject", *args]) == 0
    assert "challenger" not in world.aliases()
    assert main(["release", "approve", *args]) == 0
    assert world.aliases()["challenger"] == two.id


def test_the_commands_say_yes_and_no_in_any_order(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    two = world.release("two")
    world.at_the_command_line(MANUAL, monkeypatch)
    monkeypatch.setattr(tracking, "client", lambda _: world.api)
    args = ["--market", MARKET, "--actor", "ann", "--reason", "so", two.id]
    for command, word in (("approve", "approved"), ("reject", "rejected"), ("approve", "approved")):
        assert main(["release", command, *args]) == 0
        entries = ledger.verified(world.settings, MARKET)
        assert approval.decided(entries, two.id, two.verdict["digest"]).word == word


def test_a_run_that_puts_nothing_live_says_what_the_release_waits_for(world: World) -> None:
    """Such a run ends well: its log is all that tells a person what to do next."""

    def said(made: Any, config: MarketConfig, outcome: str = "PASS") -> str:
        facts = {"verdict": outcome, "release": made.id, "digest": made.verdict["digest"]}
        return guard.why_not_now(config, ledger.verified(world.settings, MARKET), facts)

    two = world.release("two")
    by_hand = f"{two.id} waits for approval (nobody has approved it): csrm release approve "
    assert said(two, MANUAL).startswith(by_hand) and two.id in said(two, MANUAL).split()[-1]
    assert said(two, STEPS).startswith(by_hand)
    assert said(two, STEPS).endswith(f"; csrm_rollout__{MARKET} takes it from there, step by step")
    refused = said(two, MANUAL, "INCONCLUSIVE")
    assert refused.startswith(f"the gate said INCONCLUSIVE of {two.id}, what was live stays")
    approve(world, two)
    assert said(two, MANUAL) == ""
    assert said(two, STEPS).startswith(f"{two.id} passed the gate; csrm_rollout__{MARKET} ")
    row = world.start(two, STEPS)
    assert said(two, STEPS).startswith(f"{two.id} was started by row {row.seq}: ")


def test_the_history_tells_what_the_gate_said(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = [world.release(outcome.lower(), outcome) for outcome in ("PASS", "INCONCLUSIVE")]
    world.at_the_command_line(MANUAL, monkeypatch)
    assert main(["release", "history", "--market", MARKET]) == 0
    lines = capsys.readouterr().out.splitlines()[-2:]
    for one, line, outcome in zip(made, lines, ("PASS", "INCONCLUSIVE"), strict=True):
        assert line.split()[2:] == ["registered", one.id, "t:", f"{outcome},"]
