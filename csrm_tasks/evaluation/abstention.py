"""Which served pairs have no sure grade, and of which a person's judgement is worth most (A60).

Limits are those of :mod:`.conformal`, fitted on the target's dev pairs with a consensus. How often
the sets hold the true grade is told by dev queries that the limits were not fitted on: half of the
queries fit, the other half are asked, and the other way round. No gold is read: queries that gold
has a pair of are none of the queue's.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from csrm_tasks.evaluation.conformal import Flags, Floats, coverage, limits, sets, unsure
from csrm_tasks.records import Grade

CHANCES = ("p0", "p1", "p2")


@dataclass(frozen=True)
class Abstention:
    """Limits by grade, (3,) each, and what is known of them from dev."""

    limits: Floats
    pairs: tuple[int, ...]  # dev pairs with a consensus, by grade
    covered: tuple[float | None, ...]  # share whose set has it, cross-fitted; None without pairs
    unsure: float | None  # share of these pairs without a sure grade, cross-fitted


def fit(dev: pl.DataFrame, alpha: float) -> Abstention:
    """Fit on dev: query_id, consensus (null: none), p0, p1, p2. Without pairs nothing is sure."""
    agreed = dev.drop_nulls("consensus").sort("query_id")
    grades = agreed["consensus"].cast(pl.Int64).to_numpy()
    chances = probabilities(agreed)
    half = (agreed["query_id"].rle_id() % 2 == 0).to_numpy()
    found: Flags = np.zeros(chances.shape, bool)
    for side in (half, ~half):
        found[~side] = sets(chances[~side], limits(chances[side], grades[side], alpha))
    covered = coverage(found, grades) if len(grades) else np.full(len(CHANCES), np.nan)
    return Abstention(
        limits(chances, grades, alpha),
        tuple(int((grades == g).sum()) for g in range(len(CHANCES))),
        tuple(None if np.isnan(c) else float(c) for c in covered),
        float(unsure(found).mean()) if len(grades) else None,
    )


def probabilities(scored: pl.DataFrame) -> Floats:
    """Return the probabilities of the three grades, (N, 3)."""
    return scored.select(CHANCES).to_numpy().astype(np.float64)


def unjudged(
    scored: pl.DataFrame, behaviour: pl.DataFrame, pairs: pl.DataFrame, locale: str
) -> pl.DataFrame:
    """Return the pairs of ``scored`` (SCORED) that shoppers of ``locale`` were shown and nobody has
    judged, with ``impressions``; none of a query of which gold has a pair.
    """
    here = pl.col("locale") == locale
    shown = (
        behaviour.filter(here).group_by("query_id", "product_id").agg(pl.col("impressions").sum())
    )
    gold = pairs.filter((pl.col("split") == "gold") & here)
    return (
        scored.filter(here)
        .join(shown.filter(pl.col("impressions") > 0), on=["query_id", "product_id"])
        .join(pairs.filter(here), on=["query_id", "product_id"], how="anti")
        .join(gold, on="query_id", how="anti")
    )


def queue(served: pl.DataFrame, fitted: Abstention, number: int) -> pl.DataFrame:
    """Return the ``number`` pairs for review, of which a judgement is worth most first.

    Worth: how often the pair is shown, times how probably its most probable grade is wrong: what
    acting on it costs, and a judgement saves. Adds ``grades`` ("1 2": those left), ``value``.
    """
    chances = probabilities(served)
    found = sets(chances, fitted.limits)
    left = [" ".join(str(int(g)) for g in Grade if row[int(g)]) for row in found]
    worth = served["impressions"].to_numpy() * (1 - chances.max(axis=1, initial=0.0))
    listed = served.with_columns(
        pl.Series("grades", left, dtype=pl.String), pl.Series("value", worth, dtype=pl.Float64)
    )
    asked = listed.filter(pl.Series(unsure(found), dtype=pl.Boolean))
    return asked.sort("value", "query_id", "product_id", descending=[True, False, False])[:number]
