"""Several raters to one grade per pair: by majority, or by Dawid and Skene's model of raters."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Literal

import polars as pl

PAIR = ("locale", "query_id", "product_id")
Method = Literal["majority", "dawid_skene"]
ITERATIONS = 100  # of expectation-maximisation at most; it ends when the bound stops rising


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
    """Return one row per pair, sorted: locale, query_id, product_id, grade, raters, agree.

    ``ratings`` as in :func:`current_votes`; ``agree`` is how many say the grade that was found.
    """
    votes = current_votes(ratings)
    found = majority(votes)
    return found if method == "majority" else _dawid_skene(votes, found)


def majority(votes: pl.DataFrame, key: Sequence[str] = PAIR) -> pl.DataFrame:
    """Return the commonest grade of each key; a tie goes to the nearest the mean, then lower."""
    counts = votes.group_by(*key, "grade").agg(pl.len().alias("agree"))
    totals = votes.group_by(*key).agg(pl.len().alias("raters"), pl.col("grade").mean().alias("at"))
    ranked = counts.join(totals, on=list(key)).with_columns(
        (pl.col("grade") - pl.col("at")).abs().alias("far")
    )
    descending = [False] * len(key) + [True, False, False]
    ranked = ranked.sort(*key, "agree", "far", "grade", descending=descending)
    best = ranked.unique(list(key), keep="first", maintain_order=True)
    return best.select(*key, pl.col("grade").cast(pl.Int8), "raters", "agree")


def _dawid_skene(votes: pl.DataFrame, plain: pl.DataFrame) -> pl.DataFrame:
    """Replace the grades of pairs with several raters by those of the model, each locale apart.

    A single rater's grade stays: nothing but the model itself would speak against it, and such
    pairs would only teach the model that everybody is always right.
    """
    several = votes.join(plain.filter(pl.col("raters") > 1), on=PAIR, how="semi")
    if several.is_empty():
        return plain
    fitted = pl.concat(_fit(part) for _, part in several.group_by("locale", maintain_order=True))
    found = plain.drop("agree").join(fitted, on=PAIR, how="left", maintain_order="left")
    found = found.with_columns(pl.coalesce("model", "grade").alias("grade")).drop("model")
    counts = votes.group_by(*PAIR, pl.col("grade").cast(pl.Int8)).agg(pl.len().alias("agree"))
    joined = found.join(counts, on=[*PAIR, "grade"], how="left", maintain_order="left")
    return joined.with_columns(pl.col("agree").fill_null(0))


def _fit(votes: pl.DataFrame) -> pl.DataFrame:
    """Return the most probable grade (``model``) of each pair of one locale's votes."""
    import pandas as pd
    from crowdkit.aggregation import DawidSkene

    rows = votes.sort(*PAIR, "nameless", "rater").with_columns(
        pl.struct(PAIR).rank("dense").cast(pl.Int64).alias("task"),
        pl.concat_str(pl.col("nameless").cast(pl.String), pl.lit(" "), "rater").alias("worker"),
    )
    table = {"task": "task", "worker": "worker", "label": "grade"}
    frame = pd.DataFrame({name: rows[c].to_list() for name, c in table.items()})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # crowd-kit's way with pandas 3
        model = DawidSkene(n_iter=ITERATIONS).fit_predict(frame)
    grades = pl.DataFrame(
        {"task": model.index.to_list(), "model": model.to_list()},
        {"task": pl.Int64, "model": pl.Int8},
    )
    return rows.select(*PAIR, "task").unique().join(grades, on="task").drop("task")
