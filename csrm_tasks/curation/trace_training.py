"""What filters and trainings have done with a row of a snapshot, for :mod:`.trace`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import polars as pl

from csrm_tasks.artifacts import Artifact, ArtifactStore
from csrm_tasks.options import inputs_of
from csrm_tasks.records import DECISIONS, read_table

Weights = dict[str, float]  # of one pair, by filter


def decisions_on(
    store: ArtifactStore, market: str, frozen: Artifact, pair_id: str
) -> Iterator[tuple[Artifact, str, float, str]]:
    """Yield filter, action, weight and reason of each filter of this snapshot, oldest first."""
    for made in made_from(store, market, "filter_noise", frozen):
        found = read_table(made.file("decisions.parquet"), DECISIONS)
        own = found.filter(pl.col("pair_id") == pair_id)
        for action, weight, reason in own.select("action", "weight", "reason").iter_rows():
            yield made, action, weight, reason


def trainings_of(
    store: ArtifactStore, market: str, frozen: Artifact, weights: Weights
) -> Iterator[str]:
    """Yield with which weight each training of the snapshot has learnt a pair."""
    for model in made_from(store, market, "train_llm", frozen):
        filtered = input_of(store, model, "filtered")
        weight = 1.0 if filtered is None else weights.get(filtered, 1.0)
        what = "left out" if weight == 0 else f"learnt with weight {weight:g}"
        yield f"training {model.ref}: {what}"


def input_of(store: ArtifactStore, model: Artifact, name: str) -> str | None:
    """Return an input of a training, or None where an ablation has dropped what it brings (A41)."""
    decided = model.inputs.get("ablation")
    dropped = store.open(decided).facts["dropped"] if decided else ()
    return None if name in inputs_of(dropped) else model.inputs.get(name)


def learnt_translated(
    store: ArtifactStore, models: Iterator[Artifact], made: Artifact, weights: Weights
) -> Iterator[str]:
    """Yield which trainings have learnt a pair by the translations ``made`` (A37)."""
    for model in models:
        if input_of(store, model, "translated") == made.ref:
            kept = weights.get(str(input_of(store, model, "filtered")), 1.0) > 0
            yield f"training {model.ref}: translated pair " + (
                "learnt" if kept else "left out, too"
            )


def found_as(mined: Artifact, row: Mapping[str, Any], verb: str) -> str:
    """Return how a negative was found (kind, channel, rank) and how sure the LLM is (A38).

    ``verb``: what the LLM does of the pair by its probability p0.
    """
    where = "" if row["rank"] is None else f" at rank {row['rank']}, from 0"
    sure = "" if row["p0"] is None else f"; the LLM {verb} by {row['p0']:.3f}"
    return f"{mined.ref}: {row['kind']}, by {row['channel']}{where}{sure}"


def learnt_negatives(
    store: ArtifactStore, market: str, frozen: Artifact, mined: Artifact, as_what: str
) -> Iterator[str]:
    """Yield which trainings have learnt the negatives ``mined``."""
    for model in made_from(store, market, "train_llm", frozen):
        if input_of(store, model, "negatives") == mined.ref:
            yield f"training {model.ref}: learnt as {as_what}"


def made_from(store: ArtifactStore, market: str, step: str, frozen: Artifact) -> Iterator[Artifact]:
    """Yield what a step has made of the snapshot ``frozen``, oldest first."""
    for ref, manifest in store.published(f"{market}/{step}"):
        if manifest["inputs"].get("snapshot") == frozen.ref:
            yield store.open(ref)
