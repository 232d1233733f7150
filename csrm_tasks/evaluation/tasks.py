"""Figures of the query-category and query-item tasks: F1 of the positive class by task (A42).

A model says yes where p(yes) is at least the threshold that was chosen on one half of its dev
(A40). Intervals are bootstrap intervals by query (A45).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from csrm_tasks.evaluation.metrics import Floats, confusion_by_query, positive_f1, ratio
from csrm_tasks.evaluation.paired import interval, resample
from csrm_tasks.records import Schema

Json = dict[str, Any]
FILE = "tasks.parquet"
SAID: Schema = {  # what each model says of the gold pairs of each task
    "source": pl.String,  # reference of the model that was scored
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


def summarise_tasks(said: pl.DataFrame, names: Mapping[str, str]) -> Json:
    """Return by task, and of each model in it, its figures on gold and by language.

    ``said``: SAID; ``names``: source → name. A model's ``mean_f1`` is over its tasks.
    """
    tasks: Json = {}
    means: dict[str, Json] = {name: {} for name in names.values()}
    for (task,), own in said.group_by("task", maintain_order=True):
        models = []
        for source, name in names.items():
            answers = own.filter(source=source)
            if answers.is_empty():  # it does not know the task
                continue
            found = figures(answers)
            means[name][str(task)] = found
            models.append(
                {"name": name, "source": source} | found | {"languages": by_language(answers)}
            )
        tasks[str(task)] = models
    return {
        "by_task": tasks,
        "mean_f1": {name: mean_f1(found) for name, found in means.items()},
    }
