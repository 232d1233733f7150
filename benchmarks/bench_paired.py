"""A paired interval of macro-F1 over judged queries: 2,000 resamples, one thread.

The peers draw queries with replacement, sum their confusion matrices and take the difference:
in a loop over resamples, and by ``scipy.stats.bootstrap``. Both bounds must agree with ours to a
hundredth; draws differ. Second table: the character n-gram baseline from tables to scores.
"""

from __future__ import annotations

import numpy as np
import polars as pl
from scipy.stats import bootstrap

from benchmarks.harness import alternate, closing_line, ratio, table, timing_rows
from csrm_tasks.evaluation import paired
from csrm_tasks.evaluation.baselines import baseline_scores
from csrm_tasks.evaluation.metrics import Floats, macro_f1
from csrm_tasks.evaluation.paired import Interval

LOCALE = "zh-TW"


def answered(queries: int, right: float, seed: int) -> Floats:
    """Return confusion matrices (queries, 3, 3) of a model that is right that often, 12 pairs."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 3, (queries, 12))
    said = np.where(rng.random(truth.shape) < right, truth, rng.integers(0, 3, truth.shape))
    counts: Floats = np.zeros((queries, 3, 3))
    np.add.at(counts, (np.arange(queries)[:, None], truth, said), 1)
    return counts


def by_loop(one: Floats, other: Floats, resamples: int) -> Interval:
    """Draw, sum and compare, resample by resample."""
    rng = np.random.default_rng(1)
    draws = []
    for _ in range(resamples):
        rows = rng.integers(0, len(one), len(one))
        draws.append(float(macro_f1(one[rows].sum(0)) - macro_f1(other[rows].sum(0))))
    lo, hi = np.quantile(draws, [0.025, 0.975])
    return Interval(float(macro_f1(one.sum(0)) - macro_f1(other.sum(0))), float(lo), float(hi))


def by_scipy(one: Floats, other: Floats, resamples: int) -> Interval:
    """``scipy.stats.bootstrap`` of the queries' positions, percentile method."""

    def difference(rows: np.ndarray, axis: int = -1) -> np.ndarray:
        at = np.moveaxis(rows, axis, 0)
        return np.asarray(macro_f1(one[at].sum(0)) - macro_f1(other[at].sum(0)))

    done = bootstrap(
        (np.arange(len(one)),), difference, n_resamples=resamples, batch=100, vectorized=True,
        method="percentile", rng=np.random.default_rng(2),
    )  # fmt: skip
    lo, hi = done.confidence_interval
    return Interval(float(difference(np.arange(len(one)))), float(lo), float(hi))


def market(pairs: int) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """Return pairs, queries and products of random Chinese words."""
    rng = np.random.default_rng(0)
    words = ["".join(map(chr, rng.integers(0x4E00, 0x4E00 + 600, 2))) for _ in range(700)]
    products = pl.DataFrame({
        "product_id": [f"p{i}" for i in range(4000)], "locale": LOCALE,
        "title": [" ".join(rng.choice(words, 7)) for _ in range(4000)],
        "brand": "", "category": [f"c{i % 50}" for i in range(4000)], "description": "",
    })  # fmt: skip
    queries = pl.DataFrame({
        "query_id": [f"q{i}" for i in range(2000)],
        "norm": [" ".join(rng.choice(words, 2)) for _ in range(2000)],
    })  # fmt: skip
    judged = pl.DataFrame({
        "pair_id": [str(i) for i in range(pairs)], "locale": LOCALE,
        "query_id": [f"q{i}" for i in rng.integers(0, 2000, pairs)],
        "product_id": [f"p{i}" for i in rng.integers(0, 4000, pairs)],
        "grade": rng.integers(0, 3, pairs).astype(np.int8),
        "split": ["train" if i < 0.9 * pairs else "dev" for i in range(pairs)],
    })  # fmt: skip
    return judged, queries, products


def main(quick: bool) -> None:
    """Print the tables and the figures ratio_loop, ratio_scipy and baseline_s."""
    queries, resamples = 300, paired.RESAMPLES
    one, other = answered(queries, 0.8, 3), answered(queries, 0.75, 4)

    def ours() -> Interval:
        paired.resample.cache_clear()  # the draws are part of the work
        return paired.difference(one, other, macro_f1, paired.resample(queries, resamples))

    contestants = {
        "csrm": ours,
        "a loop in numpy": lambda: by_loop(one, other, resamples),
        "scipy.stats.bootstrap": lambda: by_scipy(one, other, resamples),
    }
    exact = ours()
    for name, run in contestants.items():
        found = run()
        assert abs(found.value - exact.value) < 1e-12, name
        assert max(abs(found.lo - exact.lo), abs(found.hi - exact.hi)) < 0.01, name
    timings = alternate(contestants, 1 if quick else 5)
    print(table(timing_rows(timings, resamples, "resamples/s")))
    tables = market(500 if quick else 5_000)
    fitted = alternate(
        {"TF-IDF baseline": lambda: baseline_scores(*tables, tables[0][:1000])}, 1 if quick else 5
    )
    print("\n" + table(timing_rows(fitted, tables[0].height, "pairs/s")) + "\n")
    mine, loop, scipy = timings.values()
    figures = {
        "ratio_loop": ratio(loop, mine), "ratio_scipy": ratio(scipy, mine),
        "baseline_s": next(iter(fitted.values())).median,
    }  # fmt: skip
    print(closing_line("paired", figures, ("numpy", "scipy", "scikit-learn")))
