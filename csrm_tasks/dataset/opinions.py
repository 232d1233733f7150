"""What a pair's raters make probable: their votes' likelihood, and where they agree (A49).

The confusions come from pairs with several raters, train and dev together, each locale apart. No
vote on a gold pair is among the votes (:data:`csrm_tasks.records.VOTES`), so gold decides nothing.
"""

from __future__ import annotations

import polars as pl

from csrm_tasks.dataset.dawid_skene import GRADES, FittedVotes, fit_votes, likelihood

MIN_RATED = 100  # pairs with several raters below which a locale's confusions are not estimated
SURE = 0.9  # posterior from which a pair with several raters has a consensus
LIKELIHOOD = [f"l{k}" for k in range(GRADES)]


def several_rated(votes: pl.DataFrame) -> dict[str, int]:
    """Return how many pairs of each locale have two raters or more; ``votes``: VOTES."""
    counts = votes.group_by("locale", "pair_id").len()
    several = counts.group_by("locale").agg((pl.col("len") > 1).sum()).sort("locale")
    return dict(several.iter_rows())


def opinions(votes: pl.DataFrame) -> pl.DataFrame:
    """Return pair_id, l0, l1, l2, consensus of every pair of the locales with enough such pairs.

    ``votes``: VOTES. ``l{k}`` is the probability of the pair's votes where its true grade is k: of
    one vote the rater's column of their confusion. ``consensus`` is the grade that two raters or
    more make :data:`SURE`, else null.
    """
    enough = [locale for locale, n in several_rated(votes).items() if n >= MIN_RATED]
    schema = {"pair_id": pl.String, **dict.fromkeys(LIKELIHOOD, pl.Float64), "consensus": pl.Int8}
    empty = pl.DataFrame(schema=schema)
    return pl.concat([empty, *(_of_locale(votes.filter(locale=x), empty) for x in enough)])


def _of_locale(votes: pl.DataFrame, like: pl.DataFrame) -> pl.DataFrame:
    several = votes.filter(pl.len().over("pair_id") > 1)
    fitted = fit_votes(several, ["pair_id"])
    return (
        _likelihoods(votes, fitted)
        .join(_consensus(fitted), on="pair_id", how="left", maintain_order="left")
        .cast(like.schema)
    )  # type: ignore[arg-type]


def _likelihoods(votes: pl.DataFrame, fitted: FittedVotes) -> pl.DataFrame:
    pairs = votes.select("pair_id").unique().sort("pair_id").with_row_index("item")
    placed = votes.join(pairs, on="pair_id", maintain_order="left")
    item, grade = (placed[c].cast(pl.Int64).to_numpy() for c in ("item", "grade"))
    likelihoods = likelihood(fitted.confusion_of(placed["rater"]), item, grade, pairs.height)
    columns = [pl.Series(name, likelihoods[:, k]) for k, name in enumerate(LIKELIHOOD)]
    return pairs.select("pair_id").with_columns(columns)


def _consensus(fitted: FittedVotes) -> pl.DataFrame:
    sure = fitted.posteriors.filter(pl.col("p") >= SURE)
    return sure.select("pair_id", pl.col("grade").alias("consensus"))
