"""Rows of files in and out of the store: of relational kinds in their tables, others in the lake.

What was stored of a file and its rows that were not (kept in the lake, see ``unstored``) are
together the rows as its contract read them, so that they can be judged again without the file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from csrm_tasks.ingest.contract.contracts import CONTRACTS
from csrm_tasks.ingest.contract.identity import Outcome
from csrm_tasks.ingest.storage.window import LakeWindow
from csrm_tasks.store.bulk import among, insert
from csrm_tasks.store.lake import TABLES, Stored
from csrm_tasks.store.tables import (
    CATEGORY_LABELS,
    LABELS,
    PRODUCTS,
    TRANSLATIONS,
    fetch,
    fetch_by_key,
)

SQL_TABLES = {
    "catalogue": PRODUCTS,
    "labels": LABELS,
    "query_categories": CATEGORY_LABELS,
    "translations": TRANSLATIONS,
}
# How the lake calls the columns of a contract.
IN_LAKE = {
    "query_id": "search_id", "user_query": "query", "timestamp": "at",
    "object_id": "product_id", "action_name": "action", "query_response_hit_ids": "hits",
}  # fmt: skip
IGNORED = "_ignored"  # whether a row that is not kept is an ignored one


def write_rows(
    connection: Connection,
    window: LakeWindow,
    kind: str,
    locale: str,
    stored: pl.DataFrame,
    file_id: int,
) -> None:
    """Add rows that were found new to the table of their kind, as those of one file."""
    about = {"market": window.market, "day": window.day, "locale": locale, "file_id": file_id}
    rows = stored.with_columns(pl.lit(v).alias(c) for c, v in about.items())
    insert(connection, SQL_TABLES[kind], rows)


def table_rows(
    connection: Connection,
    market: str,
    files: Sequence[Mapping[Any, Any]],
    key: str,
    ids: pl.Series,
) -> pl.DataFrame:
    """Return what files of one kind stored with ``ids`` in the column ``key``: the contract's
    schema and ``file_id``.
    """
    into = SQL_TABLES[files[0]["kind"]]
    schema = CONTRACTS[files[0]["kind"]].schema | {"file_id": pl.Int64}
    of_files = (
        into.c.market == market,
        into.c.day.in_({f["day"] for f in files}),
        into.c.file_id.in_([f["id"] for f in files]),
    )
    statement = sa.select(*(into.c[c] for c in schema)).where(*of_files)
    return fetch_by_key(connection, statement, into.c[key], ids, schema).sort("file_id", "row")


def table_keys(connection: Connection, market: str, file: Mapping[Any, Any], key: str) -> pl.Series:
    """Return the identifiers of what one file stored."""
    into = SQL_TABLES[file["kind"]]
    statement = sa.select(into.c[key]).where(*_of_file(into, market, file))
    return fetch(connection, statement, {key: pl.String})[key]


def take_rows(connection: Connection, market: str, file: Mapping[Any, Any], ids: pl.Series) -> None:
    """Remove what one file stored of some identifiers."""
    into = SQL_TABLES[file["kind"]]
    with among(connection, into.c[identifier(file["kind"])], ids) as chosen:
        connection.execute(sa.delete(into).where(*_of_file(into, market, file), chosen))


def _of_file(into: sa.Table, market: str, file: Mapping[Any, Any]) -> list[sa.ColumnElement[bool]]:
    return [
        into.c.market == market, into.c.locale == file["locale"], into.c.day == file["day"],
        into.c.file_id == file["id"],
    ]  # fmt: skip


def identifier(kind: str) -> str:
    """Return the column by which files of a kind speak of the same thing; of events, the search."""
    return "query_id" if kind == "ubi_events" else CONTRACTS[kind].columns[0].name


def as_read(kind: str, stored: pl.DataFrame) -> pl.DataFrame:
    """Turn rows of the lake into what the contract had read."""
    frame = stored.with_columns(pl.col("row").fill_null(0))
    if kind == "ubi_events":
        # A file of an earlier version does not say whose the query is: then it is the search's.
        own = pl.when("own").then("query").otherwise(pl.lit(""))
        frame = frame.with_columns(own.alias("query"))
    schema = CONTRACTS[kind].schema
    return frame.select(pl.col(IN_LAKE.get(c, c)).cast(t).alias(c) for c, t in schema.items())


def unstored(clean: pl.DataFrame, outcome: Outcome) -> pl.DataFrame:
    """Return the rows of ``clean`` that are not kept, and which of them are ignored ones.

    The others are known, or refused by what else is stored.
    """
    rows = clean.join(outcome.lake, on="row", how="anti", maintain_order="left")
    return rows.with_columns(pl.col("row").is_in(outcome.ignored["row"].implode()).alias(IGNORED))


def read_unstored(window: LakeWindow, file: Mapping[Any, Any]) -> pl.DataFrame:
    """Return what :func:`unstored` kept of a stored file (a row of FILES)."""
    empty = pl.DataFrame(schema=CONTRACTS[file["kind"]].schema | {IGNORED: pl.Boolean})
    if file["known_part"] is None:
        return empty
    found = window.lake.read_unstored(place_of(file, file["known_part"]))
    whole = pl.concat([empty, found], how="diagonal_relaxed").select(empty.columns)
    # Of a version whose contract had fewer columns: empty, as if the file had not had them.
    defaults = {c.name: c.default for c in CONTRACTS[file["kind"]].columns if c.default is not None}
    texts = pl.selectors.string().fill_null("")
    ignored = pl.col(IGNORED).fill_null(False)
    return whole.with_columns(
        texts, ignored, *(pl.col(c).fill_null(v) for c, v in defaults.items())
    )


def read_lake(window: LakeWindow, file: Mapping[Any, Any]) -> pl.DataFrame:
    """Return what the lake holds of a stored file of its kinds."""
    kind = file["kind"]
    return window.lake.read(kind, [place_of(file, file["part"])], list(TABLES[kind][1]))


def place_of(file: Mapping[Any, Any], part: str) -> Stored:
    """Return the lake file ``part`` of a row of FILES."""
    return Stored(file["kind"], file["day"], file["locale"], part)
