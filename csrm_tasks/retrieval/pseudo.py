"""Pseudo query-product pairs for a market without behaviour (A21; paper 1, section 3.3)."""

from __future__ import annotations

from collections.abc import Mapping

import polars as pl

from csrm_tasks.records import Schema
from csrm_tasks.retrieval.bm25 import Bm25Index, Hits
from csrm_tasks.text import normalised

PSEUDO: Schema = {
    "query_id": pl.String,
    "product_id": pl.String,
    "locale": pl.String,
    "rank": pl.Int32,  # from 0
    "bm25": pl.Float32,
}


def pseudo_pairs(
    queries: pl.DataFrame, products: pl.DataFrame, indexes: Mapping[str, Bm25Index], k: int
) -> pl.DataFrame:
    """Return the best ``k`` products of each query in its own locale's catalogue, as PSEUDO rows.

    Of products with the same (normalised) title only the best-ranked stays. There is no cut on
    the score: how good a pair is, is the CVR ranker's to say (A21).
    """
    titles = dict(zip(products["product_id"], normalised(products["title"]), strict=True))
    rows: list[tuple[str, str, str, int, float]] = []
    for (locale,), group in sorted(queries.group_by(["locale"])):
        hits_of = distinct_hits(indexes[str(locale)], group["norm"].to_list(), titles, k)
        for query_id, hits in zip(group["query_id"], hits_of, strict=True):
            rows += [(query_id, p, str(locale), r, s) for r, (p, s) in enumerate(hits)]
    return pl.DataFrame(rows, PSEUDO, orient="row").sort("query_id", "rank")


def distinct_hits(
    index: Bm25Index, queries: list[str], titles: Mapping[str, str], k: int
) -> list[Hits]:
    """Return per query the best ``k`` hits of distinct title; fetches more where copies crowd."""
    distinct: list[Hits] = [[] for _ in queries]
    pending, limit = list(range(len(queries))), 2 * k
    while pending:
        fetched = index.search([queries[i] for i in pending], limit)
        found_now = zip(pending, fetched, strict=True)
        short: list[int] = []
        for i, hits in found_now:
            distinct[i] = _distinct(hits, titles)[:k]
            if len(distinct[i]) < k and len(hits) == limit:
                short.append(i)
        pending, limit = short, 2 * limit
    return distinct


def _distinct(hits: Hits, titles: Mapping[str, str]) -> Hits:
    """Keep the first hit of each title; a product that the catalogue has lost is dropped."""
    seen: dict[str, tuple[str, float]] = {}
    for product, score in hits:
        if product in titles:
            seen.setdefault(titles[product], (product, score))
    return list(seen.values())
