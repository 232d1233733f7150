"""Which pairs the teacher scores for the towers (A31): impressed, retrieved, random; seeded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from csrm_tasks.dataset.splits import held_out_queries

BLOCK = 2000  # queries worked on at a time
SPARE = 4  # random products drawn per one wanted, since some are chosen already

Rows = npt.NDArray[np.int64]
Retrieve = Callable[[Rows, int], Rows]  # rows of queries (Q,), k → rows of products (Q, ≤ k)


@dataclass(frozen=True)
class PairPlan:
    """How many products of each kind a query gets."""

    impressed: int  # M: most impressed in the snapshot's window, at most
    retrieved: int  # N: nearest by EBR; they also fill up what was not impressed, to M + N
    random: int


def distillation_queries(
    queries: pl.DataFrame, pairs: pl.DataFrame, locale: str, most: int, seen: bool = False
) -> pl.DataFrame:
    """Choose the queries of ``locale`` to distil on: the most seen, then by digest (as random).

    ``seen``: gold queries behind them, for a control (:func:`held_out_queries`): what the others
    are, and what is drawn for them, is the same with them and without.
    """
    here = queries.filter(pl.col("locale") == locale)
    ordered = here.sort(["impressions", "query_id"], descending=[True, False])

    def without(held: pl.DataFrame) -> pl.DataFrame:
        return ordered.join(held, on="query_id", how="anti", maintain_order="left")

    learnt = without(held_out_queries(queries, pairs))
    if not seen:
        return learnt.head(most)
    both = without(held_out_queries(queries, pairs, seen=True))
    gold = both.join(learnt, on="query_id", how="anti", maintain_order="left")
    return pl.concat([learnt.head(most), gold])


def tower_pairs(
    query_ids: Sequence[str],
    product_ids: Sequence[str],
    behaviour: pl.DataFrame,
    retrieve: Retrieve,
    plan: PairPlan,
    seed: int,
) -> pl.DataFrame:
    """Return query_id, product_id, source (impressed | retrieved | random), distinct pairs.

    ``behaviour`` (query_id, product_id, impressions) may be empty: a cold start. Impressed
    products that left the catalogue are skipped. ``retrieve`` searches rows of ``query_ids`` among
    ``product_ids``. A query gets M + N pairs plus the random ones, fewer only where the catalogue
    is smaller than that.
    """
    catalogue = pl.DataFrame({"product_id": product_ids}, {"product_id": pl.String})
    impressed = behaviour.filter(pl.col("impressions") > 0).join(
        catalogue, on="product_id", how="semi"
    )
    blocks = [
        _block(np.arange(start, min(start + BLOCK, len(query_ids))), query_ids, product_ids,
               impressed, retrieve, plan, np.random.default_rng([seed, start]))
        for start in range(0, len(query_ids), BLOCK)
    ]  # fmt: skip
    return pl.concat(blocks) if blocks else _frame([], [], "random")


def _block(
    rows: Rows,
    query_ids: Sequence[str],
    product_ids: Sequence[str],
    impressed: pl.DataFrame,
    retrieve: Retrieve,
    plan: PairPlan,
    rng: np.random.Generator,
) -> pl.DataFrame:
    queries = pl.Series("query_id", [query_ids[r] for r in rows], pl.String)
    products = pl.Series("product_id", product_ids, pl.String)
    retrieved = retrieve(rows, plan.impressed + plan.retrieved)
    drawn = rng.integers(0, len(products), (len(rows), SPARE * plan.random))
    ranked = pl.concat(
        [
            _most_impressed(queries, impressed, plan.impressed),
            _grid(queries, products, retrieved, "retrieved"),
            _grid(queries, products, drawn, "random"),
        ]
    ).unique(["query_id", "product_id"], keep="first", maintain_order=True)
    random = pl.col("source") == "random"
    # Impressed rows stand first, then retrieved: a running count cuts each query to its M + N.
    return ranked.with_columns(
        nth=pl.int_range(pl.len()).over("query_id", random)
    ).filter(
        pl.when(random)
        .then(pl.col("nth") < plan.random)
        .otherwise(pl.col("nth") < plan.impressed + plan.retrieved)
    ).drop("nth").sort(["query_id"], maintain_order=True)  # fmt: skip


def _most_impressed(queries: pl.Series, impressed: pl.DataFrame, most: int) -> pl.DataFrame:
    return (
        impressed.filter(pl.col("query_id").is_in(queries.to_list()))
        .sort(["query_id", "impressions", "product_id"], descending=[False, True, False])
        .group_by("query_id", maintain_order=True)
        .head(most)
        .select("query_id", "product_id", source=pl.lit("impressed"))
    )


def _grid(queries: pl.Series, products: pl.Series, rows: Rows, source: str) -> pl.DataFrame:
    """Pair query i with the products of ``rows[i]`` (Q, k), in that order; -1 is none found."""
    q = np.repeat(np.arange(len(queries)), rows.shape[1])
    there = rows.ravel() >= 0
    return _frame(queries.gather(q[there]), products.gather(rows.ravel()[there]), source)


def _frame(
    queries: pl.Series | list[str], products: pl.Series | list[str], source: str
) -> pl.DataFrame:
    return pl.DataFrame(
        {"query_id": queries, "product_id": products},
        {"query_id": pl.String, "product_id": pl.String},
    ).with_columns(source=pl.lit(source))
