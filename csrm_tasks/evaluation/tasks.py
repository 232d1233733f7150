"""Figures of the query-category and query-item tasks: F1 of the positive class by task (A42).

A model says yes where p(yes) is at least the threshold that was chosen on one half of its dev
(A40). Intervals are bootstrap intervals by query (A45).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from csrm_tasks.artifacts import json_digest
from csrm_tasks.evaluation.metrics import Floats, confusion_by_query, positive_f1, ratio
from csrm_tasks.evaluation.paired import interval, resample
from csrm_tasks.records import Schema, read_table

Json = dict[str, Any]
FILE = "tasks.parquet"
SAID: Schema = {  # what each model says of the gold pairs of each task
    "model": pl.String,  # candidate | champion
    "task": pl.String,
    "pair_id": pl.String,
    "query_id": pl.String,
    "locale": pl.String,
    "grade": pl.Int8,  # 1 yes, 0 no
    "p": pl.Float32,  # of yes
    "said": pl.Int8,  # at the model's own threshold
}


@dataclass(frozen=True)
class TaskCounts:
    """Confusions of one model in one task, by query, truth in rows."""

    queries: tuple[str, ...]
    counts: Floats  # (Q, 2, 2)


def counts_of(said: pl.DataFrame) -> TaskCounts:
    """Count ``said`` (query_id, grade, said) by query, queries sorted."""
    ids = said["query_id"].unique().sort()
    at = (said["query_id"].rank("dense").cast(pl.Int64) - 1).to_numpy()
    truth, answer = (said[c].cast(pl.Int64).to_numpy() for c in ("grade", "said"))
    return TaskCounts(tuple(ids), confusion_by_query(truth, answer, at, len(ids), 2))


def figures(said: pl.DataFrame) -> Json:
    """Return pairs, queries, confusion, F1 with its interval, precision and recall of yes."""
    counts = counts_of(said).counts
    whole = counts.sum(0)
    hits, claimed, there = whole[1, 1], whole[:, 1].sum(), whole[1].sum()
    return {
        "pairs": said.height,
        "queries": len(counts),
        "confusion": whole.astype(int).tolist(),
        "f1": interval(counts, positive_f1, resample(len(counts))).as_json(),
        "precision": _number(ratio(hits, claimed)),
        "recall": _number(ratio(hits, there)),
    }


def _number(value: Floats) -> float | None:
    return float(value) if np.isfinite(value) else None


def by_language(said: pl.DataFrame) -> dict[str, Json]:
    """Return :func:`figures` by locale, where there is more than one."""
    locales = said["locale"].unique().sort().to_list()
    if len(locales) < 2:
        return {}
    return {locale: figures(said.filter(locale=locale)) for locale in locales}


def mean_f1(by_task: Mapping[str, Json]) -> float | None:
    """Return the mean of the tasks' F1, paper 2's final figure; None where one is undefined."""
    values = [one["f1"]["value"] for one in by_task.values()]
    if not values or any(v is None for v in values):
        return None
    return float(np.mean(values))


def summarise_tasks(said: pl.DataFrame, tasks: Sequence[str]) -> Json:
    """Return by task, and of each model that has learnt it, its figures on gold, by language, too.

    ``said``: SAID. ``mean_f1`` is of the models that have learnt all ``tasks``; the ``digest`` of a
    task's gold says which pairs and labels a figure was measured on (A10).
    """
    by_task: dict[str, Json] = {}
    for task in tasks:
        own = said.filter(task=task)
        gold = own.select("pair_id", "grade").unique().sort("pair_id")
        models = {
            str(model): figures(answers) | {"languages": by_language(answers)}
            for (model,), answers in own.group_by("model", maintain_order=True)
        }
        by_task[task] = {"models": models, "digest": json_digest(gold.rows())}
    names = said["model"].unique(maintain_order=True)
    means = {
        name: mean_f1({t: one["models"][name] for t, one in by_task.items()})
        for name in names
        if all(name in one["models"] for one in by_task.values())
    }
    return {"by_task": by_task, "mean_f1": means}


def read_counts(folder: Path, model: str, tasks: Sequence[str]) -> dict[str, TaskCounts]:
    """Return the confusions of one model in each of ``tasks``: of none where it has learnt none."""
    said = read_table(folder / FILE, SAID).filter(model=model)
    return {task: counts_of(said.filter(task=task)) for task in tasks}
