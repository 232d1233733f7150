"""What people do with releases, as plain functions for the command line and the release board."""

from __future__ import annotations

from csrm_tasks import tracking
from csrm_tasks.errors import RefusedError
from csrm_tasks.markets import load_market
from csrm_tasks.release import ledger
from csrm_tasks.release import rollback as back
from csrm_tasks.settings import Settings


def history(settings: Settings, market: str) -> list[ledger.Entry]:
    """Return what was done to the market's releases, oldest first, unchecked."""
    return ledger.history(settings, market)


def verify(settings: Settings, market: str) -> int:
    """Check the hash chain and return its length; raises :class:`RefusedError` if it is broken."""
    return len(ledger.verified(settings, market))


def live(settings: Settings, market: str, at: str | None = None) -> str | None:
    """Return the release that is live, or was at the ISO time ``at``."""
    return ledger.live(ledger.verified(settings, market), at)


def approve(
    settings: Settings, market: str, release_id: str, actor: str, reason: str
) -> ledger.Entry:
    """Approve a registered release under its newest verdict, which must be a PASS."""
    entries = ledger.verified(settings, market)
    rows = [e for e in entries if (e.action, e.release_id) == ("registered", release_id)]
    if not rows:
        raise RefusedError(f"{market} has no registered release {release_id}")
    if rows[-1].payload["outcome"] != "PASS":
        raise RefusedError(f"the gate said {rows[-1].payload['outcome']} of {release_id}")
    payload = {"verdict": rows[-1].payload["verdict"]}
    return ledger.append(
        settings, market, "approved", release_id, actor=actor, reason=reason, payload=payload
    )


def rollback(
    settings: Settings, market: str, actor: str, reason: str, leaving: str | None = None
) -> ledger.Entry:
    """Make the release before the live one live again; see :mod:`.rollback`."""
    config = load_market(market, settings.markets)
    api = tracking.client(settings)
    return back.roll_back(settings, config, api, actor=actor, reason=reason, leaving=leaving)


def reconcile(settings: Settings, market: str) -> list[str]:
    """Repair MLflow and routing from the ledger; see :mod:`.reconcile`."""
    from csrm_tasks.release import reconcile as repair

    config = load_market(market, settings.markets)
    return repair.reconcile(settings, config, tracking.client(settings))


def show(settings: Settings, market: str, release_id: str) -> list[ledger.Entry]:
    """Return every row about a release; raises :class:`RefusedError` where there is none."""
    entries = ledger.verified(settings, market)
    found = [e for e in entries if release_id in (e.release_id, e.previous)]
    if not found:
        raise RefusedError(f"the ledger of {market} knows no release {release_id}")
    return found
