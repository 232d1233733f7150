"""Promotion: guard → ledger → aliases → routing, each step safe to repeat.

The ledger row is the one deciding write, and it is conditional on which release is live. What
follows it are views of the ledger, so whoever is killed after any write simply runs again: the row
is found, the views are brought up to date, and nothing happens twice.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from csrm_tasks.artifacts import Artifact
from csrm_tasks.errors import RefusedError
from csrm_tasks.markets import MarketConfig
from csrm_tasks.release import ledger, registry, rollout, routing, verdicts
from csrm_tasks.release.bundle import release_id
from csrm_tasks.settings import Settings

log = logging.getLogger("csrm")
HAND = "champion alias in MLflow"


def promote(
    settings: Settings,
    config: MarketConfig,
    bundle: Artifact,
    gate: Artifact,
    api: Any,
    *,
    actor: str = "csrm promote",
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
            actor=actor,
            reason="; ".join(verdict["reasons"]),
            payload=vouched(bundle, verdict),
            expected=ledger.Expected(verdict["champion"], _last_step(config, release, entries)),
        )
    else:
        log.info("promote: %s was promoted by row %d already", release, row.seq)
    refresh_views(settings, config, api)
    return row


def vouched(bundle: Artifact, verdict: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a ledger row says of a release that may reach shoppers, and of who vouched."""
    return {
        "bundle": bundle.ref,
        "digest": bundle.digest,
        "embeddings": bundle.inputs["embeddings"],
        "verdict": verdict["digest"],
    }


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


def refresh_views(
    settings: Settings,
    config: MarketConfig,
    api: Any,
    why: str = "the ledger decides what is live",
) -> list[str]:
    """Bring MLflow aliases and the routing document up to the ledger; returns alias repairs.

    A champion alias that somebody moved by hand is put back, and the ledger says so and ``why``.
    """
    seen = registry.look(api, config.model_name)  # before the ledger: a promoter writes there first
    entries = ledger.verified(settings, config.market)
    versions = registry.versions(api, config.model_name) if entries else {}
    moved = registry.moved_by_hand(seen, versions, entries)
    if moved is not None:
        _record(settings, config, ledger.live(entries), moved, why)
    repairs = registry.reconcile(api, config.model_name, entries)
    routing.publish(settings, config.market)
    return repairs


def _record(
    settings: Settings, config: MarketConfig, live: str | None, moved: registry.Moved, why: str
) -> None:
    """Write down that a hand moved the champion alias and that it is put back."""
    row = ledger.append(
        settings,
        config.market,
        "reverted",
        moved.release or str(live),
        actor=HAND,
        reason=f"moved by hand to version {moved.version} and put back to {live}: {why}",
        payload={"version": str(moved.version), "after": moved.after},
    )
    log.warning("%s: %s", row.actor, row.reason)
