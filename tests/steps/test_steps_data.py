"""The nightly steps: every row stored, quarantined or known; once, whatever happens."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import sqlalchemy as sa

from csrm_tasks.errors import DataError
from csrm_tasks.sections import Ingest
from csrm_tasks.settings import Settings, load_settings
from csrm_tasks.steps import run_step
from csrm_tasks.store.engine import open_store, reading
from csrm_tasks.store.lake import Lake
from csrm_tasks.store.tables import AGGREGATES, FILES, LABELS, PRODUCTS, QUARANTINE, fetch
from tests.data_fixtures import (
    DAY0,
    DAY1,
    KO,
    ZH,
    ingest,
    label,
    land_lines,
    land_sessions,
    market,
    product,
    session,
)


@pytest.fixture
def settings(both_settings: Settings) -> Settings:
    return both_settings


def land_first_day(settings: Settings) -> None:
    land_lines(settings, DAY0, f"{KO}/catalogue.jsonl", [product(i, f"상품 {i}") for i in range(6)])
    land_lines(settings, DAY0, f"{ZH}/catalogue.jsonl", [product(i, f"商品 {i}") for i in range(6)])
    land_lines(settings, DAY0, f"{KO}/labels.jsonl", [
        label(1, "우유", "p1", 2), label(2, "우유", "p2", "substitute"), label(3, "우유", "p9", 1),
        label(4, "우유", "p3", 7), label(1, "우유", "p1", 2), label(2, "우유", "p2", "exact"),
    ])  # fmt: skip
    land_sessions(settings, DAY0, KO, [
        session(1, "우유", ["p0", "p1", "p2"], click="p1", purchase="p1"),
        session(2, "우유 ", ["p0", "p1", "p2"], click="p0"),
        session(3, "라면", ["p3", "p4", "p99"], click="p4", add_to_cart="p4", purchase="p4"),
    ])  # fmt: skip


def rows(settings: Settings, table: sa.Table) -> list[tuple[object, ...]]:
    with reading(open_store(settings.db_url)) as connection:
        return [tuple(r) for r in connection.execute(sa.select(table).order_by(*table.primary_key))]


def everything(settings: Settings) -> dict[str, list[tuple[object, ...]]]:
    return {t.name: rows(settings, t) for t in (FILES, PRODUCTS, LABELS, QUARANTINE, AGGREGATES)}


def test_every_row_is_stored_quarantined_or_known(settings: Settings) -> None:
    land_first_day(settings)
    made = ingest(settings, DAY0)
    receipt = json.loads(made["store"].file("receipt.json").read_text())
    counts = {
        (f["locale"], f["kind"]): (f["rows_in"], f["stored"], f["quarantined"], f["known"])
        for f in receipt["files"]
    }
    assert counts == {
        (KO, "catalogue"): (6, 6, 0, 0),
        (ZH, "catalogue"): (6, 6, 0, 0),
        (KO, "labels"): (6, 2, 3, 1),
        (KO, "ubi_queries"): (3, 3, 0, 0),
        (KO, "ubi_events"): (15, 14, 1, 0),
    }
    found = {(row, reason, detail) for _, row, reason, detail, _ in rows(settings, QUARANTINE)}
    assert found == {
        (3, "unknown_product", "product_id"), (4, "unknown_value", "grade"),
        (6, "conflicting_id", "label_id"), (12, "unknown_product", "object_id"),
    }  # fmt: skip
    assert made["publish_day"].facts["quarantined"] == 4


def test_quarantine_keeps_the_bytes_as_delivered(settings: Settings) -> None:
    land_first_day(settings)
    ingest(settings, DAY0)
    path = settings.landing / "tiny" / DAY0 / KO / "labels.jsonl"
    lines = path.read_bytes().splitlines()
    raw = {r: raw for _, r, reason, _, raw in rows(settings, QUARANTINE) if r in (3, 4, 6)}
    assert raw == {3: lines[2], 4: lines[3], 6: lines[5]}


def test_aggregates_per_query_and_product(settings: Settings) -> None:
    land_first_day(settings)
    ingest(settings, DAY0)
    columns = ("query", "product_id", "impressions", "clicks", "carts", "purchases",
               "position_sum", "positions", "skips")  # fmt: skip
    with reading(open_store(settings.db_url)) as connection:
        statement = sa.select(*(AGGREGATES.c[c] for c in columns))
        found = fetch(connection, statement, dict.fromkeys(columns)).sort("query", "product_id")
    assert found.rows() == [
        ("라면", "p3", 1, 0, 0, 0, 0, 1, 1),
        ("라면", "p4", 1, 1, 1, 1, 1, 1, 0),
        ("우유", "p0", 2, 1, 0, 0, 0, 2, 1),
        ("우유", "p1", 2, 1, 0, 1, 2, 2, 0),
        ("우유", "p2", 2, 0, 0, 0, 4, 2, 0),
    ]


def test_a_day_again_changes_nothing(settings: Settings) -> None:
    land_first_day(settings)
    first = ingest(settings, DAY0)
    before = everything(settings)
    again = ingest(settings, DAY0)
    assert everything(settings) == before
    assert again["store"].digest == first["store"].digest
    assert again["publish_day"].facts == first["publish_day"].facts


def test_a_late_copy_of_events_and_labels_is_known(settings: Settings) -> None:
    land_first_day(settings)
    ingest(settings, DAY0)
    for kind in ("ubi_events", "ubi_queries", "labels"):
        source = settings.landing / "tiny" / DAY0 / KO / f"{kind}.jsonl"
        lines = [json.loads(line) for line in source.read_text().splitlines()]
        land_lines(settings, DAY1, f"{KO}/{kind}.jsonl", [*lines[:3], *lines[:1]])
    made = ingest(settings, DAY1)
    receipt = json.loads(made["store"].file("receipt.json").read_text())
    found = {f["kind"]: (f["stored"], f["quarantined"], f["known"]) for f in receipt["files"]}
    assert found == {"ubi_events": (0, 0, 4), "ubi_queries": (0, 0, 4), "labels": (0, 1, 3)}


def test_a_product_has_versions_and_an_unchanged_one_is_known(settings: Settings) -> None:
    land_first_day(settings)
    ingest(settings, DAY0)
    changed = [product(1, "新商品 1"), product(2, "商品 2"), product(7, "商品 7")]
    land_lines(settings, DAY1, f"{ZH}/catalogue.jsonl", changed)
    made = ingest(settings, DAY1)
    assert made["store"].facts == {
        "day": DAY1,
        "rows_in": 3,
        "stored": 2,
        "quarantined": 0,
        "known": 1,
        "ignored": 0,
    }
    versions = [
        (r[2], r[3]) for r in rows(settings, PRODUCTS) if r[1] == ZH and r[2] in ("p1", "p7")
    ]
    assert versions == [("p1", DAY0), ("p1", DAY1), ("p7", DAY1)]


def test_too_much_quarantine_is_not_published_but_stays_stored(settings: Settings) -> None:
    land_first_day(settings)
    strict = market(ingest=Ingest(tolerance=0.05))
    with pytest.raises(DataError, match=r"4 of 36 rows are in quarantine \(11.1%") as e:
        ingest(settings, DAY0, strict)
    assert "\n" not in str(e.value)
    assert len(rows(settings, LABELS)) == 2
    ingest(settings, DAY0, market(ingest=Ingest(tolerance=0.2)))


def test_a_file_that_is_wrong_as_a_whole_stops_its_day_and_no_other_file(
    settings: Settings,
) -> None:
    land_first_day(settings)
    bad = settings.landing / "tiny" / DAY0 / ZH / "labels.csv.gz"
    bad.write_bytes(b"\x1f\x8b\x08 not gzip")
    with pytest.raises(
        DataError, match=r"labels\.csv\.gz: unreadable_file; deliver the file again"
    ):
        ingest(settings, DAY0)
    assert len(rows(settings, LABELS)) == 2


def test_what_cannot_be_landed_is_named(settings: Settings) -> None:
    with pytest.raises(DataError, match="does not exist: land the files of tiny for 2026-01-04"):
        ingest(settings, DAY0)
    with pytest.raises(DataError, match="write it as YYYY-MM-DD"):
        ingest(settings, "../2026-01-04")
    land_lines(settings, DAY0, f"{KO}/prices.jsonl", [])
    with pytest.raises(DataError, match=r"prices\.jsonl: name it"):
        ingest(settings, DAY0)
    land_lines(settings, DAY1, "de-DE/labels.jsonl", [])
    with pytest.raises(DataError, match="folder per locale"):
        ingest(settings, DAY1)


def test_a_file_that_changes_after_it_was_listed_is_noticed(settings: Settings) -> None:
    land_first_day(settings)
    ref = run_step("land", market(), {}, {"day": DAY0}, settings)
    land_lines(settings, DAY0, f"{KO}/labels.jsonl", [label(1, "우유", "p1", 0)])
    with pytest.raises(DataError, match="run land again"):
        run_step("validate", market(), {"land": ref}, {}, settings)


def test_the_flat_sample_layout_goes_in_as_it_is(settings: Settings) -> None:
    land_lines(settings, DAY0, f"{ZH}/catalogue.jsonl", [product(1, "futon frame")])
    path: Path = settings.landing / "tiny" / DAY0 / ZH / "ubi_events-sample.parquet"
    flat = pl.DataFrame({
        "action": ["impression", "click", "search", "purchase", "impression"],
        "query_id": ["q1", "q1", "q1", "q2", None],
        "session_id": ["v", "v", "v", None, "v"],
        "client_id": ["c"] * 5,
        "timestamp": ["2024-12-10T00:01:29.378Z"] * 3 + ["1717527762080"] * 2,
        "query": ["futon", "futon", None, None, "futon"],
        "asin": ["p1", "B07CVR21VN", None, "p1", "p1"],
        "position": [0, 1, None, 3, 4],
    }, schema_overrides={"position": pl.Int32})  # fmt: skip
    flat.write_parquet(path)
    made = ingest(settings, DAY0, market(ingest=Ingest(tolerance=1.0, late_days=1000)))
    assert made["publish_day"].facts["reasons"] == [
        {"reason": "missing_value", "kind": "ubi_events", "rows": 1},
        {"reason": "unknown_product", "kind": "ubi_events", "rows": 1},
        {"reason": "unknown_query", "kind": "ubi_events", "rows": 1},
    ]
    assert made["publish_day"].facts["notes"] == {"ignored": {"ubi_events: action_name search": 1}}
    assert [(r[5], r[6]) for r in rows(settings, AGGREGATES)] == [("futon", 1)]


class Killed(BaseException):
    """The process dies here."""


def test_killed_at_every_write_in_turn_the_day_ends_the_same(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from csrm_tasks.ingest.storage import days, load

    land_first_day(settings)
    ingest(settings, DAY0)
    expected = everything(settings)
    other = load_settings({"CSRM_HOME": str(tmp_path / "other")})
    land_first_day(other)
    writes, order = 0, cycle((1, 2, 1, 3, 2, 4))  # no transaction has more than three writes
    deadly = next(order)

    def counted(original: Callable[..., Any]) -> Callable[..., Any]:
        def write(*args: Any) -> Any:
            nonlocal writes, deadly
            writes += 1
            if writes == deadly:
                writes, deadly = 0, next(order)
                raise Killed
            return original(*args)

        return write

    monkeypatch.setattr(load, "insert", counted(load.insert))
    monkeypatch.setattr(days, "insert", counted(days.insert))
    monkeypatch.setattr(Lake, "write", counted(Lake.write))
    deaths = 0
    while True:
        try:
            ingest(other, DAY0)
            break
        except Killed:
            deaths += 1
    assert deaths > 8
    assert everything(other) == expected


def shared(common: Settings, worker: str) -> Settings:
    """A machine of its own, with database, lake, landing zone and artifacts in common."""
    return replace(common, home=common.home / worker)


def test_two_machines_with_one_day_end_as_one(settings: Settings, tmp_path: Path) -> None:
    land_first_day(settings)
    with ThreadPoolExecutor() as pool:
        running = [pool.submit(ingest, shared(settings, name), DAY0) for name in "ab"]
        receipts = [r.result()["store"].facts for r in running]
    assert receipts[0] == receipts[1]
    other = load_settings({"CSRM_HOME": str(tmp_path / "other")})
    land_first_day(other)
    ingest(other, DAY0)
    assert everything(settings) == everything(other)


def test_postgresql_holds_the_same_as_sqlite(settings: Settings, tmp_path: Path) -> None:
    land_first_day(settings)
    other = load_settings({"CSRM_HOME": str(tmp_path / "there")})
    land_first_day(other)
    for _ in range(2):
        ingest(settings, DAY0)
    ingest(other, DAY0)
    assert everything(settings) == everything(other)
