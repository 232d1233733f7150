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
    settings: Settings, market: str, release_id: str, actor: str, reason: str
) -> ledger.Entry:
    """Approve a registered release under its newest verdict, which must be a PASS.

    Whatever was said before: this is now what was last decided. Saying it again is no new row.
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
        refuse_older(market, rows, release_id)

    return approval.say(
        settings, market, entries, release_id, made["verdict"],
        approved=True, actor=actor, reason=reason, check=check,
    )  # fmt: skip


@away.one_line
def reject(
    settings: Settings, market: str, release_id: str, actor: str, reason: str
) -> ledger.Entry:
    """Reject a registered release that has not begun its way to shoppers, under its verdict."""
    entries = ledger.verified(settings, market)
    made = _registered(entries, market, release_id)

    def check(rows: Sequence[ledger.Entry]) -> None:
        refuse_begun(market, rows, release_id)

    check(entries)  # a second no that comes too late is no success either
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


def reconcile(settings: Settings, market: str) -> list[str]:
    """Repair MLflow and routing from the ledger; see :mod:`.reconcile`."""
    from csrm_tasks.release import reconcile as repair

    config = load_market(market, settings.markets)
    return repair.reconcile(settings, config, tracking.LaterClient(settings))


def show(settings: Settings, market: str, release_id: str) -> list[ledger.Entry]:
    """Return every row about a release; raises :class:`RefusedError` where there is none."""
    entries = ledger.verified(settings, market)
    rows = [e for e in entries if release_id in (e.release_id, e.previous)]
    if not rows:
        raise RefusedError(f"the ledger of {market} knows no release {release_id}")
    return rows
