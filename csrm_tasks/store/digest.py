"""One number for all that a market's store and lake hold, to compare two of them by.

Rows count whatever their order and their surrogate keys, so the digest is the same on SQLite and
PostgreSQL, after a run that was killed and finished, and in whatever order the files came. What a
correction replaced counts no longer. The ledger is not in it: it has its own.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from csrm_tasks.store.lake import TABLES, Lake, Stored
from csrm_tasks.store.tables import (
    AGGREGATES,
    CATEGORY_LABELS,
    DAYS,
    FILES,
    INTERLEAVED,
    LABELS,
    PRODUCTS,
    QUARANTINE,
    SESSIONS,
    TRAFFIC,
    TRANSLATIONS,
)

RELATIONAL = (
    FILES,
    PRODUCTS,
    LABELS,
    CATEGORY_LABELS,
    TRANSLATIONS,
    QUARANTINE,
    AGGREGATES,
    SESSIONS,
    INTERLEAVED,
    TRAFFIC,
    DAYS,
)
SURROGATE = {"id", "file_id", "supersedes", "part", "known_part"}  # instead: the file's own name
# The bytes of a quarantined row are the file's (its digest counts) and not always as delivered:
# of one that was stored before a later delivery refused it they are written anew.
LEFT_OUT = SURROGATE | {"raw"}
FETCHED = 10_000  # rows held at a time


def store_digest(connection: Connection, lake: Lake, market: str, day: str | None = None) -> str:
    """Return the digest of a market's rows and events, of all days or of one, in hex."""
    total = 0
    for table in RELATIONAL:
        total += _added(table.name, _rows(connection, table, market, day))
    for file in _lake_files(connection, market, day):
        events = lake.read(file.kind, [file], list(TABLES[file.kind][1]))
        total += _added(f"{file.kind} {file.day}", events.iter_rows())
    return f"{total % 2**256:064x}"


def _added(name: str, rows: Iterable[Iterable[Any]]) -> int:
    """Sum the rows' hashes: the order in which they come makes no difference."""
    return sum(
        int.from_bytes(hashlib.sha256(json.dumps([name, *row], default=_plain).encode()).digest())
        for row in rows
    )


def _plain(value: datetime | bytes) -> str:
    if isinstance(value, datetime):
        return value.isoformat()
    return bytes(value).hex()


def _rows(
    connection: Connection, table: sa.Table, market: str, day: str | None
) -> Iterator[tuple[Any, ...]]:
    columns = [c for c in table.c if c.name not in LEFT_OUT]
    statement = sa.select(*columns)
    about = table
    if "file_id" in table.c:
        statement = statement.add_columns(FILES.c.day, FILES.c.name, FILES.c.digest)
        statement = statement.join(FILES, FILES.c.id == table.c.file_id)
        about = FILES
    statement = statement.where(about.c.market == market)
    if about is FILES:
        statement = statement.where(FILES.c.live)
    if day is not None:
        statement = statement.where(about.c.day == day)
    found = connection.execute(statement.execution_options(yield_per=FETCHED))
    return (tuple(row) for row in found)


def _lake_files(connection: Connection, market: str, day: str | None) -> list[Stored]:
    statement = (
        sa.select(FILES.c.kind, FILES.c.day, FILES.c.locale, FILES.c.part)
        .where(FILES.c.market == market, FILES.c.live, FILES.c.part.is_not(None))
        .order_by(FILES.c.id)
    )
    if day is not None:
        statement = statement.where(FILES.c.day == day)
    return [Stored(*row) for row in connection.execute(statement)]
