"""OpenSearch and Elasticsearch: bodies of ``POST INDEX/_bulk`` and of ``PUT INDEX``.

An upsert is a partial update with ``doc_as_upsert``: it leaves a product's other fields alone, and
makes the document where there is none. A document's ``_id`` is the product's identifier, which
also stands in ``product_id``: search pipelines see no ``_id``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import polars as pl

from csrm_tasks.engines.formats.records import (
    PRODUCT_ID,
    Engine,
    Field,
    Mapped,
    lines,
    with_vectors,
)
from csrm_tasks.json_files import json_text
from csrm_tasks.towers.serving.embed import Floats

LONGEST = 512  # bytes of an _id


def upserts(field: Field, ids: pl.Series, vectors: Floats) -> list[bytes]:
    """Return two lines a product: the action and its document."""
    found = with_vectors(field, ids, vectors)
    actions = lines(found.select(pl.struct(pl.col(PRODUCT_ID).alias("_id")).alias("update")))
    documents = lines(
        found.select(
            pl.struct(PRODUCT_ID, field.name).alias("doc"), pl.lit(True).alias("doc_as_upsert")
        )
    )
    return [action + document for action, document in zip(actions, documents, strict=True)]


def deletes(_field: Field, ids: pl.Series) -> list[bytes]:
    """Return a line a product."""
    return lines(pl.select(pl.struct(ids.alias("_id")).alias("delete")))


def opensearch_index(field: Field) -> tuple[str, str]:
    """Return the body of ``PUT INDEX``; the engine that knows cosine in every version is Lucene."""
    method = {"name": "hnsw", "engine": "lucene", "space_type": OPENSEARCH.similarities[0]}
    vector = {"type": OPENSEARCH.kind, "dimension": field.dim, "method": method}
    return "index.json", json_text(
        {"settings": {"index": {"knn": True}}, "mappings": _mappings(field, vector)}
    )


def elasticsearch_index(field: Field) -> tuple[str, str]:
    """Return the body of ``PUT INDEX``."""
    vector = {
        "type": ELASTICSEARCH.kind, "dims": field.dim, "index": True,
        "similarity": ELASTICSEARCH.similarities[0],
    }  # fmt: skip
    return "index.json", json_text({"mappings": _mappings(field, vector)})


def _mappings(field: Field, vector: dict[str, Any]) -> dict[str, Any]:
    about = {"market": field.market, "release": field.release}
    properties = {PRODUCT_ID: {"type": "keyword"}, field.name: vector}
    return {"_meta": {"csrm": about}, "properties": properties}


def opensearch_mapped(text: str, name: str) -> list[Mapped]:
    """Read what ``GET INDEX/_mapping`` answers, or the body of ``PUT INDEX``."""
    found = []
    for where, one in _fields(json.loads(text), name, ""):
        method = one.get("method")
        space = method.get("space_type") if isinstance(method, dict) else None
        space = space or one.get("space_type") or "l2"
        element = str(one.get("data_type", "float"))
        found.append(Mapped(where, str(one.get("type")), one.get("dimension"), space, element))
    return found


def elasticsearch_mapped(text: str, name: str) -> list[Mapped]:
    """Read what ``GET INDEX/_mapping`` answers, or the body of ``PUT INDEX``."""
    return [
        Mapped(
            where, str(one.get("type")), one.get("dims"), str(one.get("similarity", "cosine")),
            str(one.get("element_type", "float")),
        )
        for where, one in _fields(json.loads(text), name, "")
    ]  # fmt: skip


def _fields(value: object, name: str, where: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the definitions of a field, however deep the answer holds an index's properties."""
    if not isinstance(value, dict):
        return
    properties = value.get("properties")
    if isinstance(properties, dict) and isinstance(properties.get(name), dict):
        yield where, properties[name]
    for key, inner in value.items():
        if key != "properties":
            yield from _fields(inner, name, where or ("" if key == "mappings" else key))


OPENSEARCH = Engine(
    opensearch_index, upserts, deletes, opensearch_mapped, "knn_vector",
    ("cosinesimil", "innerproduct", "l2"), "GET INDEX/_mapping", longest=LONGEST,
)  # fmt: skip
ELASTICSEARCH = Engine(
    elasticsearch_index, upserts, deletes, elasticsearch_mapped, "dense_vector",
    ("cosine", "dot_product", "max_inner_product", "l2_norm"), "GET INDEX/_mapping",
    longest=LONGEST,
)  # fmt: skip
