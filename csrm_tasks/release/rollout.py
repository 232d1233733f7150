"""The state of a rollout, computed from the ledger, and the move that its evidence asks for.

    approved → started (shadow, 1 %, 10 %, 50 %: each ``advanced``) → promoted → hold-out → closed
                  └── judged every day; failure: ``aborted``; no decision in time: ``held``

One release is stable and at most one is next. Nothing is remembered outside the ledger, so the
state is the same for whoever asks, and these are pure functions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Literal

from csrm_tasks.errors import RefusedError
from csrm_tasks.release.approval import decided
from csrm_tasks.release.ledger import SERVING_ACTIONS, Entry, last_serving_row, live
from csrm_tasks.sections import Rollout, Step

Outcome = Literal["SUCCESS", "FAILURE", "INCONCLUSIVE", "ERROR"]
PERSON = "person"  # ``by`` of a hold that is a person's
Move = Literal["wait", "hold", "advance", "abort", "close"]


@dataclass(frozen=True)
class ShareWindow:
    """A time in which the shares of sessions did not change."""

    since: str  # ISO 8601, UTC; until the next window begins
    share: float  # of the two arms' sessions that the judged release got; 0 is shadow


@dataclass(frozen=True)
class CurrentRollout:
    """A rollout that is under way, or launched with a hold-out still open."""

    release: str  # the one that is judged
    control: str  # the one it is compared with: live before it
    plan: Rollout  # as it was when the rollout started
    step: int  # position in the plan; its length: every step has passed
    turn: int  # ledger row that began this step
    windows: tuple[ShareWindow, ...]  # the last one is this step's
    held: bool = False  # no decision in time: a person decides, or later evidence
    paused: bool = False  # a person holds it: whatever the evidence, it does not go on
    launched: bool = False

    @property
    def current(self) -> Step:
        """The step that is under way; past the last one, that one."""
        return self.plan.steps[min(self.step, len(self.plan.steps) - 1)]

    @property
    def weight(self) -> int:
        """Percent of sessions that get the judged release while it is not live."""
        return self.current.weight

    @property
    def passed(self) -> bool:
        """Whether every step has passed, and only the promotion is left."""
        return not self.launched and self.step == len(self.plan.steps)


def current_rollout(entries: Sequence[Entry]) -> CurrentRollout | None:
    """Return the rollout that is open now, or None."""
    state: CurrentRollout | None = None
    for row in entries:
        if row.action == "started":
            plan = Rollout.model_validate_json(row.payload["plan"])
            windows = (ShareWindow(row.at, plan.steps[0].share),)
            state = CurrentRollout(row.release_id, str(row.previous), plan, 0, row.seq, windows)
        elif state is not None:
            state = _after(state, row)
    return state


def _after(state: CurrentRollout, row: Entry) -> CurrentRollout | None:
    if row.action == "promoted" and row.release_id == state.release and state.plan.holdout:
        window = ShareWindow(row.at, 1 - state.plan.holdout / 100)
        return replace(
            state, launched=True, held=False, paused=False, step=len(state.plan.steps),
            turn=row.seq, windows=(*state.windows, window),
        )  # fmt: skip
    if row.action == "advanced" and row.release_id == state.release:
        new = replace(state, step=int(row.payload["step"]), turn=row.seq, held=False, paused=False)
        return replace(new, windows=(*state.windows, ShareWindow(row.at, new.current.share)))
    if row.action in ("held", "resumed") and row.release_id == state.release:
        if row.payload.get("by") == PERSON:
            return replace(state, paused=row.action == "held")
        return replace(state, held=True)
    return None if row.action in SERVING_ACTIONS else state


def with_holds(entries: Sequence[Entry], state: CurrentRollout) -> CurrentRollout:
    """Return the state of a step with what a person has said of it until the last of ``entries``.

    ``state``: as it was when the step began; another step's holds say nothing of it.
    """
    now = current_rollout(entries)
    same = now is not None and (now.release, now.turn) == (state.release, state.turn)
    return replace(state, paused=now.paused) if now is not None and same else state


def refuse_paused(entries: Sequence[Entry]) -> None:
    """Raise :class:`RefusedError` where a person holds the rollout that is under way."""
    state = current_rollout(entries)
    if state is not None and state.paused:
        raise RefusedError(
            f"{state.release} is held at step {state.step} by a person: it does not go on until "
            "csrm rollout resume"
        )


def by_steps(plan: Rollout, entries: Sequence[Entry]) -> bool:
    """Whether a release must go through steps: the plan has some, and one is live to compare."""
    return bool(plan.steps) and live(entries) is not None


def completed(entries: Sequence[Entry], release: str) -> Entry | None:
    """Return the row by which ``release`` passed its last step, if nothing has happened since."""
    state, turn = current_rollout(entries), last_serving_row(entries)
    if state is None or state.release != release:
        return None
    return turn if state.passed else None


def next_candidate(entries: Sequence[Entry], policy: str = "manual") -> Entry | None:
    """Return the registration of the release that may be rolled out next, if there is one.

    It is the newest release with a PASS: never started, promoted or given up, and by the market's
    approval ``policy`` it may go on or a person is to be asked. Where a person rejected that one,
    it is the one before, if a person approved it.
    """
    rows = passed(entries)
    for row in rows:
        said = decided(entries, row.release_id, row.payload["verdict"])
        if used(entries, row.release_id) is not None:
            return None
        if said.word != "rejected":
            newest = row is rows[0] and (said.allows(policy) or said.asks(policy))
            return row if newest or said.word == "approved" else None
    return None


def passed(entries: Sequence[Entry]) -> list[Entry]:
    """Return the newest registration of each release, newest first, of those that say PASS."""
    rows = {e.release_id: e for e in entries if e.action == "registered"}.values()
    good = [e for e in rows if e.payload["outcome"] == "PASS"]
    return sorted(good, key=lambda e: e.seq, reverse=True)


def used(entries: Sequence[Entry], release: str) -> Entry | None:
    """Return the last row by which a release began or left its way to shoppers."""
    rows = (e for e in reversed(entries) if e.release_id == release)
    return next((e for e in rows if e.action in ("promoted", "started", "aborted")), None)


def past_outcomes(entries: Sequence[Entry], state: CurrentRollout, day: str) -> list[str]:
    """Return what this step's looks up to ``day`` came to, in the order of days."""
    rows = [
        e
        for e in entries
        if e.action == "judged"
        and e.release_id == state.release
        and e.seq > state.turn
        and e.payload["step"] == step_name(state)
        and e.payload["day"] <= day
    ]
    return [e.payload["outcome"] for e in sorted(rows, key=lambda e: e.payload["day"])]


def step_name(state: CurrentRollout) -> str:
    """Name this step in ledger rows: its position, or "holdout"."""
    return "holdout" if state.launched else str(state.step)


def next_move(state: CurrentRollout, outcomes: Sequence[str], days: float) -> Move:
    """Return what to do after the last of ``outcomes`` (this step's looks, oldest first).

    ``days`` of data since the step began. A success earlier than the step's hold time waits. Errors
    never count as failures; enough of them in a row, or no decision in time, ask a person. A
    release that has passed every step and still waits for its promotion may fail as any other, and
    so may one that a person holds; but that one does not go on.
    """
    plan, last = state.plan, outcomes[-1]
    if last == "FAILURE" and _streak(outcomes) >= plan.failures:
        return "abort"
    if state.paused:
        return "wait"
    if state.passed:
        return "advance"
    if state.launched:
        return "close" if days >= plan.holdout_days else "wait"
    if last == "SUCCESS" and days >= state.current.days:
        return "advance"
    late = days >= plan.max_days or (last == "ERROR" and _streak(outcomes) >= plan.errors)
    return "hold" if late and not state.held else "wait"


def _streak(outcomes: Sequence[str]) -> int:
    """How many of the last outcomes are the same."""
    count = 0
    for outcome in reversed(outcomes):
        if outcome != outcomes[-1]:
            break
        count += 1
    return count


def days_since(since: str, until: str) -> float:
    """Return the days from one ISO time to another."""
    passed = datetime.fromisoformat(until) - datetime.fromisoformat(since)
    return passed.total_seconds() / 86_400
