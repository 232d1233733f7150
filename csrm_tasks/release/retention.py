"""Which artifacts may be thrown away, and throwing them away.

Kept: what is recent; what a ledger row within the rollback window names; the live release, its
predecessors that must stay loadable, and what is being rolled out or waits, whatever their age;
of a market without relevance the LLM that passed last, with its verdict; the refreshed vectors of
a catalogue that servers may take up, and those before them.
Each of these with what it was made of, one level deep, what those name in their facts, and what a
retraining goes on from (:data:`csrm_tasks.release.bundle.manifest.BEHIND`): that is what loading,
scoring, comparing and succeeding a release takes. How its parts were trained is further back, and
goes. Copies inside MLflow are not touched. Collect while no DAG runs that reuses old artifacts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from csrm_tasks.artifacts import MANIFEST, ArtifactStore
from csrm_tasks.blobs import open_blobs
from csrm_tasks.markets import MarketConfig
from csrm_tasks.release import ledger, rollout, routing, snapshots
from csrm_tasks.release.bundle.manifest import BEHIND
from csrm_tasks.sections import Retention
from csrm_tasks.settings import Settings

Manifests = Mapping[str, Mapping[str, Any]]  # reference → manifest


@dataclass(frozen=True)
class Plan:
    """What would be deleted, and what stays and why."""

    delete: Mapping[str, int]  # reference → bytes
    keep: Mapping[str, str]  # reference → reason


def plan(settings: Settings, config: MarketConfig, now: datetime) -> Plan:
    """Decide over every published artifact of a market."""
    market = config.market
    store = ArtifactStore(settings.artifacts, settings.cache)
    keys = open_blobs(settings.artifacts).keys(market)
    refs = [k.removesuffix(f"/{MANIFEST}") for k in keys if k.endswith(f"/{MANIFEST}")]
    manifests = {ref: m for ref in refs if (m := store.manifest(ref)) is not None}
    entries = ledger.verified(settings, market)
    next_up = rollout.next_candidate(entries, config.release.approval)
    keep = needed(manifests, entries, config.retention, now, next_up)
    for passed in _last_passed(manifests):
        keep.setdefault(passed, "the tasks' last PASS")
    for name, vectors in snapshots.read(settings, market).releases.items():
        for ref in (vectors.ref, vectors.previous):
            if ref in manifests:
                keep.setdefault(ref, f"{name}: its catalogue's vectors")
    gone = {r: sum(f["size"] for f in m["files"]) for r, m in manifests.items() if r not in keep}
    return Plan(gone, keep)


def needed(
    manifests: Manifests, entries: Sequence[ledger.Entry], policy: Retention, now: datetime,
    next_up: ledger.Entry | None = None,
) -> dict[str, str]:  # fmt: skip
    """Return the references that must stay, each with the first reason.

    ``next_up``: the registration of the release that waits, if one does.
    """
    keep: dict[str, str] = {}
    for row, why in _rows(entries, policy, now, next_up):
        for ref in _closure(manifests, row.payload):
            keep.setdefault(ref, why)
    horizon = (now - timedelta(days=policy.recent_days)).timestamp()
    for ref, manifest in manifests.items():
        if manifest["created_at"] >= horizon:
            keep.setdefault(ref, "recent")
    return keep


def _last_passed(manifests: Manifests) -> set[str]:
    """Return what the last PASS of the gate of the tasks alone is about: no ledger row names it.

    A market without relevance releases nothing, and that LLM is what it lives by (docs/TASKS.md).
    """
    gates = ((ref, m) for ref, m in manifests.items() if ref.split("/")[1] == "gate_tasks")
    passed = {ref: m for ref, m in gates if m["facts"]["verdict"] == "PASS"}
    last = max(passed, key=lambda ref: passed[ref]["created_at"], default=None)
    if last is None:
        return set()
    return _closure(manifests, {"gate": last, "llm": passed[last]["facts"]["llm"]})


def _rows(
    entries: Sequence[ledger.Entry], policy: Retention, now: datetime, next_up: ledger.Entry | None
) -> Iterator[tuple[ledger.Entry, str]]:
    """Yield the ledger rows whose artifacts must stay, with the reason."""
    stay = {
        release: "live or before it" for release in ledger.live_stack(entries)[-1 - routing.KEPT :]
    }
    state = rollout.current_rollout(entries)
    if state is not None:
        stay |= dict.fromkeys((state.release, state.control), "being rolled out")
    if next_up is not None:
        stay[next_up.release_id] = "waits"
    horizon = now - timedelta(days=policy.rollback_days)
    for row in entries:
        if row.release_id in stay:
            yield row, f"{row.release_id}: {stay[row.release_id]}"
        elif datetime.fromisoformat(row.at) >= horizon:
            yield row, f"row {row.seq} is within {policy.rollback_days} days"


def _closure(manifests: Manifests, payload: Mapping[str, Any]) -> set[str]:
    """Return what a ledger row names, what that was made of, and what all these name."""
    named = _named(manifests, [payload])
    parts = named | _named(manifests, [manifests[r]["inputs"] for r in named])
    behind = [_behind(manifests, manifests[r]["inputs"]) for r in named]
    return parts | _named(manifests, [*behind, *(manifests[r]["facts"] for r in parts)])


def _behind(manifests: Manifests, inputs: Mapping[str, Any]) -> list[Any]:
    """Return what a retraining takes up of the bundle that was made of ``inputs``."""
    parts = ((name, manifests.get(inputs.get(part, ""))) for name, part in BEHIND.items())
    return [made["inputs"].get(name) for name, made in parts if made is not None]


def _named(manifests: Manifests, documents: Iterable[Any]) -> set[str]:
    return {text for d in documents for text in _strings(d) if text in manifests}


def _strings(document: object) -> Iterator[str]:
    """Yield every string in JSON-like data."""
    if isinstance(document, str):
        yield document
    elif isinstance(document, Mapping):
        for value in document.values():
            yield from _strings(value)
    elif isinstance(document, (list, tuple)):
        for value in document:
            yield from _strings(value)


def prune(settings: Settings, refs: Iterable[str]) -> None:
    """Delete artifacts. The manifest goes first: what is half deleted does not exist any more."""
    blobs = open_blobs(settings.artifacts)
    for ref in refs:
        blobs.delete(f"{ref}/{MANIFEST}")
        blobs.delete_tree(ref)
