"""The way back: no training, no evaluation, one deciding ledger row, safe to repeat.

A rollout that is under way is the newest thing that was done, so it is what a rollback takes back:
its release is given up and the stable one serves everybody. Otherwise the release before the live
one becomes live again; where the live one is named as the one to leave, the release that is being
rolled out against it is given up, too.

Two people who see the same bad release may both take it back: who names no release to leave goes
back from what is live only if the last thing done was not a way back already.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from csrm_tasks.artifacts import ArtifactStore
from csrm_tasks.errors import CsrmError, RefusedError
from csrm_tasks.markets import MarketConfig
from csrm_tasks.release import away, ledger, rollout, routing
from csrm_tasks.release.views import refresh_views
from csrm_tasks.settings import Settings

if TYPE_CHECKING:
    from mlflow import MlflowClient

log = logging.getLogger("csrm")
BACK = ("rolled_back", "aborted")


@away.one_line
def roll_back(
    settings: Settings,
    config: MarketConfig,
    api: MlflowClient,
    *,
    actor: str,
    reason: str,
    leaving: str | None = None,
    run: str = "",
) -> ledger.Entry:
    """Leave the release that is being rolled out, or else the live one, and return the row.

    ``leaving`` names the release to leave. A rollback that was interrupted after its ledger row is
    finished, not followed by a second one; ``run`` names who may ask again (a task's run) and gets
    the row that it made, however often; so does the same ``actor`` with the same ``reason``.
    Raises :class:`RefusedError` when there is no earlier release, when its bundle does not verify,
    or when somebody has just gone back and ``leaving`` is not named.
    """
    entries = routing.ledger_to_add_to(settings, config.market)
    row = (
        _made_by(entries, run)
        or _unfinished(settings, config.market, entries, leaving)
        or _done_already(entries, actor, reason, leaving)
    )
    if row is None:
        note = {"run": run} if run else {}
        state = rollout.current_rollout(entries)
        if state and not state.launched and leaving in (None, state.release):
            row = _give_up(settings, config.market, state, entries, actor, reason, note)
        else:
            row = _to_predecessor(settings, config.market, entries, actor, reason, leaving, note)
    refresh_views(settings, config, api, ledger.including(settings, entries, row))
    return row


def _made_by(entries: list[ledger.Entry], run: str) -> ledger.Entry | None:
    ways_back = (e for e in entries if e.action in BACK)
    return next((e for e in ways_back if run and e.payload.get("run") == run), None)


def _unfinished(
    settings: Settings, market: str, entries: list[ledger.Entry], leaving: str | None
) -> ledger.Entry | None:
    """Return the rollback that is in the ledger but not yet in the routing document."""
    turn = ledger.last_serving_row(entries)
    if turn is None or turn.action not in BACK:
        return None
    if leaving is not None:
        return turn if ledger.left_by(turn) == leaving else None
    return turn if routing.published_row(settings, market) < turn.seq else None


def _done_already(
    entries: list[ledger.Entry], actor: str, reason: str, leaving: str | None
) -> ledger.Entry | None:
    """Return the way back that was the last thing done, if this is the same command once more.

    Whoever else names no release has seen either what was left or what is live now: refused.
    """
    turn = ledger.last_serving_row(entries)
    if leaving is not None or turn is None or turn.action not in BACK:
        return None
    if (turn.actor, turn.reason) == (actor, reason):
        log.info("rollback: %s left %s by row %d already", actor, ledger.left_by(turn), turn.seq)
        return turn
    live = ledger.live(entries)
    raise RefusedError(
        f"nothing was done: {turn.actor} has left {ledger.left_by(turn)} already, row {turn.seq} "
        f"({turn.reason}), and {live} is live; to leave that one too, say --leaving {live}"
    )


def _give_up(
    settings: Settings,
    market: str,
    state: rollout.CurrentRollout,
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
        expected=ledger.Precondition(ledger.live(entries), state.turn),
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
    stack = ledger.live_stack(entries)
    if len(stack) < 2:
        raise RefusedError(f"{market} has no earlier release to go back to")
    if leaving is not None and leaving != stack[-1]:
        raise RefusedError(f"{leaving} is not live in {market}: {stack[-1]} is")
    target = ledger.find(entries, "promoted", stack[-2])
    if target is None:
        raise RefusedError(f"the ledger of {market} has no promotion of {stack[-2]}")
    _verify(settings, target)
    state, turn = rollout.current_rollout(entries), ledger.last_serving_row(entries)
    if state is not None and not state.launched:
        # It was compared with the release that is left, and no row may leave it half served.
        why = f"{stack[-1]}, with which it was compared, is left: {reason}"
        turn = _give_up(settings, market, state, entries, actor, why, {})
    return ledger.append(
        settings,
        market,
        "rolled_back",
        target.release_id,
        actor=actor,
        reason=reason,
        payload={**target.payload, **note},
        # A rollout that began since would be neither given up nor go on
        expected=ledger.Precondition(stack[-1], turn.seq if turn else None),
    )


def _verify(settings: Settings, target: ledger.Entry) -> None:
    """Refuse a release whose bundle is gone or changed; one that nobody can look at now is not held
    back: servers keep the predecessors loaded (docs/SERVING.md).
    """
    try:
        bundle = ArtifactStore(settings.artifacts, settings.cache).open(target.payload["bundle"])
    except CsrmError:
        raise
    except Exception as e:
        who = away.which(e)
        if who is None:
            raise
        log.warning("%s: the bundle of %s is not verified", away.trouble(who, e), target.release_id)
        return
    if bundle.digest != target.payload["digest"]:
        raise RefusedError(f"{bundle.ref} is not what was promoted as {target.release_id}")
