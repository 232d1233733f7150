"""Promotion: guard → ledger → routing → aliases, each step safe to repeat.

The ledger row is the one deciding write, and it is conditional on which release is live. What
follows it are views of the ledger (:mod:`.views`), so whoever is killed after any write simply runs
again: the row is found, the views are brought up to date, and nothing happens twice.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from csrm_tasks.artifacts import Artifact, ArtifactStore
from csrm_tasks.errors import RefusedError
from csrm_tasks.markets import MarketConfig
from csrm_tasks.release import away, ledger, rollout, routing
from csrm_tasks.release.bundle.manifest import release_id
from csrm_tasks.release.guard import guard, refuse_taken_back, still_approved, vouched
from csrm_tasks.release.no_steps import end_without_steps
from csrm_tasks.release.views import refresh_views
from csrm_tasks.settings import Settings

if TYPE_CHECKING:
    from mlflow import MlflowClient

log = logging.getLogger("csrm")


@away.one_line
def promote(
    settings: Settings,
    config: MarketConfig,
    bundle: Artifact,
    gate: Artifact,
    api: MlflowClient,
    *,
    actor: str = "csrm promote",
) -> ledger.Entry:
    """Make the bundle's release live, once; raises :class:`RefusedError` naming the guard.

    A release that is live already is not promoted again; only views are repaired. One that was live
    and is no longer is refused: nothing that was rolled back or replaced goes live by a rerun.
    """
    release = release_id(bundle)
    end_without_steps(settings, config, api, keep=release)
    entries = routing.ledger_to_add_to(settings, config.market)
    row = _live_by(config, entries, release)
    if row is None:
        verdict = guard(settings, config, bundle, gate, entries)
        row = ledger.append(
            settings,
            config.market,
            "promoted",
            release,
            actor=actor,
            reason="; ".join(verdict["reasons"]),
            payload=vouched(settings, bundle, verdict),
            expected=ledger.Precondition(verdict["champion"], _last_step(config, release, entries)),
            check=still_approved(config, release, verdict),
        )
    else:
        log.info("promote: %s was promoted by row %d already", release, row.seq)
    refresh_views(settings, config, api, ledger.including(settings, entries, row))
    return row


@away.one_line
def restore(
    settings: Settings,
    config: MarketConfig,
    release: str,
    api: MlflowClient,
    *,
    actor: str,
    reason: str,
) -> ledger.Entry:
    """Make a release that was rolled back live again, at once, because a person says so.

    It must stand what any promotion must, but for steps: so its verdict must have been given
    against what is live now. One that was given up within its rollout stays back.
    """
    entries = routing.ledger_to_add_to(settings, config.market)
    rows = [e for e in entries if (e.action, e.release_id) == ("promoted", release)]
    if release != ledger.live(entries):
        row = _append_again(settings, config, release, entries, actor, reason)
    elif "again" in rows[-1].payload:
        row = rows[-1]
    else:
        raise RefusedError(f"{release} is live in {config.market} since row {rows[-1].seq}")
    refresh_views(settings, config, api, ledger.including(settings, entries, row))
    return row


def _append_again(
    settings: Settings, config: MarketConfig, release: str, entries: list[ledger.Entry],
    actor: str, reason: str,
) -> ledger.Entry:  # fmt: skip
    gone, state = ledger.taken_back(entries, release), rollout.current_rollout(entries)
    if gone is None:
        raise RefusedError(f"{release} was not rolled back in {config.market}: promote it")
    if gone.action == "aborted":
        refuse_taken_back(config, entries, release)
    if state is not None and not state.launched:
        raise RefusedError(f"{release} has to wait: {state.release} is being rolled out")
    made, turn = ledger.registration(entries, release), ledger.last_serving_row(entries)
    store = ArtifactStore(settings.artifacts, settings.cache)
    bundle, gate = store.open(made["bundle"]), store.open(made["gate"])
    verdict = guard(settings, config, bundle, gate, entries)
    return ledger.append(
        settings,
        config.market,
        "promoted",
        release,
        actor=actor,
        reason=reason,
        payload=vouched(settings, bundle, verdict) | {"again": gone.hash},
        expected=ledger.Precondition(verdict["champion"], turn.seq if turn else None),
        check=still_approved(config, release, verdict),
    )


def _live_by(
    config: MarketConfig, entries: Sequence[ledger.Entry], release: str
) -> ledger.Entry | None:
    """Return the row by which the release is live; refuse one that was, and is no longer."""
    rows = [e for e in entries if (e.action, e.release_id) == ("promoted", release)]
    live, move = ledger.live(entries), ledger.last_live_row(entries)
    if rows and release == live:
        return rows[-1]
    refuse_taken_back(config, entries, release)
    if rows and move is not None:
        raise RefusedError(
            f"{release} was promoted by row {rows[-1].seq}, but since then {live} went live by row "
            f"{move.seq}; csrm release rollback --market {config.market} --leaving {live} "
            "--actor NAME --reason WHY goes back"
        )
    return None


def _last_step(config: MarketConfig, release: str, entries: Sequence[ledger.Entry]) -> int | None:
    """Return the row by which a release that must go by steps has passed the last one."""
    if not rollout.by_steps(config.rollout, entries):
        return None
    passed = rollout.completed(entries, release)
    if passed is None:
        raise RefusedError(
            f"{config.market} rolls out by steps and {release} has not passed the last one; "
            f"see csrm rollout status --market {config.market}"
        )
    return passed.seq
