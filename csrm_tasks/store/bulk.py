"""Many rows at once: COPY on PostgreSQL, ``executemany`` on SQLite; no loop over rows here.

Statements are composed from table metadata (quoted identifiers, bound values); what a market
delivers only ever travels as data.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import polars as pl
import sqlalchemy as sa
from sqlalchemy.engine import Connection

FEW = 1_000  # values that go into a statement itself
COPIED = 100_000  # rows of one COPY: the text of two is held in memory
SENT = 1 << 20  # bytes handed over at once: each time waits for the interpreter's lock
SQLITE_TIME = "%Y-%m-%d %H:%M:%S%.6f"  # as SQLAlchemy writes a DateTime
COPY_TIME = "%Y-%m-%d %H:%M:%S%.6f+00"


def insert(connection: Connection, into: sa.Table, frame: pl.DataFrame) -> None:
    """Insert the rows of ``frame``, whose columns are columns of the table; times are UTC."""
    if frame.is_empty():
        return
    write = _copy if connection.dialect.name == "postgresql" else _execute_many
    write(connection, into, frame)


def _execute_many(connection: Connection, into: sa.Table, frame: pl.DataFrame) -> None:
    statement = sa.insert(into).values({c: sa.bindparam(c) for c in frame.columns})
    compiled = statement.compile(dialect=connection.dialect, column_keys=frame.columns)
    times = pl.selectors.datetime().dt.strftime(SQLITE_TIME)
    rows = frame.select(compiled.positiontup or []).with_columns(times)
    connection.exec_driver_sql(str(compiled), rows.rows())


def _copy(connection: Connection, into: sa.Table, frame: pl.DataFrame) -> None:
    from psycopg2 import sql  # type: ignore[import-untyped]

    statement = sql.SQL("COPY {} ({}) FROM STDIN WITH (FORMAT csv)").format(
        sql.Identifier(into.name), sql.SQL(", ").join(map(sql.Identifier, frame.columns))
    )
    raw: Any = connection.connection.dbapi_connection
    with raw.cursor() as cursor, ThreadPoolExecutor(1) as pool:
        # The next slice is written (on another core) while the server takes one in.
        parts = frame.iter_slices(COPIED)
        following = pool.submit(copy_text, next(parts))
        for part in parts:
            text, following = following.result(), pool.submit(copy_text, part)
            cursor.copy_expert(statement, text, SENT)
        cursor.copy_expert(statement, following.result(), SENT)


def copy_text(frame: pl.DataFrame) -> io.BytesIO:
    """Return ``frame`` as the CSV that COPY reads: empty text is quoted, null is nothing at all.

    Of one column everything is quoted: a line of backslash and dot alone would end the data.
    """
    binary = [c for c, t in frame.schema.items() if t == pl.Binary]
    hexed = frame.with_columns(
        pl.format("\\x{}", pl.col(c).bin.encode("hex")).alias(c) for c in binary
    )
    target = io.BytesIO()
    hexed.write_csv(
        target,
        include_header=False,
        quote_style="necessary" if frame.width > 1 else "non_numeric",
        datetime_format=COPY_TIME,
    )
    target.seek(0)
    return target


@contextmanager
def among(
    connection: Connection, key: sa.Column[Any], values: Sequence[Any] | pl.Series
) -> Iterator[sa.ColumnElement[bool]]:
    """Give the condition that ``key`` is among ``values``; it holds inside the block.

    More than a few go into a temporary table: the join asks the index once per value, whatever
    history is behind it, and no statement grows with the delivery. Texts may be longer than the
    key's, and those with a NUL, which no text of PostgreSQL holds, are left out.
    """
    kind = key.type
    if isinstance(kind, sa.String):  # what is asked for may be what no key can be
        kind = sa.Text(collation=kind.collation)
        texts = pl.Series(values, dtype=pl.String)
        values = texts.filter(~texts.str.contains("\0", literal=True).fill_null(False))
    if len(values) <= FEW:
        yield key.in_(list(values))
        return
    column = sa.Column("value", kind)
    table = sa.Table("csrm_among", sa.MetaData(), column, prefixes=["TEMPORARY"])
    table.create(connection)
    insert(connection, table, pl.DataFrame({"value": values}))
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql("ANALYZE csrm_among")  # a new table has no statistics
    yield key.in_(sa.select(column))
    table.drop(connection)  # where the block fails, the transaction goes, and the table with it
