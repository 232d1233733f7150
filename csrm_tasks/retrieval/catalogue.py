"""Embedding and indexing one locale's catalogue, and how well its judged products are found."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import polars as pl

from csrm_tasks.retrieval.encoder import BiEncoder
from csrm_tasks.retrieval.index import ProductIndex
from csrm_tasks.retrieval.ivf import RECALL_SAMPLE
from csrm_tasks.retrieval.quality import recall_at, relevant_products
from csrm_tasks.retrieval.segment import stamp
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
    previous: ProductIndex | None = None,
) -> tuple[ProductIndex, dict[str, Any]]:
    """Embed and index ``tables["products"]`` (one locale's); returns the index and its facts.

    Only what ``previous`` lacks is embedded, if the same encoder made it. Facts: kind, products,
    how many were embedded, snapshot, recall_at_100 against exact search, drift, and
    dev_recall_at_20, the mean share of a dev query's products graded ≥ 1 that are found (None
    without such a query).
    """
    products = tables["products"].sort("product_id")
    sample = tables["queries"].sort("query_id").head(RECALL_SAMPLE)["norm"].to_list()
    known = previous if previous and previous.info.encoder_digest == digest else None
    new, deleted = difference(known, products) if known else (products, [])
    ids, texts = new["product_id"].to_list(), new["title"].to_list()
    vectors = model.encode(texts)
    asked = model.encode(sample or products["title"].head(RECALL_SAMPLE).to_list())
    below = config.exact_below
    index = (
        known.changed(deleted, ids, texts, vectors, sample=asked, exact_below=below, seed=seed)
        if known
        else ProductIndex.build(
            locale, ids, texts, vectors, digest, sample=asked, exact_below=below, seed=seed
        )
    )
    recall = dev_recall(index, model, tables["queries"], tables["pairs"])
    log.info("index %s: %s, %d embedded, dev recall@%d %s",
             locale, index.info, len(ids), FOUND_AT, recall)  # fmt: skip
    named = ("kind", "products", "recall_at_100", "drift", "snapshot")
    facts = {name: getattr(index.info, name) for name in named}
    return index, facts | {"embedded": len(ids), "dev_recall_at_20": recall}


def difference(index: ProductIndex, products: pl.DataFrame) -> tuple[pl.DataFrame, list[str]]:
    """Return the products that ``index`` lacks or holds with another title, and ids now gone."""
    stamps = pl.Series("stamp", [stamp(t) for t in products["title"]], pl.UInt64)
    stamped = products.with_columns(stamps)
    new = stamped.join(index.entries, on=["product_id", "stamp"], how="anti")
    gone = index.entries.join(products, on="product_id", how="anti")["product_id"]
    return new.drop("stamp"), gone.to_list()


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
