"""Embedding and indexing one locale's catalogue, and how well its judged products are found."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import polars as pl

from csrm_tasks.retrieval.encoder import BiEncoder
from csrm_tasks.retrieval.index import RECALL_SAMPLE, ProductIndex
from csrm_tasks.retrieval.quality import recall_at, relevant_products
from csrm_tasks.sections import Retrieval

log = logging.getLogger("csrm")

FOUND_AT = 20  # products per query in the measured recall of judged pairs


def index_locale(
    locale: str,
    model: BiEncoder,
    digest: str,
    tables: Mapping[str, pl.DataFrame],
    config: Retrieval,
    seed: int,
) -> tuple[ProductIndex, dict[str, Any]]:
    """Embed and index ``tables["products"]`` (one locale's); returns the index and its facts.

    Facts: kind, products, recall_at_100 against exact search, and dev_recall_at_20, the mean share
    of a dev query's products graded ≥ 1 that are found (None without such a query).
    """
    products = tables["products"].sort("product_id")
    vectors = model.encode(products["title"].to_list())
    sample = tables["queries"].sort("query_id").head(RECALL_SAMPLE)["norm"].to_list()
    index = ProductIndex.build(
        locale,
        products["product_id"].to_list(),
        vectors,
        digest,
        sample=model.encode(sample) if sample else vectors[:RECALL_SAMPLE],
        exact_below=config.exact_below,
        seed=seed,
    )
    recall = dev_recall(index, model, tables["queries"], tables["pairs"])
    log.info("index %s: %s, dev recall@%d %s", locale, index.info, FOUND_AT, recall)
    facts = {
        "kind": index.info.kind,
        "products": index.info.products,
        "recall_at_100": index.info.recall_at_100,
        "dev_recall_at_20": recall,
    }
    return index, facts


def dev_recall(
    index: ProductIndex, model: BiEncoder, queries: pl.DataFrame, pairs: pl.DataFrame
) -> float | None:
    """Return recall@20 of the dev queries' products graded ≥ 1 (None where there are none)."""
    relevant = relevant_products(pairs.filter(pl.col("split") == "dev"))
    asked = queries.filter(pl.col("query_id").is_in(list(relevant)))
    if asked.is_empty():
        return None
    rows, _ = index.search(model.encode(asked["norm"].to_list()), FOUND_AT)
    found = [[index.ids[r] for r in row if r >= 0] for row in rows.tolist()]
    return recall_at(dict(zip(asked["query_id"], found, strict=True)), relevant)
