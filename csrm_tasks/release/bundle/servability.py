"""Whether a bundle can be served: cases for the probe, and what its findings come to (A48).

Cases are the dev pairs whose probabilities training wrote down, and searches from the snapshot's
log, each filled up with products of the catalogue to the length of a result page. Where shoppers
have not searched yet (a cold start), the snapshot's other queries stand in.
"""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from csrm_tasks.errors import DataError
from csrm_tasks.evaluation.checks import GateCheck, Verdict, combine
from csrm_tasks.release.bundle import probe
from csrm_tasks.sections import Serving

MAX_PAIRS = 2_000
SEARCHES = 200
PAGE = 100  # products of a search
MAX_FLIPS = 0.005  # of decisions: the export's bound (A34), and by luck on these fewer pairs …
LUCK = 3.0  # … so many standard deviations above it
MEAN_ERROR = 0.01  # of probabilities: int8 moves single ones, other text moves them all
PATIENCE = 600  # seconds for a probe


def judged_pairs(dev: pl.DataFrame, locale: str) -> pl.DataFrame:
    """Return pairs as they are asked for: by product in the bundle's locale, else by title.

    ``dev`` has pair_id, locale, query, product_id, title, and em and defect of training.
    """
    known = pl.col("locale") == locale
    return (
        dev.sort("pair_id")
        .head(MAX_PAIRS)
        .with_columns(
            product_id=pl.when(known).then(pl.col("product_id")),
            title=pl.when(~known).then(pl.col("title")),
        )
    )


def searches(
    queries: pl.DataFrame, behaviour: pl.DataFrame, products: list[str], seed: int
) -> pl.DataFrame:
    """Return (query, products) of the most frequent searches of one locale; see the module.

    ``queries`` and ``behaviour`` are those of the locale, ``products`` its catalogue. Raises
    :class:`DataError` where there is no query.
    """
    known = pl.Series("product_id", products)
    shown = behaviour.filter(pl.col("product_id").is_in(known.implode()))
    logged = shown.group_by("query_id").agg(
        pl.col("impressions").sum(), pl.col("product_id").sort().alias("products")
    )
    chosen = queries.select("query_id", query="norm").join(logged, on="query_id", how="left")
    chosen = chosen.filter(pl.col("query") != "").sort(
        pl.col("impressions").fill_null(-1), "query_id", descending=[True, False]
    ).head(SEARCHES)  # fmt: skip
    if chosen.is_empty():
        raise DataError("the snapshot has no query of the market's locale to replay")
    rng = np.random.default_rng(seed)
    pages = []
    for first in chosen["products"].to_list():
        drawn = rng.choice(len(products), min(PAGE, len(products)), replace=False)
        pages.append(list(dict.fromkeys([*(first or []), *(products[i] for i in drawn)]))[:PAGE])
    return chosen.select("query").with_columns(
        products=pl.Series(pages, dtype=pl.List(pl.String)),
        logged=chosen["products"].is_not_null(),
    )


def run_probe(bundle: Path, cases: Path, out: Path, threads: int) -> str | None:
    """Probe in a fresh process; returns why that failed, or None."""
    command = [sys.executable, "-m", probe.__name__, *map(str, (bundle, cases, out, threads))]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=PATIENCE
        )
    except subprocess.TimeoutExpired:
        return f"the probe did not end within {PATIENCE} seconds"
    if done.returncode == 0:
        return None
    last = done.stderr.strip().splitlines()[-1:] or [f"it ended with {done.returncode}"]
    return f"the bundle cannot be served: {last[0]}"


def check_probe(
    pairs: pl.DataFrame,
    measured: Mapping[str, Any],
    thresholds: tuple[float, float],
    budget: Serving,
    second_stage_ms: float | None = None,
) -> tuple[Verdict, dict[str, float]]:
    """Compare what the probe saw with training and with the market's budgets.

    ``second_stage_ms``: the budget of a search with the second stage, of a bundle that has one;
    ``pairs`` then have ``cross``, what dev was told.
    """
    errors, flips = [], np.zeros(pairs.height, bool)
    for head, threshold in zip(("em", "defect"), thresholds, strict=True):
        ours: npt.NDArray[np.float64] = np.asarray(measured[head], np.float64)
        theirs = pairs[head].to_numpy().astype(np.float64)
        errors.append(np.abs(ours - theirs))
        flips |= (ours >= threshold) != (theirs >= threshold)
    figures = {
        "mean_error": float(np.mean(errors)) if pairs.height else 0.0,
        "flips": float(flips.sum()),
        "pairs": float(pairs.height),
        **{name: float(measured[name]) for name in ("p50_ms", "p99_ms", "load_seconds")},
        "memory_mb": measured["memory_bytes"] / 2**20,
    }
    checks = _checks(figures, budget)
    if second_stage_ms is not None:
        figures |= _second_stage(pairs, measured)
        checks += _second_stage_checks(figures, second_stage_ms)
    return combine(checks), figures


def _second_stage(pairs: pl.DataFrame, measured: Mapping[str, Any]) -> dict[str, float]:
    error = np.abs(np.asarray(measured["cross"], np.float64) - pairs["cross"].to_numpy())
    names = ("second_stage_p50_ms", "second_stage_p99_ms")
    mean = float(np.mean(error)) if len(error) else 0.0
    return {"second_stage_mean_error": mean} | {name: float(measured[name]) for name in names}


def _second_stage_checks(figures: Mapping[str, float], budget_ms: float) -> list[GateCheck]:
    """Its scores are those that dev was told, and a whole search fits into the budget.

    Servers re-rank less where it does not; but then gold was judged in another order than most
    shoppers would see.
    """
    error = figures["second_stage_mean_error"]
    good = error <= MEAN_ERROR  # not a number is not
    scores = GateCheck("second stage", "PASS" if good else "FAIL", (
        f"the second stage's scores differ from those on dev by {error:.5f} in the mean"
    ))  # fmt: skip
    whole = "ms for a search with the second stage"
    return [scores, _within("p99", figures["second_stage_p99_ms"], budget_ms, whole)]


def _checks(figures: Mapping[str, float], budget: Serving) -> list[GateCheck]:
    pairs, flips = figures["pairs"], figures["flips"]
    expected = MAX_FLIPS * pairs
    few = flips <= expected + LUCK * math.sqrt(expected)
    same = few and figures["mean_error"] <= MEAN_ERROR
    scores = GateCheck("scores", "PASS" if same else "FAIL", (
        f"served scores differ from training by {figures['mean_error']:.5f} in the mean and "
        f"{flips:.0f} decisions of {pairs:.0f} pairs"))  # fmt: skip
    if not pairs:
        scores = GateCheck("scores", "INCONCLUSIVE", "no dev pair to compare served scores on")
    return [
        scores,
        _within("p99", figures["p99_ms"], budget.p99_ms, f"ms for {PAGE} products"),
        _within("memory", figures["memory_mb"], budget.memory_mb, "MB"),
    ]


def _within(name: str, value: float, budget: float, unit: str) -> GateCheck:
    good = value <= budget  # not a number is not within
    return GateCheck(
        name, "PASS" if good else "FAIL", f"{name} {value:.4g} {unit}, budget {budget:g}"
    )
