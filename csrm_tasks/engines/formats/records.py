"""What the engines' modules share: a vector field, an engine, records as lines of JSON."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass

import polars as pl

from csrm_tasks.towers.serving.embed import Floats

PRODUCT_ID = "product_id"  # field of a document that names the product as /score knows it


@dataclass(frozen=True)
class Field:
    """A vector field: its name, how wide it is, and whose vectors it holds."""

    name: str
    dim: int
    market: str
    release: str
    documents: str  # what a document's identifier begins with, where an engine has such


@dataclass(frozen=True)
class Mapped:
    """What an index says of its vector field."""

    where: str  # of the index, in the file
    kind: str
    dim: object
    similarity: str
    element: str = "float"


@dataclass(frozen=True)
class Form:
    """How records make a file: what begins it, stands between them, and ends it."""

    begin: bytes = b""
    between: bytes = b""
    end: bytes = b""

    def join(self, records: list[bytes]) -> bytes:
        """Return the file's bytes."""
        return self.begin + self.between.join(records) + self.end


LINES = Form()


@dataclass(frozen=True)
class Engine:
    """How one engine takes vectors."""

    schema: Callable[[Field], tuple[str, str]]  # name and text of its schema's file
    upserts: Callable[[Field, pl.Series, Floats], list[bytes]]  # a record a product
    deletes: Callable[[Field, pl.Series], list[bytes]]
    mapped: Callable[[str, str], list[Mapped]]  # text of a schema, name of a field
    kind: str  # type of the field
    similarities: tuple[str, ...]  # the first is written; vectors of length 1: all rank alike
    ask: str  # how its schema is got
    suffix: str = "ndjson"
    upsert_form: Form = LINES
    delete_form: Form = LINES
    longest: int | None = None  # bytes of an identifier


def lines(frame: pl.DataFrame) -> list[bytes]:
    """Return each row as JSON with a line feed; float32 in the fewest digits that give it back."""
    out = io.BytesIO()
    frame.write_ndjson(out)
    return out.getvalue().splitlines(keepends=True)


def with_vectors(field: Field, ids: pl.Series, vectors: Floats) -> pl.DataFrame:
    """Return a table of PRODUCT_ID and the field."""
    column = pl.Series(field.name, vectors, dtype=pl.Array(pl.Float32, field.dim))
    return pl.DataFrame([ids.alias(PRODUCT_ID), column])
