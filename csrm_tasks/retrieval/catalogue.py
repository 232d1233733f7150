"""Embedding and indexing one locale's catalogue, and how well its judged products are found."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from csrm_tasks.blobs import text_digest
from csrm_tasks.retrieval import trec
from csrm_tasks.retrieval.encoder import BiEncoder
from csrm_tasks.retrieval.exact import Vectors
from csrm_tasks.retrieval.index import ProductIndex, stamps
from csrm_tasks.retrieval.ivf import RECALL_SAMPLE
from csrm_tasks.sections import Retrieval

log = logging.getLogger("csrm")

Embed = Callable[[Sequence[str]], Vectors]  # product ids → (n, dim)


def index_locale(
    locale: str,
    model: BiEncoder,
    digest: str,
    tables: Mapping[str, pl.DataFrame],
    config: Retrieval,
    seed: int,
    previous: ProductIndex | None = None,
    embed: Embed | None = None,
) -> tuple[ProductIndex, dict[str, Any]]:
    """Embed and index ``tables["products"]`` (one locale's); returns the index and its facts.

    Only what ``previous`` lacks is embedded, if the same encoder made it. ``embed`` has the vectors
    of products that other tasks embedded; without it ``model`` embeds them here. Facts: kind,
    products, how many were embedded, snapshot, recall_at_100 against exact search, and drift.
    """
    products = tables["products"].sort("product_id")
    sample = tables["queries"].sort("query_id").head(RECALL_SAMPLE)["norm"].to_list()
    known = of_encoder(previous, digest)
    new, deleted = difference(known, products) if known else (products, [])
    ids, texts = new["product_id"].to_list(), new["title"].to_list()
    vectors = embed(ids) if embed else model.encode_titles(texts)
    asked = model.encode_queries(sample or products["title"].head(RECALL_SAMPLE).to_list())
    below = config.exact_below
    index = (
        known.changed(deleted, ids, texts, vectors, sample=asked, exact_below=below, seed=seed)
        if known
        else ProductIndex.build(
            locale, ids, texts, vectors, digest, sample=asked, exact_below=below, seed=seed
        )
    )
    log.info("index %s: %s, %d embedded", locale, index.info, len(ids))
    named = ("kind", "products", "recall_at_100", "drift", "snapshot")
    facts = {name: getattr(index.info, name) for name in named}
    return index, facts | {"embedded": len(ids)}


def of_encoder(previous: ProductIndex | None, digest: str) -> ProductIndex | None:
    """Return ``previous`` if its vectors are of the encoder ``digest``, to go on from."""
    return previous if previous and previous.info.encoder_digest == digest else None


def shard_of(products: pl.DataFrame, shard: int, of: int) -> pl.DataFrame:
    """Return the products of shard ``shard`` (from 0); a product is in one shard, always."""
    number = [int(text_digest("shard", p), 16) % of for p in products["product_id"]]
    return products.filter(pl.Series(number, dtype=pl.Int64) == shard)


def difference(index: ProductIndex, products: pl.DataFrame) -> tuple[pl.DataFrame, list[str]]:
    """Return the products that ``index`` lacks or holds with another title, and ids now gone."""
    stamped = products.with_columns(
        pl.Series("stamp", stamps(products["title"].to_list()), pl.UInt64)
    )
    new = stamped.join(index.entries, on=["product_id", "stamp"], how="anti")
    gone = index.entries.join(products, on="product_id", how="anti")["product_id"]
    return new.drop("stamp"), gone.to_list()


def evaluate_encoder(
    index: ProductIndex, model: BiEncoder, tables: Mapping[str, pl.DataFrame], folder: Path
) -> dict[str, dict[str, float] | None]:
    """Measure the encoder's ranking by dev labels and by purchases; write qrels and run to folder.

    Purchases are those of the snapshot's window: an EBR trained with local behaviour has seen them.
    """
    qrels = {
        "dev": trec.qrels_of_labels(tables["pairs"], "dev"),
        "bought": trec.qrels_of_purchases(tables["behaviour"]),
    }
    ids = pl.concat(list(qrels.values()))["query_id"].unique()
    asked = tables["queries"].filter(pl.col("query_id").is_in(ids.implode())).sort("query_id")
    rows, scores = index.search(model.encode_queries(asked["norm"].to_list()), trec.DEPTH)
    hits = {
        query: [(index.ids[r], s) for r, s in zip(near, cosines, strict=True) if r >= 0]
        for query, near, cosines in zip(
            asked["query_id"], rows.tolist(), scores.tolist(), strict=True
        )
    }
    run = trec.run_of(hits)
    folder.mkdir(parents=True)
    trec.write_run(run, folder / "ebr.run", "ebr")
    for name, table in qrels.items():
        trec.write_qrels(table, folder / f"{name}.qrels")
    return {name: trec.measure(table, run) for name, table in qrels.items()}
