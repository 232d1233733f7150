"""Rows of relational kinds in and out of their tables, and which rows of a file were known."""

from __future__ import annotations

import polars as pl
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from csrm_tasks.ingest.contracts import CONTRACTS
from csrm_tasks.ingest.identity import Outcome
from csrm_tasks.ingest.resolve import SQL_TABLES
from csrm_tasks.ingest.window import Window
from csrm_tasks.store.bulk import insert
from csrm_tasks.store.tables import fetch


def write_rows(
    connection: Connection,
    window: Window,
    kind: str,
    locale: str,
    stored: pl.DataFrame,
    file_id: int,
) -> None:
    """Add rows that were found new to the table of their kind, as those of one file."""
    about = {"market": window.market, "day": window.day, "locale": locale, "file_id": file_id}
    rows = stored.drop("row").with_columns(pl.lit(v).alias(c) for c, v in about.items())
    insert(connection, SQL_TABLES[kind], rows)


def take_rows(
    connection: Connection, window: Window, kind: str, locale: str, file_id: int
) -> pl.Series:
    """Remove what one file of the window's day stored, and return its identifiers."""
    table = SQL_TABLES[kind]
    key = table.c[identifier(kind)]
    here = (
        table.c.market == window.market,
        table.c.locale == locale,
        table.c.day == window.day,
        table.c.file_id == file_id,
    )
    keys = fetch(connection, sa.select(key).where(*here), {key.name: pl.String})[key.name]
    connection.execute(sa.delete(table).where(*here))
    return keys


def identifier(kind: str) -> str:
    """Return the column by which files of a kind speak of the same thing; of events, the search."""
    return "query_id" if kind == "ubi_events" else CONTRACTS[kind].columns[0].name


def known_rows(clean: pl.DataFrame, outcome: Outcome) -> pl.DataFrame:
    """Return the rows of ``clean`` that were known: neither stored, refused nor ignored."""
    others = pl.concat(x.select("row") for x in (outcome.stored, outcome.refused, outcome.ignored))
    return clean.join(others, on="row", how="anti", maintain_order="left")
