"""What people do with releases, as plain functions for the command line and the release board."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from csrm_tasks import tracking
from csrm_tasks.errors import RefusedError
from csrm_tasks.markets import load_market
from csrm_tasks.release import approval, away, ledger, rollout
from csrm_tasks.release import rollback as back
from csrm_tasks.release.guard import refuse_begun, refuse_older
from csrm_tasks.release.views import refresh_views
from csrm_tasks.settings import Settings


def history(settings: Settings, market: str) -> list[ledger.Entry]:
    """Return what was done to the market's releases, oldest first, unchecked."""
    return ledger.history(settings, market)


def verify(settings: Settings, market: str) -> int:
    """Check the hash chain and return its length; raises :class:`RefusedError` if it is broken."""
    return len(ledger.verified(settings, market))


@away.one_line
def what_is_live(settings: Settings, market: str, row: ledger.Entry) -> str:
    """Say what a decision's ledger row did, and what the ledger says is live now."""
    entries = ledger.verified(settings, market)
    state = rollout.current_rollout(entries)
    left = {
        "aborted": f"{row.release_id} is given up",
        "rolled_back": f"{row.previous} is left",
        "promoted": f"{row.release_id} is back",
    }
    share = "" if state is None or state.launched else f"; {state.release} is being rolled out"
    live = ledger.live(entries) or "nothing"
    return f"{left[row.action]} (row {row.seq}); {live} is live{share}"


def live(settings: Settings, market: str, at: str | None = None) -> str | None:
    """Return the release that is live, or was at the ISO time ``at``."""
    return ledger.live(ledger.verified(settings, market), at)


@away.one_line
def approve(
    settings: Settings, market: str, release_id: str, actor: str, reason: str, seen: str = ""
) -> ledger.Entry:
    """Approve a registered release under its newest verdict, which must be a PASS.

    Whatever was said before: this is now what was last decided. Saying it again is no new row.
    ``seen``: hash of the newest row when the person decided; a ledger that has grown is refused.
    Raises :class:`RefusedError` for a release that would not be rolled out whatever is said of it.
    """
    entries = ledger.verified(settings, market)
    made = _registered(entries, market, release_id)
    if made["outcome"] != "PASS":
        raise RefusedError(f"the gate said {made['outcome']} of {release_id}")
    gone = ledger.taken_back(entries, release_id)
    if gone is not None:
        cure = "train a new one"
        if gone.action == "rolled_back":
            cure = (
                f"csrm release restore --market {market} --actor NAME --reason WHY {release_id} "
                "brings it back"
            )
        raise RefusedError(
            f"{release_id} was {gone.action} by row {gone.seq} and stays back; {cure}"
        )

    def check(rows: Sequence[ledger.Entry]) -> None:
        if seen:
            ledger.require_head(rows, seen)
        refuse_older(market, rows, release_id)

    return approval.say(
        settings, market, entries, release_id, made["verdict"],
        approved=True, actor=actor, reason=reason, check=check,
    )  # fmt: skip


@away.one_line
def reject(
    settings: Settings, market: str, release_id: str, actor: str, reason: str, seen: str = ""
) -> ledger.Entry:
    """Reject a registered release that has not begun its way to shoppers, under its verdict.

    ``seen``: as of :func:`approve`.
    """
    entries = ledger.verified(settings, market)
    made = _registered(entries, market, release_id)

    def check(rows: Sequence[ledger.Entry]) -> None:
        refuse_begun(market, rows, release_id)
        if seen:
            ledger.require_head(rows, seen)

    refuse_begun(market, entries, release_id)  # a second no that is too late is no success either
    return approval.say(
        settings, market, entries, release_id, made["verdict"],
        approved=False, actor=actor, reason=reason, check=check,
    )  # fmt: skip


def follow(settings: Settings, market: str) -> None:
    """Let MLflow's aliases follow what was decided; where it is away they follow later."""
    config = load_market(market, settings.markets)
    refresh_views(settings, config, tracking.LaterClient(settings))


def _registered(entries: Sequence[ledger.Entry], market: str, release_id: str) -> Mapping[str, str]:
    rows = [e for e in entries if (e.action, e.release_id) == ("registered", release_id)]
    if not rows:
        raise RefusedError(f"{market} has no registered release {release_id}")
    return rows[-1].payload


def restore(
    settings: Settings, market: str, release_id: str, actor: str, reason: str
) -> ledger.Entry:
    """Make a release that was rolled back live again; see :func:`.promote.restore`."""
    from csrm_tasks.release import promote

    config = load_market(market, settings.markets)
    api = tracking.LaterClient(settings)
    return promote.restore(settings, config, release_id, api, actor=actor, reason=reason)


def rollback(
    settings: Settings, market: str, actor: str, reason: str, leaving: str | None = None
) -> ledger.Entry:
    """Make the release before the live one live again; see :mod:`.rollback`."""
    config = load_market(market, settings.markets)
    api = tracking.LaterClient(settings)
    return back.roll_back(settings, config, api, actor=actor, reason=reason, leaving=leaving)


def advance(settings: Settings, market: str, actor: str, reason: str) -> rollout.CurrentRollout:
    """Take a held rollout to its next step; see :func:`.rollout_moves.advance_held`."""
    from csrm_tasks.release.rollout_moves import advance_held

    config = load_market(market, settings.markets)
    api = tracking.LaterClient(settings)
    return advance_held(settings, config, api, actor=actor, reason=reason)


@away.one_line
def hold(settings: Settings, market: str, actor: str, reason: str) -> ledger.Entry:
    """Hold the rollout that is under way at its step; saying it again is no new row.

    It does not go on, whatever the evidence says, until somebody resumes or advances it. Failures
    still roll it back. Raises :class:`RefusedError` where no step is under way.
    """
    entries = ledger.verified(settings, market)
    state = _at_a_step(market, entries)
    last = _last_of(entries, state, "resumed")
    return _say_of_step(settings, market, "held", state, actor, reason, last)


@away.one_line
def resume(settings: Settings, market: str, actor: str, reason: str) -> ledger.Entry:
    """Let a rollout that a person holds go on by its evidence; saying it again is no new row."""
    entries = ledger.verified(settings, market)
    state = _at_a_step(market, entries)
    last = _last_of(entries, state, "held")
    if last is None:
        raise RefusedError(f"{state.release} is not held by a person: its evidence decides")
    return _say_of_step(settings, market, "resumed", state, actor, reason, last)


def _at_a_step(market: str, entries: Sequence[ledger.Entry]) -> rollout.CurrentRollout:
    state = rollout.current_rollout(entries)
    if state is None or state.launched:
        raise RefusedError(f"nothing of {market} is being rolled out")
    if state.passed:
        raise RefusedError(
            f"{state.release} has passed its last step and goes live; csrm release rollback "
            f"--market {market} --leaving {state.release} --actor NAME --reason WHY gives it up"
        )
    return state


def _last_of(
    entries: Sequence[ledger.Entry], state: rollout.CurrentRollout, action: str
) -> ledger.Entry | None:
    """Return a person's last row of this step that says ``action``."""
    rows = (e for e in reversed(entries) if e.seq > state.turn and e.action == action)
    return next((e for e in rows if e.payload.get("by") == rollout.PERSON), None)


def _say_of_step(
    settings: Settings, market: str, action: ledger.Action, state: rollout.CurrentRollout,
    actor: str, reason: str, after: ledger.Entry | None,
) -> ledger.Entry:  # fmt: skip
    payload = {"step": rollout.step_name(state), "by": rollout.PERSON}
    payload["after"] = after.hash if after else ""
    return ledger.append(
        settings, market, action, state.release, actor=actor, reason=reason, payload=payload,
        expected=ledger.Precondition(state.control, state.turn),
    )  # fmt: skip


def reconcile(settings: Settings, market: str) -> list[str]:
    """Repair MLflow and routing from the ledger; see :mod:`.reconcile`."""
    from csrm_tasks.release import reconcile as repair

    config = load_market(market, settings.markets)
    return repair.reconcile(settings, config, tracking.LaterClient(settings))


@away.one_line
def copy(settings: Settings, market: str, target: str, release_id: str | None) -> tuple[str, str]:
    """Take a release to another environment's model in MLflow; see :mod:`.copying`."""
    from csrm_tasks.release.copying import copy_release

    config = load_market(market, settings.markets)
    return copy_release(settings, config, tracking.client(settings), target, release_id)


def show(settings: Settings, market: str, release_id: str) -> list[ledger.Entry]:
    """Return every row about a release; raises :class:`RefusedError` where there is none."""
    entries = ledger.verified(settings, market)
    rows = [e for e in entries if release_id in (e.release_id, e.previous)]
    if not rows:
        raise RefusedError(f"the ledger of {market} knows no release {release_id}")
    return rows
