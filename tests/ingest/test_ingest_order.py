"""Out of order equals in order: whatever comes when, it ends as if it had come in its place."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sqlalchemy.engine import Connection, Engine

from csrm_tasks.artifacts import file_digest, json_digest
from csrm_tasks.errors import DataError
from csrm_tasks.ingest.contract.contracts import CONTRACTS
from csrm_tasks.ingest.reading.landing import Delivery
from csrm_tasks.ingest.storage.load import load_file
from csrm_tasks.ingest.storage.resolve import KINDS
from csrm_tasks.ingest.storage.window import LakeWindow
from csrm_tasks.ingest.validation.validate import REJECTED, ValidationResult
from csrm_tasks.settings import Settings, load_settings
from csrm_tasks.store import open_store, reading
from csrm_tasks.store.digest import store_digest
from csrm_tasks.store.lake import Lake
from csrm_tasks.store.models import Base
from csrm_tasks.store.tables import DAYS, FILES, QUARANTINE
from tests.data_fixtures import (
    KO,
    ZH,
    event,
    ingest,
    label,
    land_lines,
    land_sessions,
    product,
    session,
    snapshot,
)

DAYS_OF_WEEK = [f"2026-01-0{n}" for n in range(4, 8)]
Row = tuple[Any, ...]
Given = tuple[str, str, str, str, list[Row]]  # day, kind, locale, name, rows

day = st.sampled_from(DAYS_OF_WEEK)
product_id = st.sampled_from([f"p{n}" for n in range(3)])
text = st.sampled_from("xy")
hour = st.integers(0, 80).map(lambda h: datetime(2026, 1, 4, tzinfo=UTC) + timedelta(hours=h))
search_id = st.sampled_from([f"s{n}" for n in range(3)])
client = st.sampled_from(["", "c1", "c2"])
ROWS: dict[str, st.SearchStrategy[Row]] = {
    "catalogue": st.tuples(product_id, text, st.sampled_from([0, 0, 1])),
    "translations": st.tuples(st.sampled_from(["t0", "t1"]), text),
    "labels": st.tuples(st.sampled_from([f"l{n}" for n in range(3)]), product_id, text),
    "query_categories": st.tuples(st.sampled_from(["c0", "c1"]), text, text),
    "ubi_queries": st.tuples(search_id, text, client, hour),
    "ubi_events": st.tuples(search_id, product_id, st.sampled_from(["", "z"]), client, hour),
}
COLUMNS: dict[str, tuple[str, ...]] = {
    "catalogue": ("product_id", "title", "deleted"),
    "translations": ("translation_id", "target_text"),
    "labels": ("label_id", "product_id", "query"),
    "query_categories": ("label_id", "query", "category"),
    "ubi_queries": ("query_id", "user_query", "client_id", "timestamp"),
    "ubi_events": ("query_id", "object_id", "user_query", "client_id", "timestamp"),
}
FIXED: dict[str, Any] = {
    "kind": "title",
    "grade": 1,
    "label": 1,
    "held_out": 0,
    "action_name": "click",
}


@st.composite
def deliveries(draw: st.DrawFn) -> list[Given]:
    found = []
    for _ in range(draw(st.integers(3, 9))):
        kind = draw(st.sampled_from(KINDS))
        rows = draw(st.lists(ROWS[kind], min_size=1, max_size=4))
        locale = draw(st.sampled_from([KO, KO, ZH]))
        found.append((draw(day), kind, locale, draw(st.sampled_from(["a", "b"])), rows))
    return found


def clean(kind: str, rows: list[Row]) -> pl.DataFrame:
    frame = pl.DataFrame(rows, schema=list(COLUMNS[kind]), orient="row")
    said = {c: FIXED.get(c) for c in CONTRACTS[kind].schema if c not in frame.columns}
    schema = CONTRACTS[kind].schema
    texts = [pl.lit(v if v is not None or schema[c] != pl.String else "").alias(c)
             for c, v in said.items()]  # fmt: skip
    whole = frame.with_columns(texts).with_columns(pl.int_range(1, pl.len() + 1).alias("row"))
    return whole.select(pl.col(c).cast(t) for c, t in schema.items())


def deliver(engine: Engine, lake: Lake, market: str, one: Given) -> None:
    on, kind, locale, name, rows = one
    file = Delivery(
        "", f"{locale}/{kind}-{name}", locale, kind, "csv", "", 0, json_digest(repr(rows))
    )
    judged = ValidationResult(clean(kind, rows), pl.DataFrame(schema=REJECTED))
    load_file(LakeWindow(engine, lake, market, on), file, judged, lambda n: [b"?"] * len(n))


def in_place(given: list[Given]) -> list[Given]:
    """The last delivery of each name, in the order of days, kinds and names."""
    last = {one[:4]: one for one in given}
    return sorted(last.values(), key=lambda d: (d[0], KINDS.index(d[1]), d[2], d[3]))


@pytest.fixture(scope="module")
def engine() -> Engine:
    return open_store("sqlite://")


def held(engine: Engine, given: list[Given]) -> str:
    """The digest of what an empty store holds after these deliveries, one after the other."""
    with engine.begin() as connection:
        for table in reversed(Base.metadata.sorted_tables):
            connection.execute(sa.delete(table))
    with tempfile.TemporaryDirectory() as folder:
        lake = Lake(folder, "tiny")
        for one in given:
            deliver(engine, lake, "tiny", one)
        with engine.begin() as connection:
            assert balanced(connection)
            connection.execute(sa.delete(DAYS))  # marks of what is to be summed up: nothing is here
            return store_digest(connection, lake, "tiny")


def balanced(connection: Connection) -> bool:
    """Whether rows in are stored, known or in quarantine, of every file that counts."""
    n = sa.select(sa.func.count()).where(QUARANTINE.c.file_id == FILES.c.id).scalar_subquery()
    statement = sa.select(
        FILES.c.rows_in, FILES.c.stored + FILES.c.known + FILES.c.quarantined,
        FILES.c.quarantined, n,
    ).where(FILES.c.live)  # fmt: skip
    return all(a == b and c == d for a, b, c, d in connection.execute(statement))


@given(given=deliveries())
@hypothesis_settings(max_examples=120, deadline=None)
def test_any_deliveries_end_as_the_last_of_each_in_order(
    engine: Engine, given: list[Given]
) -> None:
    assert held(engine, given) == held(engine, in_place(given))


WEEK = ("2026-01-04", "2026-01-05", "2026-01-06", "2026-01-07")


def land_week(settings: Settings) -> None:
    """Four nights that speak of each other: each kind says something again, or otherwise."""
    for n, night in enumerate(WEEK):
        names = [product(i, f"상품 {i} {'새' if i == n else ''}") for i in range(3 + n)]
        land_lines(settings, night, f"{KO}/catalogue.jsonl", names)
        land_lines(settings, night, f"{ZH}/catalogue.jsonl", [product(1, f"商品 {n % 2}")])
        land_lines(settings, night, f"{KO}/labels.jsonl", [
            label("again", "우유", "p1", n % 3), label(f"new{n}", "우유", "p2", n % 3, "ann"),
            label(f"early{n}", "라면", f"p{3 + n}", 2), label(f"x{n}", "두유", f"p{n}", 1, "bob"),
        ])  # fmt: skip
        land_lines(settings, night, f"{ZH}/labels.jsonl", [
            label(f"g{n}{r}", f"牛奶 {n // 2}", "p1", 2 - (r == n), f"r{r}") for r in range(8)
        ])  # fmt: skip
        again = session(1, ("우유", "라면")[n % 2], ["p0", "p1", f"p{2 + n}"], night, click="p1")
        land_sessions(settings, night, KO, [again, session(f"n{n}", "두유", ["p2"], night)])
    early = [event("n2", "purchase", "p2", 0, WEEK[2]), event("n0", "click", "p2", 0, WEEK[0])]
    land_lines(settings, WEEK[1], f"{KO}/ubi_events-late.jsonl", early)


def correct(settings: Settings, night: str) -> None:
    """A fuller file of a night that was delivered before."""
    names = [product(i, f"상품 {i} 고침") for i in range(5)]
    land_lines(settings, night, f"{KO}/catalogue.jsonl", names)


def state(settings: Settings) -> tuple[str, dict[str, str]]:
    """The digest of the store, and of each table of its snapshot."""
    with reading(open_store(settings.db_url)) as connection:
        digest = store_digest(connection, Lake(settings.lake, "tiny"), "tiny")
    found = snapshot(settings, 2, WEEK[-1])
    names = ("products", "queries", "pairs", "conversions", "translations", "behaviour")
    return digest, {n: file_digest(found.file(f"{n}.parquet")) for n in names}


def taken_in(home: Path, nights: Sequence[str], corrected: str | None) -> tuple[str, Any]:
    """Take nights in; the corrected one comes again at the end. Some cannot be published at first:
    what they speak of is not there.
    """
    settings = load_settings({"CSRM_HOME": str(home)})
    land_week(settings)
    for night in nights:
        with contextlib.suppress(DataError):
            ingest(settings, night)
    if corrected:
        correct(settings, corrected)
        ingest(settings, corrected)
    return state(settings)


def test_every_order_of_nights_ends_in_one_digest_and_one_snapshot(tmp_path: Path) -> None:
    """A handful of whole runs, all five steps; the property above has the many."""
    orders = [WEEK, WEEK[::-1], (WEEK[2], WEEK[0], WEEK[3], WEEK[1])]
    found = [taken_in(tmp_path / str(n), order, None) for n, order in enumerate(orders)]
    assert found == found[:1] * len(orders)


def test_a_night_that_is_missing_or_corrected_ends_alike_in_every_order(tmp_path: Path) -> None:
    there = (WEEK[0], WEEK[2], WEEK[3])
    found = [
        taken_in(tmp_path / str(n), order, WEEK[2]) for n, order in enumerate((there, there[::-1]))
    ]
    assert found[0] == found[1]
