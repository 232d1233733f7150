"""How strongly behaviour speaks for a pair, once where it was shown is accounted for.

Position-based click model: P(click) = examined(position) · attractive(query, product). What a list
shows high is also better, so clicks by position say little; but one pair, shown at two positions on
one day, is equally attractive at both. Such comparisons ("interventions" harvested from ordinary
logs: Agarwal et al., WSDM 2019; no ranking is disturbed) are summed over all pairs and days with
Mantel and Haenszel's weights, which need no estimate of any attractiveness and stay unbiased when
every pair has only a few impressions. The sums are wins of one position over another, and the
strengths of a Bradley-Terry model with these wins (Hunter 2004) are examination.

Expectation-maximisation of the same model (Wang et al., WSDM 2018) was tried on the same counts:
with many pairs of few impressions it stays near plain click rates (docs/PAPER.md, A23).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import polars as pl

Floats = npt.NDArray[np.float64]
PAIR = ["locale", "query_id", "product_id"]
EXAMINED: dict[str, type[pl.DataType]] = dict.fromkeys(PAIR, pl.String) | {
    "placed": pl.Int64, "examined": pl.Int64,
}  # fmt: skip
# Positions from 0; deeper ones share a place: too few clicks to tell them apart.
RANK_BUCKETS = (*range(21), 25, 30, 40, 50, 75, 100, 200, 500)
TIES = 5.0  # wins that each place is given over its neighbours, and they over it
FLOOR = 0.05  # least examination: no impression counts as less than a twentieth of one
PRIOR = 3.0  # examined impressions without an action that every pair is given
LEAST = 1e-6  # weight of a pair that nobody acted on
PARTS = 10**6  # sums are of whole millionths: the same in any order, so a snapshot's bytes are too


def rank_bucket(position: str) -> pl.Expr:
    """Return the place, an index of :data:`RANK_BUCKETS`, of a column of positions."""
    starts = pl.lit(pl.Series(RANK_BUCKETS, dtype=pl.Int64))
    return starts.search_sorted(pl.col(position), side="right").cast(pl.Int64) - 1


def pairwise_clicks(counts: pl.DataFrame) -> Floats:
    """Compare each pair's clicks between the places at which it was shown on one day.

    ``counts``: POSITIONS of the lake. Returns (places, places): at [k, l] the sum over pairs of
    c_k·n_l/(n_k + n_l), c clicks (at most one per impression) of n impressions. Its expectation
    over that of [l, k] is examined(k)/examined(l), whatever was shown where.
    """
    shown = (
        counts.filter(pl.col("impressions") > 0)
        .group_by(*PAIR, rank_bucket("position").alias("place"))
        .agg(pl.col("impressions").sum(), pl.col("clicks").sum())
        .with_columns(pl.min_horizontal("clicks", "impressions").alias("clicks"))
    )
    other = shown.select(*PAIR, pl.col("place").alias("over"), pl.col("impressions").alias("n"))
    met = shown.filter(pl.col("clicks") > 0).join(other, on=PAIR)
    share = pl.col("clicks") * pl.col("n") * PARTS // (pl.col("impressions") + pl.col("n"))
    won = met.filter(pl.col("place") != pl.col("over")).group_by("place", "over").agg(share.sum())
    wins: Floats = np.zeros((len(RANK_BUCKETS), len(RANK_BUCKETS)))
    wins[won["place"].to_numpy(), won["over"].to_numpy()] = won["clicks"].to_numpy() / PARTS
    return wins


def examination(wins: Floats) -> Floats:
    """Estimate examination from :func:`pairwise_clicks`, summed over days: (places,) in [FLOOR, 1].

    It never rises with depth, and where a place has few contests it stays near its neighbour's.
    """
    from scipy.optimize import isotonic_regression

    near = np.eye(len(wins), k=1) + np.eye(len(wins), k=-1)
    held = wins + TIES * near
    won, met = held.sum(1), held + held.T
    theta: Floats = np.ones(len(wins))
    while True:
        # Hunter's minorisation-maximisation; the ties connect all places, so there is one maximum
        better = won / (met / (theta[:, None] + theta)).sum(1)
        better /= better.max()
        moved = np.abs(np.log(better / theta)).max()
        theta = better
        if moved < 1e-6:
            break
    falling = isotonic_regression(np.log(theta), weights=won, increasing=False).x
    smooth: Floats = np.exp(falling - falling.max())
    return np.maximum(smooth, FLOOR)


def behaviour_weights(days: pl.DataFrame, counts_of: Callable[[str], pl.DataFrame]) -> pl.DataFrame:
    """Sum daily aggregates per pair and weigh them: the columns of BEHAVIOUR, sorted by pair.

    ``days``: day, locale, query_id, product_id and counts, one row per pair and day;
    ``counts_of(day)``: POSITIONS of the lake. ``weight`` is actions (clicks, carts and purchases,
    each counting one) per *examined* impression, at most 1, shrunk by :data:`PRIOR`. This is
    inverse propensity weighting, clipped (:data:`FLOOR`) and self-normalised: it divides by the
    examinations of all of a pair's impressions, not each click by its own, which one lucky click
    at the bottom would dominate.
    """
    dates = days["day"].unique().sort().to_list()
    wins: Floats = np.zeros((len(RANK_BUCKETS), len(RANK_BUCKETS)))
    theta = examination(sum((pairwise_clicks(counts_of(day)) for day in dates), wins))
    nothing = pl.DataFrame(schema=EXAMINED)
    placed = pl.concat([nothing, *(examined(counts_of(day), theta) for day in dates)])
    sums = days.group_by(PAIR).agg(pl.col("impressions", "clicks", "carts", "purchases").sum())
    joined = sums.join(placed.group_by(PAIR).sum(), on=PAIR, how="left").with_columns(
        pl.col("placed", "examined").fill_null(0)
    )
    shown = int(placed["placed"].sum())
    usual = placed["examined"].sum() / shown if shown else PARTS  # where no position was logged
    unplaced = (pl.col("impressions") - pl.col("placed")) * usual
    actions = pl.col("clicks") + pl.col("carts") + pl.col("purchases")
    weight = actions / ((pl.col("examined") + unplaced) / PARTS + PRIOR)
    weighed = joined.with_columns(weight.clip(LEAST, 1.0).alias("weight"))
    return weighed.drop("placed", "examined").sort(PAIR)


def examined(counts: pl.DataFrame, theta: Floats) -> pl.DataFrame:
    """Return per pair its impressions with a position, and the sum of PARTS · examination."""
    chance = pl.Series(theta * PARTS).round().cast(pl.Int64)
    at = counts.select(rank_bucket("position")).to_series()
    looked = counts.with_columns((counts["impressions"] * chance.gather(at)).alias("examined"))
    return looked.group_by(PAIR).agg(
        pl.col("impressions").sum().alias("placed"), pl.col("examined").sum()
    )
