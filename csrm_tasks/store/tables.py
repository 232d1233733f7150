"""Rows in and out of the relational tables as polars frames; every statement has bound values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import polars as pl
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from csrm_tasks.store.models import (
    Aggregate,
    Base,
    File,
    Label,
    LedgerEntry,
    Product,
    PublishedDay,
    Quarantined,
    Translation,
)

CHUNK = 10_000  # bound values per statement; SQLite allows 32,766


def table(model: type[Base]) -> sa.Table:
    """Return the table behind a model."""
    found = model.__table__
    assert isinstance(found, sa.Table)
    return found


FILES, PRODUCTS, LABELS = table(File), table(Product), table(Label)
TRANSLATIONS, QUARANTINE, AGGREGATES = table(Translation), table(Quarantined), table(Aggregate)
DAYS, LEDGER = table(PublishedDay), table(LedgerEntry)


def insert(connection: Connection, into: sa.Table, frame: pl.DataFrame) -> None:
    """Insert the rows of ``frame``, whose columns are columns of the table."""
    for part in frame.iter_slices(CHUNK):
        connection.execute(sa.insert(into), part.to_dicts())


def fetch(
    connection: Connection, statement: sa.Select[Any], schema: dict[str, Any]
) -> pl.DataFrame:
    """Return the rows of ``statement`` as a frame with ``schema``."""
    rows = [tuple(r) for r in connection.execute(statement)]
    return pl.DataFrame(rows, schema=schema, orient="row")


def fetch_by_key(
    connection: Connection,
    statement: sa.Select[Any],
    key: sa.Column[Any],
    values: Sequence[str],
    schema: dict[str, Any],
) -> pl.DataFrame:
    """Return the rows of ``statement`` whose ``key`` is among ``values``."""
    parts = [pl.DataFrame(schema=schema)]
    for start in range(0, len(values), CHUNK):
        chosen = statement.where(key.in_(values[start : start + CHUNK]))
        parts.append(fetch(connection, chosen, schema))
    return pl.concat(parts)
