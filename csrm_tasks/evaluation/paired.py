"""Bootstrap over queries: intervals of one model and paired differences of two (A45).

Pairs of one query share its difficulty, so queries are what is resampled. A resample is a vector
of query multiplicities; metrics are functions of summed counts (:mod:`.metrics`), so all resamples
of a model are one matrix product (B, Q) @ (Q, cells). Both models of a comparison see the same
resamples; that is what makes the difference paired.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache

import numpy as np

from csrm_tasks.evaluation.metrics import Floats, Metric

RESAMPLES = 2000


@dataclass(frozen=True)
class Interval:
    """A point estimate with its percentile bootstrap interval; NaN where there is no data."""

    value: float
    lo: float
    hi: float

    def negated(self) -> Interval:
        """Return the interval of the difference the other way round."""
        return Interval(0.0 - self.value, 0.0 - self.hi, 0.0 - self.lo)

    def as_json(self) -> dict[str, float | None]:
        """Return the three numbers; JSON has no NaN, so an undefined one is null."""
        return {k: float(v) if np.isfinite(v) else None for k, v in asdict(self).items()}


@lru_cache(maxsize=4)  # every check of a gate resamples the same queries
def resample(queries: int, resamples: int = RESAMPLES, seed: int = 0) -> Floats:
    """Draw query multiplicities, (resamples, queries), read-only; rows sum to ``queries``.

    The same arguments give the same draws. Memory: 8 bytes × resamples × queries.
    """
    rng = np.random.default_rng(seed)
    drawn = rng.integers(0, max(queries, 1), (resamples, queries))
    cells = drawn + np.arange(resamples)[:, None] * queries
    weights = np.bincount(cells.ravel(), minlength=resamples * queries).astype(np.float64)
    weights.setflags(write=False)
    return weights.reshape(resamples, queries)


def draws_of(
    by_query: Floats, named: Mapping[str, Metric], weights: Floats
) -> dict[str, tuple[float, Floats]]:
    """Return each metric of all queries and of each resample: name → (value, (B,)).

    ``by_query`` (Q, ...) additive counts, summed up once for all metrics; ``weights`` (B, Q).
    """
    shape = by_query.shape[1:]
    cells = by_query.reshape(len(by_query), int(np.prod(shape)))
    whole, drawn = cells.sum(0).reshape(shape), (weights @ cells).reshape(-1, *shape)
    return {name: (float(m(whole)), np.asarray(m(drawn))) for name, m in named.items()}


def distribution(by_query: Floats, metric: Metric, weights: Floats) -> tuple[float, Floats]:
    """Return one metric as :func:`draws_of` does."""
    return draws_of(by_query, {"": metric}, weights)[""]


def percentile(value: float, draws: Floats, alpha: float = 0.05) -> Interval:
    """Two-sided percentile interval; a resample without a defined metric makes no claim."""
    known = draws[np.isfinite(draws)]
    if not np.isfinite(value) or len(known) < len(draws) / 2:
        return Interval(float("nan"), float("nan"), float("nan"))
    lo, hi = np.quantile(known, [alpha / 2, 1 - alpha / 2])
    return Interval(value, float(lo), float(hi))


def interval(by_query: Floats, metric: Metric, weights: Floats, alpha: float = 0.05) -> Interval:
    """Return the metric of one model with its interval."""
    return percentile(*distribution(by_query, metric, weights), alpha)


def paired_draws(
    one: Floats, other: Floats, metric: Metric, weights: Floats
) -> tuple[float, Floats]:
    """Return metric(one) - metric(other) of all queries, and of each resample; (value, (B,))."""
    a, a_draws = distribution(one, metric, weights)
    b, b_draws = distribution(other, metric, weights)
    return a - b, a_draws - b_draws


def difference(
    one: Floats, other: Floats, metric: Metric, weights: Floats, alpha: float = 0.05
) -> Interval:
    """Return metric(one) - metric(other) with its paired interval; row i is the same query."""
    return percentile(*paired_draws(one, other, metric, weights), alpha)


def two_sided(draws: Floats) -> float:
    """Return the bootstrap p-value of "no difference": how much of the draws lies beyond zero.

    1 where nothing is known. It cannot be below 1 / (resamples + 1), times two.
    """
    known = draws[np.isfinite(draws)]
    beyond = min(int((known <= 0).sum()), int((known >= 0).sum()))
    return min(1.0, 2 * (1 + beyond) / (1 + len(known)))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return Holm's (1979) adjusted p-values: rejecting those <= alpha errs at most alpha, in all.

    The k-th smallest of m is multiplied by m - k + 1 and is not below the one before it.
    """
    order = np.argsort(p_values)
    factors = len(p_values) - np.arange(len(p_values))
    steps = np.minimum(np.maximum.accumulate(np.asarray(p_values)[order] * factors), 1.0)
    adjusted = np.empty(len(p_values))
    adjusted[order] = steps
    return [float(p) for p in adjusted]


def verdict(diff: Interval) -> str:
    """Say what the interval decides: better, worse, or not decided (also when undefined)."""
    if diff.lo > 0:
        return "better"
    return "worse" if diff.hi < 0 else "not decided"
