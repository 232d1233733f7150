"""What the study of curation says of each mechanism: measures, two intervals, verdicts by rule.

A claim compares an arm with its control on the same questions, or holds a share against a bar. Its
first interval resamples the queries of all seeds together (A45), its second is Student's t over the
seeds' own values, as in :mod:`csrm_tasks.demo.study.effects`. The verdict needs both, by a rule
that was fixed before a reported seed was trained (:mod:`csrm_tasks.demo.study.verdict`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isnan, nan

import numpy as np
import polars as pl

from csrm_tasks.demo.study.effects import over_seeds
from csrm_tasks.demo.study.verdict import Rule, verdict
from csrm_tasks.evaluation.metrics import Floats, confusion_by_query, positive_f1, ratio
from csrm_tasks.evaluation.paired import Interval, difference, interval, resample

BAR = 0.9  # of the filter's precision
TASKS = ("qc", "qi")


@dataclass(frozen=True)
class Measure:
    """A figure of answers (task, query_id, pair_id, grade, hard, said)."""

    name: str
    counts: Callable[[pl.DataFrame], Floats]  # (Q, ...), additive
    figure: Callable[[Floats], Floats]  # of such sums


@dataclass(frozen=True)
class Effect:
    """One claim over all seeds; shares, not points."""

    by_query: Interval
    by_seed: Interval
    seeds: tuple[float, ...]  # no number (nan) where a seed has no figure
    verdict: str


def confusions(answers: pl.DataFrame) -> Floats:
    """Return (Q, 2, 2, 2): of each query and task of :data:`TASKS`, truth by answer."""
    table = answers.sort("query_id", "task", "pair_id")
    query = table["query_id"].rank("dense").to_numpy().astype(np.int64) - 1
    truth, said = (table[c].cast(pl.Int64).to_numpy() for c in ("grade", "said"))
    found = []
    for task in TASKS:
        own = (table["task"] == task).to_numpy()
        found.append(confusion_by_query(truth[own], said[own], query[own], int(query.max()) + 1, 2))
    return np.stack(found, 1)


def mean_f1(counts: Floats) -> Floats:
    """Return the mean of the tasks' F1 of yes (paper 2's final figure) of (..., 2, 2, 2)."""
    found: Floats = positive_f1(counts).mean(-1)
    return found


def f1_of(task: str) -> Measure:
    """Return the measure of one task's F1 of yes."""
    at = TASKS.index(task)
    return Measure(f"F1 {task}", confusions, lambda counts: positive_f1(counts)[..., at])


def hard_ones(answers: pl.DataFrame) -> Floats:
    """Return (Q, 2, 2) of qi alone: right products and wrong ones that are near."""
    chosen = answers.filter((pl.col("task") == "qi") & (pl.col("hard") | (pl.col("grade") == 1)))
    return confusions(chosen)[:, TASKS.index("qi")]


def precision(counts: Floats) -> Floats:
    """Return the share of yes that is right, of (..., 2, 2)."""
    return ratio(counts[..., 1, 1], counts[..., :, 1].sum(-1))


F1 = Measure("mean F1", confusions, mean_f1)
HARD_PRECISION = Measure("precision on hard ones", hard_ones, precision)


def compare(
    measure: Measure, rule: Rule, arms: Sequence[pl.DataFrame], controls: Sequence[pl.DataFrame]
) -> Effect:
    """Compare answers seed by seed; the lists are aligned, and so are each pair's questions."""
    one, other = ([measure.counts(table) for table in tables] for tables in (arms, controls))
    own = [
        float(measure.figure(a.sum(0)) - measure.figure(b.sum(0)))
        for a, b in zip(one, other, strict=True)
    ]
    a, b = np.concatenate(one), np.concatenate(other)
    pooled = difference(a, b, measure.figure, resample(len(a)))
    return _judged(pooled, own, rule)


def share_right(flagged: Sequence[pl.DataFrame]) -> Effect:
    """Hold the share of ``wrong`` among flagged labels (query_id, wrong) of each seed to the bar.

    A seed without a flagged label has no share: it counts for nothing, in its own place.
    """
    counts = [_wrong_by_query(table) for table in flagged]
    pooled = np.concatenate(counts)
    own = [float(_share(c.sum(0))) if len(c) else nan for c in counts]
    return _judged(interval(pooled, _share, resample(len(pooled))), own, "bar")


def _wrong_by_query(flagged: pl.DataFrame) -> Floats:
    found = flagged.group_by("query_id").agg(pl.col("wrong").sum(), n=pl.len()).sort("query_id")
    return found.select("wrong", "n").to_numpy().astype(np.float64)  # (Q, 2)


def _share(counts: Floats) -> Floats:
    return ratio(counts[..., 0], counts[..., 1])


def _judged(pooled: Interval, own: Sequence[float], rule: Rule) -> Effect:
    spread = over_seeds([x for x in own if not isnan(x)])
    return Effect(pooled, spread, tuple(own), verdict(rule, pooled, spread, bar=BAR))
