"""COPY and executemany put in what a plain INSERT of each row puts in, whatever the rows hold."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import polars as pl
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sqlalchemy.engine import Connection, Engine

from csrm_tasks.store.bulk import FEW, among, insert
from csrm_tasks.store.engine import open_store, writing
from csrm_tasks.store.models import Moment
from csrm_tasks.store.tables import FILES, PRODUCTS, fetch_by_key

SCHEMA = {
    "id": pl.Int64, "name": pl.String, "small": pl.Int8, "share": pl.Float64,
    "at": pl.Datetime("us", "UTC"), "raw": pl.Binary, "flag": pl.Boolean,
}  # fmt: skip
ODD = (
    "",
    "NULL",
    "\\N",
    "\\.",
    '"',
    '""',
    ",",
    "\n",
    "\r\n",
    "a\tb",
    "'; DROP TABLE x;--",
    "牛奶 🥛",
)
# PostgreSQL keeps no NUL in a text; the contracts refuse it. A surrogate is no character.
texts = st.one_of(
    st.sampled_from(ODD),
    st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=12),
)
times = st.datetimes(datetime(1, 1, 2), datetime(9999, 12, 30), timezones=st.just(UTC))
row = st.tuples(
    st.none() | texts,
    st.none() | st.integers(-128, 127),
    st.none() | st.floats(allow_nan=False, allow_infinity=False, width=32),
    st.none() | times,
    st.none() | st.binary(max_size=12),
    st.none() | st.booleans(),
)


def twin(name: str) -> sa.Table:
    columns = (
        sa.Column("id", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("name", sa.Text), sa.Column("small", sa.SmallInteger),
        sa.Column("share", sa.Float), sa.Column("at", Moment), sa.Column("raw", sa.LargeBinary),
        sa.Column("flag", sa.Boolean),
    )  # fmt: skip
    return sa.Table(name, sa.MetaData(), *columns, prefixes=["TEMPORARY"])


FAST, PLAIN = twin("Fast twin"), twin("plain")  # a name that must be quoted


@pytest.fixture
def engine(database: str) -> Engine:
    return open_store(database)


def content(connection: Connection, table: sa.Table) -> list[tuple[Any, ...]]:
    return [tuple(r) for r in connection.execute(sa.select(table).order_by(table.c.id))]


@given(rows=st.lists(row, max_size=6))
@hypothesis_settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_bulk_equals_one_insert_per_row(engine: Engine, rows: list[tuple[Any, ...]]) -> None:
    frame = pl.DataFrame([(i, *r) for i, r in enumerate(rows)], schema=SCHEMA, orient="row")
    with writing(engine, "m") as connection:
        for table in (FAST, PLAIN):
            table.create(connection)
        insert(connection, FAST, frame)
        for values in frame.to_dicts():
            connection.execute(sa.insert(PLAIN).values(**values))
        assert content(connection, FAST) == content(connection, PLAIN)
        for table in (FAST, PLAIN):
            table.drop(connection)


def test_many_rows_go_in_and_columns_may_come_in_any_order(engine: Engine) -> None:
    frame = pl.DataFrame({"name": [f"n{i}" for i in range(2_000)], "id": range(2_000)})
    with writing(engine, "m") as connection:
        FAST.create(connection)
        insert(connection, FAST, frame)
        found = content(connection, FAST)
        FAST.drop(connection)
    assert [r[:2] for r in found] == list(zip(frame["id"], frame["name"], strict=True))


@pytest.mark.parametrize("many", [3, 3 * FEW])
def test_rows_by_key_are_the_same_for_few_and_many(engine: Engine, many: int) -> None:
    values = [f"'p{i}\"" for i in range(many)]
    about = {"market": "m", "locale": "l", "day": "d", "file_id": 1} | dict.fromkeys(
        ("title", "brand", "category", "description"), ""
    )
    with writing(engine, "m") as connection:
        file = dict.fromkeys(("rows_in", "stored", "quarantined", "known"), 0)
        text = {"market": "m", "day": "d", "locale": "l", "kind": "k", "name": "n", "digest": "x"}
        connection.execute(sa.insert(FILES).values(id=1, **file, **text))
        rows = pl.DataFrame({"product_id": values}).with_columns(
            pl.lit(v).alias(c) for c, v in about.items()
        )
        insert(connection, PRODUCTS, rows)
        wanted = [*values[1:], "another", "\\.", "x" * 300, "a\0b"]  # whatever a log names
        key = PRODUCTS.c.product_id
        found = fetch_by_key(connection, sa.select(key), key, wanted, {"product_id": pl.String})
        assert sorted(found["product_id"]) == sorted(values[1:])
        with among(connection, key, wanted) as chosen:
            count = sa.select(sa.func.count()).select_from(PRODUCTS).where(chosen)
            assert connection.scalar(count) == many - 1


def test_a_row_that_breaks_a_key_takes_all_of_them_back(engine: Engine) -> None:
    frame = pl.DataFrame({"id": [1, 2, 1], "name": ["a", "b", "c"]})
    with writing(engine, "m") as connection:
        FAST.create(connection)
        with pytest.raises(Exception, match=r"(?i)unique"), connection.begin_nested():
            insert(connection, FAST, frame)
        assert content(connection, FAST) == []
        FAST.drop(connection)
