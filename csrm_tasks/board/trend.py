"""Gold figures of the releases of the last weeks, from the evaluations that they were judged by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from csrm_tasks.artifacts import ArtifactStore
from csrm_tasks.board.releases import metrics
from csrm_tasks.release.ledger import Entry, moment

WEEKS = 12
# Figure on gold → what it is of, how the page calls it
FIGURES = {
    "micro_f1": ("llm", "Micro-F1, LLM"),
    "em_f1": ("towers", "EM F1, towers"),
    "defect_f1": ("towers", "Defect F1, towers"),
}


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % interval; None where it is undefined."""

    value: float
    lo: float | None
    hi: float | None


@dataclass(frozen=True)
class Judged:
    """One release on gold."""

    release: str
    at: datetime
    outcome: str
    figures: Mapping[str, Estimate]


def trend(store: ArtifactStore, entries: Sequence[Entry], now: datetime) -> tuple[Judged, ...]:
    """Return what the registered releases of the last :data:`WEEKS` came to, oldest first.

    Those without an evaluation (a cold start) have no gold figures and are left out.
    """
    since = now - timedelta(weeks=WEEKS)
    rows = [e for e in entries if e.action == "registered" and "evaluation" in e.payload]
    return tuple(
        Judged(e.release_id, moment(e.at), e.payload["outcome"], _figures(store, e))
        for e in rows
        if since <= moment(e.at) <= now
    )


def _figures(store: ArtifactStore, row: Entry) -> dict[str, Estimate]:
    """Read the figures of the release's own LLM and towers, known by what was scored."""
    made = store.require(row.payload["bundle"])["inputs"]
    chosen = store.require(made["llm"])["facts"].get("chosen_ref")
    sources = {"llm": {made["llm"], chosen}, "towers": {made["export"]}}
    found: dict[str, Estimate] = {}
    for model in metrics(store, row.payload["evaluation"])["models"]:
        for figure, (kind, _) in FIGURES.items():
            value = model["figures"].get(figure)
            if model["kind"] == kind and model["source"] in sources[kind] and _known(value):
                found[figure] = Estimate(value["value"], value["lo"], value["hi"])
    return found


def _known(value: Mapping[str, Any] | None) -> bool:
    return value is not None and value["value"] is not None
