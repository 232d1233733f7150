"""Solr: bodies of ``POST COLLECTION/update`` and of ``POST COLLECTION/schema``.

Whole documents of a collection of its own, as Solr's guide has them: a document of that identifier
is replaced. The schema's ``uniqueKey`` is ``id``, as in Solr's own schemas.
"""

from __future__ import annotations

import json
from typing import Any

import polars as pl

from csrm_tasks.engines.formats.records import (
    PRODUCT_ID,
    Engine,
    Field,
    Form,
    Mapped,
    lines,
    with_vectors,
)
from csrm_tasks.json_files import json_text
from csrm_tasks.towers.serving.embed import Floats

CLASS = "solr.DenseVectorField"


def upserts(field: Field, ids: pl.Series, vectors: Floats) -> list[bytes]:
    """Return a document a product."""
    found = with_vectors(field, ids, vectors).rename({PRODUCT_ID: "id"})
    return [line.rstrip() for line in lines(found)]


def deletes(_field: Field, ids: pl.Series) -> list[bytes]:
    """Return an identifier a product."""
    return [json.dumps(product, ensure_ascii=False).encode() for product in ids]


def schema(field: Field) -> tuple[str, str]:
    """Return the commands that add the field and its type."""
    kind = {
        "name": field.name, "class": CLASS, "vectorDimension": field.dim,
        "similarityFunction": SOLR.similarities[0],
    }  # fmt: skip
    column = {"name": field.name, "type": field.name, "indexed": True, "stored": True}
    return "schema.json", json_text({"add-field-type": kind, "add-field": column})


def mapped(text: str, name: str) -> list[Mapped]:
    """Read what ``GET COLLECTION/schema`` answers, or the commands of :func:`schema`."""
    value = json.loads(text)
    value = value.get("schema", value) if isinstance(value, dict) else {}
    kinds = {one.get("name"): one for one in _listed(value, "fieldTypes", "add-field-type")}
    found: list[Mapped] = []
    for column in _listed(value, "fields", "add-field"):
        if column.get("name") == name:
            kind = kinds.get(column.get("type"), {})
            given = kind.get("vectorDimension")
            found.append(
                Mapped(
                    "", str(kind.get("class")),
                    int(given) if isinstance(given, str) and given.isdecimal() else given,
                    str(kind.get("similarityFunction", "euclidean")),
                    str(kind.get("vectorEncoding", "FLOAT32")).replace("FLOAT32", "float"),
                )
            )  # fmt: skip
    return found


def _listed(value: dict[str, Any], *names: str) -> list[dict[str, Any]]:
    found: Any = next((value[name] for name in names if name in value), [])
    found = found if isinstance(found, list) else [found]
    return [one for one in found if isinstance(one, dict)]


SOLR = Engine(
    schema, upserts, deletes, mapped, CLASS, ("cosine", "dot_product", "euclidean"),
    "GET COLLECTION/schema", "json", Form(b"[\n", b",\n", b"\n]\n"),
    Form(b'{"delete":[\n', b",\n", b"\n]}\n"),
)  # fmt: skip
