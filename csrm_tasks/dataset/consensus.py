"""Several raters to one grade per pair: by majority, or by Dawid and Skene's model of raters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import polars as pl

from csrm_tasks.dataset.dawid_skene import fit_votes

PAIR = ("locale", "query_id", "product_id")
Method = Literal["majority", "dawid_skene"]
EVEN = 1e-6  # probabilities no further apart are alike


def current_votes(ratings: pl.DataFrame, key: Sequence[str] = PAIR) -> pl.DataFrame:
    """Return the ratings that count, with ``rater``: of one rater's several of a pair the last.

    ``ratings``: the key, grade, rater_id, rated_at, in the order in which they were delivered: day,
    file, row. That order decides between ratings of one time, and between all of a rater's of a
    pair where one does not say when; an identifier is no clock. A rating without a rater counts by
    itself; the n-th of a pair is the n-th nameless rater's, so that all together are somebody.
    """
    nameless = pl.col("rater_id") == ""
    timed = pl.col("rated_at").is_not_null().all().over(*key, "rater_id")
    time = pl.when(timed).then("rated_at").alias("time")
    ordered = ratings.with_columns(time).sort("time", maintain_order=True).drop("time")
    nth = pl.int_range(pl.len()).over(*key, nameless).cast(pl.String)
    rater = pl.when(nameless).then(pl.lit("#") + nth).otherwise("rater_id")
    named = ordered.with_columns(rater.alias("rater"), nameless.alias("nameless"))
    return named.unique([*key, "rater", "nameless"], keep="last", maintain_order=True)


def consensus(ratings: pl.DataFrame, method: Method = "majority") -> pl.DataFrame:
    """Return one row per pair, sorted: locale, query_id, product_id, grade, raters, agree, tied.

    ``ratings`` as in :func:`current_votes`; ``agree`` is how many say the grade that was found, and
    ``tied`` whether another grade had as good a claim and the rule of :func:`majority` decided. A
    grade that nobody gave is never found.
    """
    votes = current_votes(ratings)
    agreed = majority(votes)
    return agreed if method == "majority" else _dawid_skene(votes, agreed)


def majority(votes: pl.DataFrame, key: Sequence[str] = PAIR) -> pl.DataFrame:
    """Return the commonest grade of each key; a tie goes to the nearest the mean, then lower.

    Columns: the key, grade, raters, agree, tied.
    """
    counts = votes.group_by(*key, "grade").agg(pl.len().alias("agree"))
    return _best(counts.with_columns(pl.lit(0.0).alias("p")), key)


def _best(counts: pl.DataFrame, key: Sequence[str]) -> pl.DataFrame:
    """Choose one of the grades given to each key (key, grade, agree, and ``p``, its probability).

    The most probable one, where probabilities within :data:`EVEN` are alike; of those the
    commonest; of those the one nearest the mean; then the lower.
    """
    n, here = pl.col("agree").sum().over(key), pl.col("p").max().over(key) - pl.col("p") <= EVEN
    far = (pl.col("grade") * n - (pl.col("grade") * pl.col("agree")).sum().over(key)).abs()
    ranked = counts.with_columns(pl.col("grade", "agree").cast(pl.Int64)).with_columns(
        here.alias("here"), far.alias("far"), n.alias("raters")
    )
    ranked = ranked.filter("here").sort(
        *key, "agree", "far", "grade", descending=[False] * len(key) + [True, False, False]
    )
    even = pl.col("agree") == pl.col("agree").first().over(key)
    ranked = ranked.with_columns((even.sum().over(key) > 1).alias("tied"))
    best = ranked.unique(list(key), keep="first", maintain_order=True)
    whole = pl.col("raters", "agree").cast(pl.UInt32)
    return best.select(*key, pl.col("grade").cast(pl.Int8), whole, "tied")


def _dawid_skene(votes: pl.DataFrame, plain: pl.DataFrame) -> pl.DataFrame:
    """Replace the grades of pairs with several raters by those of the model, each locale apart.

    A single rater's grade stays: nothing but the model itself would speak against it, and such
    pairs would only teach the model that everybody is always right.
    """
    several = votes.join(plain.filter(pl.col("raters") > 1), on=PAIR, how="semi")
    if several.is_empty():
        return plain
    counts = several.group_by(*PAIR, "grade").agg(pl.len().alias("agree"))
    parts = several.with_columns(rater_name()).partition_by("locale", maintain_order=True)
    probable = pl.concat(fit_votes(part, PAIR).posteriors for part in parts)
    scored = counts.join(probable, on=[*PAIR, "grade"])
    alone = plain.join(several, on=PAIR, how="anti")
    return pl.concat([alone, _best(scored, PAIR)]).sort(PAIR)


def rater_name() -> pl.Expr:
    """Return ``rater`` of current votes with all nameless raters as one, "": who knows which?"""
    return pl.when("nameless").then(pl.lit("")).otherwise("rater").alias("rater")
