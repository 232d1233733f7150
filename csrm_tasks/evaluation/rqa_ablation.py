"""What retrieved titles do for the LLM, query by query: the same model with and without them."""

from __future__ import annotations

from typing import Any

import polars as pl

GAINED, LOST = 12, 4  # examples of either kind


def rqa_ablation(
    gold: pl.DataFrame,
    alone: pl.DataFrame,
    augmented: pl.DataFrame,
    queries: pl.DataFrame,
    rqa: pl.DataFrame,
) -> dict[str, Any]:
    """Compare two score tables (SCORED) of one LLM on ``gold`` (query_id, product_id, grade).

    Returns how many pairs each has right, and the queries with the greatest gains and losses, each
    with its retrieved titles (RQA). Ties by query text. Pairs that either lacks are left out.
    """
    keys = ["query_id", "product_id"]
    marked = gold.join(_right(alone, "alone"), on=keys).join(_right(augmented, "with"), on=keys)
    marked = marked.with_columns(
        (pl.col(name) == pl.col("grade")).cast(pl.Int64) for name in ("alone", "with")
    )
    by_query = (
        marked.group_by("query_id")
        .agg(pl.len().alias("pairs"), pl.col("alone").sum(), pl.col("with").sum())
        .join(queries.select("query_id", "query"), on="query_id")
        .join(rqa.select("query_id", "titles"), on="query_id")
        .with_columns(gain=pl.col("with") - pl.col("alone"))
        .sort(["gain", "query"], descending=[True, False])
    )
    best = by_query.filter(pl.col("gain") > 0).head(GAINED)
    worst = by_query.filter(pl.col("gain") < 0).tail(LOST)
    named = ("query", "titles", "pairs", "alone", "with")
    return {
        "pairs": marked.height,
        "alone": int(marked["alone"].sum()),
        "with": int(marked["with"].sum()),
        "cases": pl.concat([best, worst]).select(named).to_dicts(),
    }


def _right(scored: pl.DataFrame, name: str) -> pl.DataFrame:
    """Return the most probable grade of each pair; the lower one of equals."""
    best = pl.concat_list("p0", "p1", "p2").list.arg_max().cast(pl.Int64).alias(name)
    return scored.select("query_id", "product_id", best)
