"""Train, dev and gold, grouped by normalised query: a query is on one side only (A10)."""

from __future__ import annotations

import polars as pl

from csrm_tasks.blobs import text_digest
from csrm_tasks.sections import Snapshot


def uniform(seed: int, *parts: str) -> float:
    """Return a number in [0, 1) that depends on nothing but its arguments."""
    return int(text_digest(str(seed), *parts), 16) / 2**64


def assign_splits(
    pairs: pl.DataFrame, rules: Snapshot, target_locale: str, seed: int
) -> pl.DataFrame:
    """Add ``split`` to judged pairs (norm, locale, grade, raters, agree, …).  # A10

    Gold pairs are those of the target that enough raters agree on; every other pair of a gold
    query is left out, in whichever locale. Of the other queries a share goes to dev, drawn by hash
    within each language and grade; a query typed alike in two languages goes one way in both.
    """
    is_gold = (
        (pl.col("locale") == target_locale)
        & (pl.col("raters") >= rules.gold_raters)
        & (pl.col("agree") >= rules.gold_agree)
    )
    gold = pairs.filter(is_gold)
    rest = pairs.join(gold.select("norm").unique(), on="norm", how="anti", maintain_order="left")
    dev = _dev_queries(rest, rules.dev_share, seed)
    in_dev = pl.col("norm").is_in(dev.implode())
    split = pl.when(in_dev).then(pl.lit("dev")).otherwise(pl.lit("train"))
    return pl.concat([
        rest.with_columns(split.alias("split")), gold.with_columns(pl.lit("gold").alias("split"))
    ])  # fmt: skip


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
