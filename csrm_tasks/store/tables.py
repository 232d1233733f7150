"""Rows in and out of the relational tables as polars frames; every statement has bound values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import polars as pl
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from csrm_tasks.store.bulk import among
from csrm_tasks.store.models import (
    Aggregate,
    Base,
    CategoryLabel,
    File,
    Interleaved,
    Label,
    LedgerEntry,
    Product,
    PublishedDay,
    Quarantined,
    QuerySide,
    Session,
    Traffic,
    Translation,
)
from csrm_tasks.text import composed_frame, is_ascii, spellings


def table(model: type[Base]) -> sa.Table:
    """Return the table behind a model."""
    found = model.__table__
    assert isinstance(found, sa.Table)
    return found


FILES, PRODUCTS, LABELS = table(File), table(Product), table(Label)
TRANSLATIONS, QUARANTINE, AGGREGATES = table(Translation), table(Quarantined), table(Aggregate)
DAYS, LEDGER, SESSIONS = table(PublishedDay), table(LedgerEntry), table(Session)
SIDES, TRAFFIC = table(QuerySide), table(Traffic)
INTERLEAVED = table(Interleaved)
CATEGORY_LABELS = table(CategoryLabel)


def fetch(
    connection: Connection, statement: sa.Select[Any], schema: dict[str, Any]
) -> pl.DataFrame:
    """Return the rows of ``statement`` as a frame with ``schema``; texts are in Unicode NFC."""
    rows = [tuple(r) for r in connection.execute(statement)]
    return composed_frame(pl.DataFrame(rows, schema=schema, orient="row"))


def fetch_by_key(
    connection: Connection,
    statement: sa.Select[Any],
    key: sa.Column[Any],
    values: Sequence[str] | pl.Series,
    schema: dict[str, Any],
) -> pl.DataFrame:
    """Return the rows of ``statement`` whose ``key`` is among ``values`` (in Unicode NFC).

    Identifiers often grow with time: then nothing lies between the least and the greatest, which
    the index tells at once (it orders bytes, as polars does).
    """
    wanted = pl.Series("value", values, dtype=pl.String)
    if not is_ascii(wanted):  # another spelling of any of them may be the least or the greatest
        wanted = spellings(wanted)
    between = statement.where(key.between(wanted.min(), wanted.max())).limit(1)
    if wanted.is_empty() or connection.execute(between).first() is None:
        return pl.DataFrame(schema=schema)
    with among(connection, key, wanted.unique()) as chosen:
        return fetch(connection, statement.where(chosen), schema)
