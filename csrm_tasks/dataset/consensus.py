"""Several raters to one grade per pair (majority)."""

from __future__ import annotations

import polars as pl


def consensus(ratings: pl.DataFrame) -> pl.DataFrame:
    """Return one row per pair: grade, raters, agree.

    ``ratings``: query_id, product_id, locale, grade, rater_id, rated_at, label_id. Of one rater's
    several grades of a pair the last counts; ratings without a rater count each. A tie goes to the
    grade nearest the mean, then to the lower one.
    """
    pair = ["locale", "query_id", "product_id"]
    rater = pl.when(pl.col("rater_id") == "").then("label_id").otherwise("rater_id")
    latest = (
        ratings.sort("rated_at", "label_id", nulls_last=False)
        .with_columns(rater.alias("rater"), (pl.col("rater_id") == "").alias("nameless"))
        .unique([*pair, "rater", "nameless"], keep="last", maintain_order=True)
    )
    votes = latest.group_by(*pair, "grade").agg(pl.len().alias("agree"))
    totals = latest.group_by(pair).agg(
        pl.len().alias("raters"), pl.col("grade").mean().alias("mean")
    )
    ranked = votes.join(totals, on=pair).with_columns(
        (pl.col("grade") - pl.col("mean")).abs().alias("far")
    )
    order = [*pair, "agree", "far", "grade"]
    ranked = ranked.sort(order, descending=[False, False, False, True, False, False])
    best = ranked.unique(pair, keep="first", maintain_order=True)
    return best.select(*pair, pl.col("grade").cast(pl.Int8), "raters", "agree")
