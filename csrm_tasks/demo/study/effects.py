"""What the study says of a step: its effect, two intervals, and a verdict by a rule set beforehand.

An effect is the difference in micro-F1 between an arm and its control, paired by query (A45). Its
first interval resamples the queries of all seeds together: what these very models would differ by
on other queries. Its second is Student's t over the seeds' own effects: what models trained again,
in another market, would differ by. The verdict needs both, as a *gain*
(:mod:`csrm_tasks.demo.study.verdict`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from csrm_tasks.demo.study.verdict import verdict
from csrm_tasks.evaluation.metrics import Floats, confusion_by_query, micro_f1
from csrm_tasks.evaluation.paired import Interval, difference, resample

GRADES = 3
CONFIDENT, POWER = 1.959964, 0.841621  # normal quantiles of a 95 % interval and of 80 % power


@dataclass(frozen=True)
class Effect:
    """One comparison over all seeds; shares, not points."""

    arm: str
    control: str
    by_query: Interval
    by_seed: Interval
    seeds: tuple[Interval, ...]  # of each seed, by query
    verdict: str


def compare(
    arm: str, control: str, arms: Sequence[pl.DataFrame], controls: Sequence[pl.DataFrame]
) -> Effect:
    """Compare answers (query_id, pair_id, grade, said) seed by seed; the lists are aligned."""
    one, other = ([_counts(table) for table in tables] for tables in (arms, controls))
    own = tuple(
        difference(a, b, micro_f1, resample(len(a))) for a, b in zip(one, other, strict=True)
    )
    pooled_one, pooled_other = np.concatenate(one), np.concatenate(other)
    pooled = difference(pooled_one, pooled_other, micro_f1, resample(len(pooled_one)))
    spread = over_seeds([x.value for x in own])
    return Effect(arm, control, pooled, spread, own, verdict("gain", pooled, spread))


def _counts(answers: pl.DataFrame) -> Floats:
    """Return (Q, 3, 3) confusion counts, queries in the order of their identifiers."""
    table = answers.sort("query_id", "pair_id")
    query = table["query_id"].rank("dense").to_numpy().astype(np.int64) - 1
    grade, said = (table[c].to_numpy().astype(np.int64) for c in ("grade", "said"))
    return confusion_by_query(grade, said, query, int(query.max()) + 1, GRADES)


def over_seeds(values: Sequence[float]) -> Interval:
    """Return the mean of independent values with its 95 % interval (Student's t).

    A single value has no interval: NaN.
    """
    from scipy.stats import t

    found = np.asarray(values, np.float64)
    mean, n = float(found.mean()), len(found)
    if n < 2:
        return Interval(mean, float("nan"), float("nan"))
    half = float(t.ppf(0.975, n - 1)) * float(found.std(ddof=1)) / n**0.5
    return Interval(mean, mean - half, mean + half)


def queries_needed(effect: Effect, queries: int, points: float = 0.01) -> int:
    """Return how many gold queries show an effect of ``points`` with 80 % power.

    From the width of the interval by query that ``queries`` gave; the noise of training is not in.
    """
    error = (effect.by_query.hi - effect.by_query.lo) / (2 * CONFIDENT)
    return int(np.ceil(queries * (error * (CONFIDENT + POWER) / points) ** 2))
