"""The way back: no training, no evaluation, one deciding ledger row, safe to repeat.

A rollout that is under way is the newest thing that was done, so it is what a rollback takes back:
its release is given up and the stable one serves everybody. Otherwise the release before the live
one becomes live again.
"""

from __future__ import annotations

from typing import Any

from csrm_tasks.artifacts import ArtifactStore
from csrm_tasks.errors import RefusedError
from csrm_tasks.markets import MarketConfig
from csrm_tasks.release import ledger, rollout, routing
from csrm_tasks.release.promote import refresh_views
from csrm_tasks.settings import Settings


def roll_back(
    settings: Settings,
    config: MarketConfig,
    api: Any,
    *,
    actor: str,
    reason: str,
    leaving: str | None = None,
    run: str = "",
) -> ledger.Entry:
    """Leave the release that is being rolled out, or else the live one, and return the row.

    ``leaving`` names the release to leave. A rollback that was interrupted after its ledger row is
    finished, not followed by a second one; ``run`` names who may ask again (a task's run) and gets
    the row that it made, however often. Raises :class:`RefusedError` when there is no earlier
    release or its bundle does not verify.
    """
    entries = ledger.verified(settings, config.market)
    row = _made_by(entries, run) or _unfinished(settings, config.market, entries, leaving)
    if row is None:
        note = {"run": run} if run else {}
        state = rollout.opened(entries)
        if state and not state.launched and leaving in (None, state.release):
            row = _give_up(settings, config.market, state, entries, actor, reason, note)
        else:
            row = _to_predecessor(settings, config.market, entries, actor, reason, leaving, note)
    refresh_views(settings, config, api)
    return row


def _made_by(entries: list[ledger.Entry], run: str) -> ledger.Entry | None:
    found = (e for e in entries if e.action in ("rolled_back", "aborted"))
    return next((e for e in found if run and e.payload.get("run") == run), None)


def _unfinished(
    settings: Settings, market: str, entries: list[ledger.Entry], leaving: str | None
) -> ledger.Entry | None:
    """Return the rollback that is in the ledger but not yet in the routing document."""
    turn = ledger.last_turn(entries)
    if turn is None or turn.action not in ("rolled_back", "aborted"):
        return None
    if leaving is not None:
        left = turn.previous if turn.action == "rolled_back" else turn.release_id
        return turn if left == leaving else None
    doc = routing.read(settings, market)
    return turn if doc is None or doc["ledger_seq"] < turn.seq else None


def _give_up(
    settings: Settings,
    market: str,
    state: rollout.Open,
    entries: list[ledger.Entry],
    actor: str,
    reason: str,
    note: dict[str, str],
) -> ledger.Entry:
    """End a rollout that is not launched: everybody gets the stable release; for good."""
    return ledger.append(
        settings,
        market,
        "aborted",
        state.release,
        actor=actor,
        reason=reason,
        payload={"step": rollout.step_name(state), "evidence": "", **note},
        expected=ledger.Expected(ledger.live(entries), state.turn),
    )


def _to_predecessor(
    settings: Settings,
    market: str,
    entries: list[ledger.Entry],
    actor: str,
    reason: str,
    leaving: str | None,
    note: dict[str, str],
) -> ledger.Entry:
    stack = ledger.lives(entries)
    if len(stack) < 2:
        raise RefusedError(f"{market} has no earlier release to go back to")
    if leaving is not None and leaving != stack[-1]:
        raise RefusedError(f"{leaving} is not live in {market}: {stack[-1]} is")
    target = ledger.find(entries, "promoted", stack[-2])
    if target is None:
        raise RefusedError(f"the ledger of {market} has no promotion of {stack[-2]}")
    bundle = ArtifactStore(settings.artifacts, settings.cache).open(target.payload["bundle"])
    if bundle.digest != target.payload["digest"]:
        raise RefusedError(f"{bundle.ref} is not what was promoted as {target.release_id}")
    return ledger.append(
        settings,
        market,
        "rolled_back",
        target.release_id,
        actor=actor,
        reason=reason,
        payload={**target.payload, **note},
        expected=ledger.Expected(stack[-1]),
    )
