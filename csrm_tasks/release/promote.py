"""Promotion and rollback: guard → ledger → aliases → routing, each step safe to repeat.

The ledger row is the one deciding write, and it is conditional on which release is live. What
follows it are views of the ledger, so whoever is killed after any write simply runs again: the row
is found, the views are brought up to date, and nothing happens twice.
"""

from __future__ import annotations

import logging
from typing import Any

from csrm_tasks.artifacts import Artifact, ArtifactStore
from csrm_tasks.errors import RefusedError
from csrm_tasks.markets import MarketConfig
from csrm_tasks.release import ledger, registry, routing, verdicts
from csrm_tasks.release.bundle import release_id
from csrm_tasks.settings import Settings

log = logging.getLogger("csrm")


def promote(
    settings: Settings, config: MarketConfig, bundle: Artifact, gate: Artifact, api: Any
) -> ledger.Entry:
    """Make the bundle's release live, once; raises :class:`RefusedError` naming the guard.

    A release that the ledger has promoted already is not promoted again; only views are repaired.
    """
    release = release_id(bundle)
    entries = ledger.verified(settings, config.market)
    row = ledger.find(entries, "promoted", release)
    if row is None:
        verdict = guard(config, bundle, gate, entries)
        row = ledger.append(
            settings,
            config.market,
            "promoted",
            release,
            actor="csrm promote",
            reason="; ".join(verdict["reasons"]),
            payload={
                "bundle": bundle.ref,
                "digest": bundle.digest,
                "embeddings": bundle.inputs["embeddings"],
                "verdict": verdict["digest"],
            },
            expected=ledger.Expected(verdict["champion"]),
        )
    else:
        log.info("promote: %s was promoted by row %d already", release, row.seq)
    refresh_views(settings, config, api)
    return row


def guard(
    config: MarketConfig, bundle: Artifact, gate: Artifact, entries: list[ledger.Entry]
) -> dict[str, Any]:
    """Return the verdict if everything that promotion needs is there; reads it all anew."""
    release = release_id(bundle)
    if config.gate is None:
        raise RefusedError(f"market {config.market} has no gate policy: nothing is promoted")
    verdict = verdicts.read(gate)
    if verdict["bundle_digest"] != bundle.digest:
        raise RefusedError(f"{gate.ref} judged another bundle than {bundle.ref}")
    if verdict["outcome"] != "PASS":
        reasons = "; ".join(verdict["reasons"])
        raise RefusedError(f"the gate said {verdict['outcome']} of {release}: {reasons}")
    seal = verdict["digest"]
    if ledger.find(entries, "registered", release, verdict=seal, digest=bundle.digest) is None:
        raise RefusedError(f"{release} is not registered with this verdict; run the register step")
    manual = config.release.approval == "manual"
    if manual and ledger.find(entries, "approved", release, verdict=seal) is None:
        raise RefusedError(
            f"{release} waits for approval: csrm release approve {config.market} {release}"
        )
    return verdict


def refresh_views(settings: Settings, config: MarketConfig, api: Any) -> list[str]:
    """Bring MLflow aliases and the routing document up to the ledger; returns alias repairs."""
    entries = ledger.verified(settings, config.market)
    repairs = registry.reconcile(api, config.model_name, entries)
    routing.publish(settings, config.market)
    return repairs


def roll_back(
    settings: Settings,
    config: MarketConfig,
    api: Any,
    *,
    actor: str,
    reason: str,
    leaving: str | None = None,
) -> ledger.Entry:
    """Go back to the release before the live one; no training, no evaluation.

    ``leaving`` names the release to leave (default: the live one). A rollback that was interrupted
    after its ledger row is finished, not followed by a second one. Raises :class:`RefusedError`
    when there is no earlier release or its bundle does not verify.
    """
    entries = ledger.verified(settings, config.market)
    row = _unfinished(settings, config.market, entries, leaving)
    if row is None:
        row = _append_rollback(settings, config.market, entries, actor, reason, leaving)
    refresh_views(settings, config, api)
    return row


def _unfinished(
    settings: Settings, market: str, entries: list[ledger.Entry], leaving: str | None
) -> ledger.Entry | None:
    move = ledger.last_move(entries)
    if move is None or move.action != "rolled_back":
        return None
    if leaving is not None:
        return move if move.previous == leaving else None
    doc = routing.read(settings, market)
    return move if doc is None or doc["ledger_seq"] < move.seq else None


def _append_rollback(
    settings: Settings,
    market: str,
    entries: list[ledger.Entry],
    actor: str,
    reason: str,
    leaving: str | None,
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
        payload=target.payload,
        expected=ledger.Expected(stack[-1]),
    )
