"""How strongly behaviour speaks for a pair, once where it was shown is accounted for.

Position-based click model: P(click) = examined(position) · attractive(query, product). Both are
estimated from ordinary logs by expectation-maximisation (Wang et al., WSDM 2018, without the
regression), on one row per pair and day; a day's position of a pair is its mean rank that day.
Averaging gives up what a list's movement within the day would tell; examination deep in the list,
where one pair hardly ever moves, is then estimated too low (less so than by plain click rates).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import polars as pl

Floats = npt.NDArray[np.float64]
ITERATIONS = 50
LAST_POSITION = 50  # deeper positions are pooled: too few clicks to tell them apart
PRIOR = 3.0  # examined impressions without an action that every pair is given
LEAST = 1e-6  # weight of a pair that nobody acted on


def examination(
    shown: Floats, clicks: Floats, position: npt.NDArray[np.int64], pair: npt.NDArray[np.int64]
) -> Floats:
    """Estimate examination by position, the highest being 1.

    Args: impressions and clicks of n rows, their position and pair as indices from 0.
    Returns: (positions,) in (0, 1]; positions that were never shown have the mean of the others.
    """
    depth = int(position.max()) + 1
    theta: Floats = np.full(depth, 0.5)
    gamma: Floats = np.full(int(pair.max()) + 1, 0.5)
    per_position = np.bincount(position, shown, depth)
    per_pair = np.bincount(pair, shown)
    for _ in range(ITERATIONS):
        t, g = theta[position], gamma[pair]
        unclicked = (shown - clicks) / (1 - t * g)
        seen = np.bincount(position, clicks + unclicked * t * (1 - g), depth)
        liked = np.bincount(pair, clicks + unclicked * g * (1 - t))
        # one examined like and one dislike added: rates stay off 0 and 1, where EM sticks
        theta = (seen + 1) / (per_position + 2)
        gamma = (liked + 1) / (per_pair + 2)
    was_shown = per_position > 0
    theta[~was_shown] = theta[was_shown].mean()
    relative: Floats = theta / theta.max()
    return relative


def behaviour_weights(days: pl.DataFrame) -> pl.DataFrame:
    """Sum daily aggregates per pair and weigh them.

    ``days``: locale, query_id, product_id, the five counts, position_sum, positions; one row per
    pair and day. ``weight`` is actions (clicks, carts and purchases, each counting one) per
    *examined* impression, at most 1, shrunk by :data:`PRIOR`: one click far down the list, which
    hardly anybody examined, is little evidence and not a sure thing.
    """
    pair = ["locale", "query_id", "product_id"]
    if days.is_empty():
        return days.select(*pair, "impressions", "clicks", "carts", "purchases").with_columns(
            pl.lit(0.0).alias("weight")
        )
    frame = days.sort(pair).with_columns(
        pl.struct(pair).rank("dense").cast(pl.Int64).alias("pair") - 1,
        (pl.col("position_sum") / pl.col("positions")).round().clip(0, LAST_POSITION).alias("at"),
    )
    theta = _by_position(frame)
    frame = frame.with_columns((pl.col("impressions") * theta).alias("examined"))
    sums = frame.group_by(pair, maintain_order=True).agg(
        pl.col("impressions", "clicks", "carts", "purchases", "examined").sum()
    )
    actions = pl.col("clicks") + pl.col("carts") + pl.col("purchases")
    weight = actions / (pl.col("examined") + PRIOR)
    return sums.with_columns(weight.clip(LEAST, 1.0).alias("weight")).drop("examined")


def _by_position(frame: pl.DataFrame) -> pl.Series:
    """Return each row's examination; the mean where no position was logged."""
    placed = frame.filter(pl.col("at").is_not_nan() & pl.col("at").is_not_null())
    if placed.is_empty():
        return pl.Series([1.0] * frame.height, dtype=pl.Float64)
    shown = placed["impressions"].to_numpy().astype(np.float64)
    clicks = np.minimum(placed["clicks"].to_numpy().astype(np.float64), shown)
    position = placed["at"].cast(pl.Int64).to_numpy()
    _, pair = np.unique(placed["pair"].to_numpy(), return_inverse=True)
    theta = examination(shown, clicks, position, pair)
    at = frame["at"].fill_nan(None).cast(pl.Int64)
    known = pl.Series(range(len(theta)), dtype=pl.Int64)
    return at.replace_strict(
        known, pl.Series(theta), default=None, return_dtype=pl.Float64
    ).fill_null(float(theta.mean()))
