"""What a model expects people to say of two releases' pages, query by query (A58).

From each result's probabilities to be exact and to be irrelevant, taken as independent: how much
EM@1 and Defect@5 (A43) differ between the pages, and how likely they differ at all. A difference
near 0 may be very likely: two pages with another doubtful product each. It is that likelihood, not
the difference, by which people's time is best given to queries.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import polars as pl

from csrm_tasks.release.online.strata import Floats

Measure = Literal["EM@1", "Defect@5"]
MEASURES: tuple[Measure, ...] = ("EM@1", "Defect@5")
DOUBT = 1e-3  # a probability is at least so far from 0 and 1
COLUMNS: Mapping[Measure, str] = {"EM@1": "em", "Defect@5": "defect"}


@dataclass(frozen=True)
class Expected:
    """Of each query, (Q,): the judged release minus its control."""

    difference: Floats  # −1 to 1
    chance: Floats  # that the two differ; 0 where they cannot


def expected(pages: pl.DataFrame, release: str, control: str) -> pl.DataFrame:
    """Return query_id, ``cost`` and of each measure its difference and chance.

    ``pages``: release, query_id, rank (from 1), product_id, exact, irrelevant; a product has the
    same two probabilities on both pages. ``cost``: distinct products of both. A
    chance is 0 where people can find no difference, whatever the products are (the same first, the
    same five), and only there: no model is taken for certain. Sorted by query_id.
    """
    first, keep = pl.col("rank") == 1, 1 - pl.col("irrelevant")
    found = pl.col("release") == release
    only = pl.col("release").n_unique().over("query_id", "product_id") == 1

    def share(where: pl.Expr, what: pl.Expr) -> pl.Expr:
        """1 minus the chance that none of ``where`` is."""
        return 1 - what.filter(where).product()

    doubtful = (pl.col(c).cast(pl.Float64).clip(DOUBT, 1 - DOUBT) for c in ("exact", "irrelevant"))
    sums = pages.with_columns(*doubtful, only=only).group_by("query_id").agg(
        cost=pl.col("product_id").n_unique(),
        firsts=pl.col("product_id").filter(first).n_unique(),
        new=pl.col("exact").filter(found & first).sum(),
        old=pl.col("exact").filter(~found & first).sum(),
        none_shared=keep.filter(~pl.col("only") & found).product(),
        bad_new=share(found & pl.col("only"), keep),
        bad_old=share(~found & pl.col("only"), keep),
    )  # fmt: skip
    new, old, free = pl.col("new"), pl.col("old"), pl.col("none_shared")
    one, other, apart = pl.col("bad_new"), pl.col("bad_old"), pl.col("firsts") > 1
    return sums.sort("query_id").select(
        "query_id", "cost",
        em=pl.when(apart).then(new - old).otherwise(0.0),
        em_chance=pl.when(apart).then(new + old - 2 * new * old).otherwise(0.0),
        defect=free * (one - other),
        defect_chance=free * (one + other - 2 * one * other),
    )  # fmt: skip


def by_measure(found: pl.DataFrame) -> dict[Measure, Expected]:
    """Return what :func:`expected` found as arrays."""
    return {
        m: Expected(found[c].to_numpy(), found[f"{c}_chance"].to_numpy())
        for m, c in COLUMNS.items()
    }
