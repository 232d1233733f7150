"""Train, dev and gold, grouped by normalised query: a query is on one side only (A10).

The gold set is frozen. A pair enters it on the first day by whose deliveries enough raters agree,
with the grade of that day; what is delivered later changes neither its grade nor its place. And it
enters only when no weekly release can have learnt from its query: in the ISO week in which the
query's first label of the target arrived, or when the query is gold already. So the set of a later
day holds that of an earlier one, as long as no day between is published or corrected afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from csrm_tasks.blobs import text_digest
from csrm_tasks.dataset.consensus import PAIR, current_votes, majority
from csrm_tasks.sections import Snapshot


@dataclass(frozen=True)
class Gold:
    """The frozen pairs, and how many met the rule too late to be one of them."""

    pairs: pl.DataFrame  # locale, query_id, product_id, grade, raters, agree, norm
    late: int


def uniform(seed: int, *parts: str) -> float:
    """Return a number in [0, 1) that depends on nothing but its arguments."""
    return int(text_digest(str(seed), *parts), 16) / 2**64


def frozen_gold(ratings: pl.DataFrame, rules: Snapshot, target_locale: str) -> Gold:
    """Find the gold pairs among ratings (PAIR, norm, day, grade, rater_id, …).  # A10"""
    target = ratings.filter(pl.col("locale") == target_locale)
    enough = target.group_by(PAIR).len().filter(pl.col("len") >= rules.gold_raters)
    rated = target.join(enough, on=PAIR, how="semi", maintain_order="left")
    # Each pair as it stood at the end of each day on which something was said about it.
    stood = (
        rated.select(*PAIR, pl.col("day").alias("as_of"))
        .unique()
        .join(rated, on=PAIR, maintain_order="right_left")
    )
    key = (*PAIR, "as_of")
    states = majority(current_votes(stood.filter(pl.col("day") <= pl.col("as_of")), key), key)
    met = states.filter(
        (pl.col("raters") >= rules.gold_raters) & (pl.col("agree") >= rules.gold_agree)
    )
    first = met.sort(key).unique(PAIR, keep="first", maintain_order=True)
    first = first.join(rated.select("query_id", "norm").unique(), on="query_id")
    began = target.group_by("norm").agg(_monday("day").min().alias("began"))
    entered = first.group_by("norm").agg(_monday("as_of").min().alias("entered"))
    timely = entered.join(began, on="norm").filter(pl.col("entered") == pl.col("began"))
    pairs = first.join(timely, on="norm", how="semi").drop("as_of").sort(PAIR)
    return Gold(pairs, first.height - pairs.height)


def _monday(day: str) -> pl.Expr:
    return pl.col(day).str.to_date().dt.truncate("1w")


def assign_splits(
    pairs: pl.DataFrame, gold: pl.DataFrame, dev_share: float, seed: int
) -> pl.DataFrame:
    """Add ``split`` to judged pairs (PAIR, norm, grade, raters, agree).  # A10

    ``gold``: the frozen pairs, with the same columns. Every other pair of a gold query is left
    out, in whichever locale. Of the other queries a share goes to dev, drawn by hash within each
    language and grade; a query typed alike in two languages goes one way in both.
    """
    rest = pairs.join(gold.select("norm").unique(), on="norm", how="anti", maintain_order="left")
    dev = _dev_queries(rest, dev_share, seed)
    in_dev = pl.col("norm").is_in(dev.implode())
    split = pl.when(in_dev).then(pl.lit("dev")).otherwise(pl.lit("train"))
    frozen = gold.select(pairs.columns).with_columns(pl.lit("gold").alias("split"))
    return pl.concat([rest.with_columns(split.alias("split")), frozen])


def _dev_queries(pairs: pl.DataFrame, share: float, seed: int) -> pl.Series:
    """Draw the normalised queries of dev: ⌈share·n⌉ of each stratum of two or more."""
    stratum = ["locale", "grade"]
    per_locale = pairs.group_by("norm", "locale").agg(pl.col("grade").mean().round().cast(pl.Int8))
    queries = per_locale.sort("norm", "locale").unique("norm", keep="first", maintain_order=True)
    drawn = pl.Series("u", [uniform(seed, "split", n) for n in queries["norm"]], dtype=pl.Float64)
    ranked = queries.with_columns(drawn).with_columns(
        pl.col("u").rank("ordinal").over(stratum).alias("rank"), pl.len().over(stratum).alias("n")
    )
    chosen = (pl.col("n") > 1) & (pl.col("rank") <= (share * pl.col("n")).ceil())
    return ranked.filter(chosen)["norm"]
