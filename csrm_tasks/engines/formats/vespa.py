"""Vespa: operations for ``vespa feed``, one a line, and a schema to start from.

An upsert is an update with ``create``: it leaves a product's other fields alone.
"""

from __future__ import annotations

import re

import polars as pl

from csrm_tasks.engines.formats.records import (
    PRODUCT_ID,
    Engine,
    Field,
    Mapped,
    lines,
    with_vectors,
)
from csrm_tasks.errors import ConfigError
from csrm_tasks.towers.serving.embed import Floats

DOCUMENTS = re.compile(r"id:[^:\s]+:([A-Za-z_][A-Za-z0-9_]*)::")
FIELD = r"\bfield\s+{}\s+type\s+(\w+)<(\w+)>\(\w+\[(\d+)\]\)\s*"
DISTANCE = re.compile(r"distance-metric\s*:\s*([\w-]+)")


def upserts(field: Field, ids: pl.Series, vectors: Floats) -> list[bytes]:
    """Return an operation a product."""
    document_type(field)
    found = with_vectors(field, ids, vectors)
    vector = pl.struct(pl.struct(pl.col(field.name).alias("values")).alias("assign"))
    product = pl.struct(pl.col(PRODUCT_ID).alias("assign"))
    fields = pl.struct(product.alias(PRODUCT_ID), vector.alias(field.name))
    return lines(
        found.select(
            (pl.lit(field.documents) + pl.col(PRODUCT_ID)).alias("update"),
            pl.lit(True).alias("create"),
            fields.alias("fields"),
        )
    )


def deletes(field: Field, ids: pl.Series) -> list[bytes]:
    """Return an operation a product."""
    return lines(pl.select((pl.lit(field.documents) + ids).alias("remove")))


def document_type(field: Field) -> str:
    """Return the type of the documents; raises :class:`ConfigError` for another kind of id."""
    found = DOCUMENTS.fullmatch(field.documents)
    if found is None:
        raise ConfigError(
            f"--documents {field.documents!r}: is id:NAMESPACE:TYPE::, as your documents have it"
        )
    return found[1]


def schema(field: Field) -> tuple[str, str]:
    """Return a schema with the field, and a rank profile by its closeness."""
    kind = document_type(field)
    return f"{kind}.sd", "\n".join(
        [
            f"# {field.name}: vectors of {field.release} of market {field.market}",
            f"schema {kind} {{",
            f"    document {kind} {{",
            f"        field {PRODUCT_ID} type string {{",
            "            indexing: attribute | summary",
            "        }",
            f"        field {field.name} type tensor<float>(x[{field.dim}]) {{",
            "            indexing: attribute | index",
            "            attribute {",
            f"                distance-metric: {VESPA.similarities[0]}",
            "            }",
            "        }",
            "    }",
            "    rank-profile csrm {",
            "        inputs {",
            f"            query({field.name}) tensor<float>(x[{field.dim}])",
            "        }",
            "        first-phase {",
            f"            expression: closeness(field, {field.name})",
            "        }",
            "    }",
            "}",
            "",
        ]
    )


def mapped(text: str, name: str) -> list[Mapped]:
    """Read a schema's file."""
    found = []
    for field in re.finditer(FIELD.format(re.escape(name)), text):
        metric = DISTANCE.search(_block(text, field.end()))
        similarity = metric[1] if metric else "euclidean"
        found.append(Mapped("", field[1], int(field[3]), similarity, field[2]))
    return found


def _block(text: str, start: int) -> str:
    """Return the braces that begin at ``start`` and what they hold; "" where none begin there."""
    depth = 0
    for at in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[at], 0)
        if depth == 0:
            return text[start : at + 1]
    return ""


VESPA = Engine(
    schema, upserts, deletes, mapped, "tensor",
    ("prenormalized-angular", "angular", "dotproduct", "euclidean"),
    "the schema's file of your application",
)  # fmt: skip
