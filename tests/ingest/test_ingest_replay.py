"""Quarantined rows, judged again: as if they had been good at once, exactly once, or not at all."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import sqlalchemy as sa

from csrm_tasks.errors import ConfigError
from csrm_tasks.ingest.contract import contracts
from csrm_tasks.ingest.contract.contracts import GRADES, Column
from csrm_tasks.ingest.storage import again
from csrm_tasks.ingest.storage import replay as replaying
from csrm_tasks.settings import Settings, load_settings
from csrm_tasks.steps import run_step
from csrm_tasks.store.engine import open_store, reading
from csrm_tasks.store.lake import Lake
from csrm_tasks.store.tables import (
    AGGREGATES,
    DAYS,
    FILES,
    LABELS,
    PRODUCTS,
    QUARANTINE,
    SESSIONS,
    TRANSLATIONS,
)
from tests.data_fixtures import (
    DAY0,
    DAY1,
    KO,
    ingest,
    label,
    land_lines,
    land_sessions,
    market,
    open_artifact,
    product,
    session,
)
from tests.fixtures.make_bad import parquet

TABLES = (LABELS, TRANSLATIONS, PRODUCTS, AGGREGATES, SESSIONS)
SET_ASIDE = ("row", "reason", "raw")
RECEIPT = ("name", "live", "rows_in", "stored", "quarantined", "known", "fault")
GOODS = [product(i, f"상품 {i}") for i in range(4)]


def replay(settings: Settings, run: str = "1", **params: Any) -> dict[str, Any]:
    """Run the step; returns its facts."""
    ref = run_step("replay", market(), {}, {"day": DAY0, "run": run} | params, settings)
    return dict(open_artifact(settings, ref).facts)


def take_in(settings: Settings, day: str) -> None:
    """As :func:`ingest`, without summing the day up and publishing it."""
    ref = run_step("land", market(), {}, {"day": day}, settings)
    ref = run_step("validate", market(), {"land": ref}, {}, settings)
    run_step("store", market(), {"validate": ref}, {}, settings)


def held(settings: Settings) -> dict[str, Any]:
    """Everything that is stored, apart from the numbers that the database gives out."""
    found: dict[str, Any] = {}
    with reading(open_store(settings.db_url)) as connection:
        for table in TABLES:
            columns = [c for c in table.c if c.name != "file_id"]
            found[table.name] = sorted(connection.execute(sa.select(*columns)).all(), key=repr)
        statement = (
            sa.select(FILES.c.name, FILES.c.day, *(QUARANTINE.c[c] for c in SET_ASIDE))
            .join(FILES, FILES.c.id == QUARANTINE.c.file_id)
        )  # fmt: skip
        found["quarantine"] = sorted(map(tuple, connection.execute(statement)))
        rows = connection.execute(sa.select(FILES).order_by(FILES.c.day, FILES.c.name)).mappings()
        found["files"] = [counts(r) for r in rows]
        days = sa.select(DAYS.c.day, DAYS.c.rows_in, DAYS.c.quarantined, DAYS.c.digest)
        found["days"] = sorted(map(tuple, connection.execute(days)))
    return found


def counts(file: Mapping[str, Any]) -> tuple[Any, ...]:
    """A receipt; that it is balanced is checked wherever one is looked at."""
    counts = ("stored", "quarantined", "known", "ignored")
    assert file["rows_in"] == sum(file[c] for c in counts)
    return tuple(file[c] for c in RECEIPT)


def receipt(settings: Settings, name: str) -> tuple[Any, ...]:
    found = [f for f in held(settings)["files"] if f[0] == f"{KO}/{name}" and f[1]]
    assert len(found) == 1
    return found[0][2:]


def land_early(settings: Settings) -> None:
    """A night that speaks of the products p4 and p5, which nobody has delivered yet."""
    land_lines(settings, DAY0, f"{KO}/labels.jsonl", [
        label(1, "우유", "p1", 2), label(2, "우유", "p4", 2), label(3, "우유", "p5", 9),
        label(4, "우유", "p5", 0), label(4, "우유", "p5", 0),
    ])  # fmt: skip
    land_sessions(settings, DAY0, KO, [
        session(1, "우유", ["p0", "p4", "p1"], click="p4", purchase="p4"),
        session(2, "라면", ["p5", "p2"], click="p2"),
    ])  # fmt: skip


def test_what_the_same_days_late_catalogue_brings_goes_in_by_itself(
    both_settings: Settings, tmp_path: Path
) -> None:
    settings = both_settings
    land_lines(settings, DAY0, f"{KO}/catalogue.jsonl", GOODS)
    land_early(settings)
    take_in(settings, DAY0)
    assert receipt(settings, "labels.jsonl") == (5, 1, 4, 0, None)
    land_lines(settings, DAY0, f"{KO}/catalogue-late.jsonl", [product(4, "d"), product(5, "e")])
    take_in(settings, DAY0)
    ingest(settings, DAY0)
    facts = replay(settings, apply=True)
    assert (facts["rows"], facts["stored"], facts["known"]) == (1, 0, 0)
    assert receipt(settings, "labels.jsonl") == (5, 3, 1, 1, None)
    at_once = load_settings({"CSRM_HOME": str(tmp_path / "other")})
    land_lines(at_once, DAY0, f"{KO}/catalogue.jsonl", GOODS)
    land_lines(at_once, DAY0, f"{KO}/catalogue-late.jsonl", [product(4, "d"), product(5, "e")])
    land_early(at_once)
    ingest(at_once, DAY0)
    assert held(settings) == held(at_once)


def test_a_dry_run_tells_and_changes_nothing(both_settings: Settings) -> None:
    settings = both_settings
    land_lines(settings, DAY0, f"{KO}/catalogue.jsonl", GOODS)
    land_early(settings)
    ingest(settings, DAY0)
    land_lines(settings, DAY1, f"{KO}/catalogue.jsonl", [product(4, "d")])
    take_in(settings, DAY1)
    before = held(settings)
    dry = replay(settings)
    assert held(settings) == before
    assert replay(settings, run="2") == dry | {"run": "2"}
    assert replay(settings, run="3", apply=True) == dry | {"run": "3", "applied": True}
    by_name = {f["name"]: f for f in dry["files"]}
    assert by_name[f"{KO}/labels.jsonl"] == {
        "name": f"{KO}/labels.jsonl", "kind": "labels", "rows": 4, "stored": 1, "known": 0,
        "ignored": 0, "reasons": {"unknown_product": 2, "unknown_value": 1},
    }  # fmt: skip


def test_twice_is_once_and_the_day_is_another_for_snapshots(settings: Settings) -> None:
    land_lines(settings, DAY0, f"{KO}/catalogue.jsonl", GOODS)
    land_early(settings)
    made = ingest(settings, DAY0)
    land_lines(settings, DAY1, f"{KO}/catalogue.jsonl", [product(4, "d"), product(5, "e")])
    ingest(settings, DAY1)
    replay(settings, apply=True)
    ingest(settings, DAY0)
    after = held(settings)
    assert after["days"][0][3] != made["publish_day"].facts["digest"]
    again = replay(settings, run="2", apply=True)
    assert (again["rows"], again["stored"], again["known"]) == (1, 0, 0)
    ingest(settings, DAY0)
    assert held(settings) == after


def test_one_reason_leaves_the_others_alone(settings: Settings) -> None:
    land_lines(settings, DAY0, f"{KO}/catalogue.jsonl", GOODS)
    land_early(settings)
    take_in(settings, DAY0)
    land_lines(settings, DAY1, f"{KO}/catalogue.jsonl", [product(4, "d"), product(5, "e")])
    take_in(settings, DAY1)
    assert replay(settings, reason="unknown_value")["rows"] == 1
    assert replay(settings, reason="unknown_product", apply=True, run="2")["rows"] == 7
    assert [(row, why) for _, _, row, why, _ in held(settings)["quarantine"]] == [
        (3, "unknown_value")
    ]
    with pytest.raises(ConfigError, match="'unknown' is no reason; there are unreadable_file, "):
        replay(settings, reason="unknown", run="3")


def widen(patch: pytest.MonkeyPatch) -> None:
    """Let graders write German."""
    labels = contracts.CONTRACTS["labels"]
    columns = [
        replace(c, vocabulary={**GRADES, "exakt": 2}) if c.name == "grade" else c
        for c in labels.columns
    ]
    patch.setitem(contracts.CONTRACTS, "labels", replace(labels, columns=tuple(columns)))


def as_csv(rows: list[dict[str, Any]]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\r\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def land_bytes(settings: Settings, name: str, data: bytes) -> Path:
    path = land_lines(settings, DAY0, f"{KO}/{name}", [])
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("written", ["csv", "csv.gz", "jsonl", "parquet"])
def test_a_wider_vocabulary_lets_rows_of_any_format_in(
    written: str, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also those that hold line breaks, and when the landing zone was emptied since."""
    texts = ["우유", '두 줄\n"인용"', "a,b", "한 줄 "]
    rows = [label(i, t, "p1", "exakt") for i, t in enumerate(texts)]
    rows.insert(1, label("good", "우유", "p1", "exact"))
    data = {
        "csv": lambda: b"\xef\xbb\xbf" + as_csv(rows) + b"l9,too,few\r\n",
        "csv.gz": lambda: gzip.compress(as_csv(rows) + b"l9,too,few\r\n"),
        "jsonl": lambda: b"".join(json.dumps(r).encode() + b"\n" for r in rows) + b'{"label_id"\n',
        "parquet": lambda: parquet({c: [r[c] for r in rows] for c in rows[0]}),
    }[written]()  # fmt: skip
    land_lines(settings, DAY0, f"{KO}/catalogue.jsonl", GOODS)
    name = f"labels.{written}"
    landed = land_bytes(settings, name, data)
    wrong = 0 if written == "parquet" else 1
    take_in(settings, DAY0)
    assert receipt(settings, name) == (5 + wrong, 1, 4 + wrong, 0, None)
    landed.unlink()
    with monkeypatch.context() as patch:
        widen(patch)
        facts = replay(settings, apply=True)
    assert facts["files"][0]["reasons"] == ({"malformed_row": 1} if wrong else {})
    assert receipt(settings, name) == (5 + wrong, 5, wrong, 0, None)
    stored = {r.query: r.grade for r in held(settings)["labels"]}
    assert stored == {t.strip(): 2 for t in texts}


def test_a_column_under_another_name_mends_its_file(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    land_lines(settings, DAY0, f"{KO}/catalogue.jsonl", GOODS)
    rows = as_csv([label(1, "우유", "p1", 2), label(2, "라면", "p2", 1)])
    land_bytes(settings, "labels.csv", rows.replace(b"label_id", b"uid"))
    with pytest.raises(Exception, match=f"see csrm quarantine show --market tiny --day {DAY0}"):
        ingest(settings, DAY0)
    assert receipt(settings, "labels.csv") == (2, 0, 2, 0, "missing_column")
    labels = contracts.CONTRACTS["labels"]
    named = Column("label_id", "identifier", sources=("label_id", "uid"))
    wider = replace(labels, columns=(named, *labels.columns[1:]))
    monkeypatch.setitem(contracts.CONTRACTS, "labels", wider)
    replay(settings, apply=True)
    assert receipt(settings, "labels.csv") == (2, 2, 0, 0, None)


def test_events_of_parquet_and_of_a_search_that_was_wrong_itself(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The search goes in first, so its events find it within the same replay."""
    land_lines(settings, DAY0, f"{KO}/catalogue.jsonl", GOODS)
    asked, events = session(1, "x" * 600, ["p0", "p1"], click="p1")
    land_lines(settings, DAY0, f"{KO}/ubi_queries.jsonl", [asked])
    land_bytes(settings, "ubi_events.parquet", parquet(pl.DataFrame(events).to_dict()))
    take_in(settings, DAY0)
    queries = contracts.CONTRACTS["ubi_queries"]
    columns = [replace(c, max_chars=1000) if c.name == "user_query" else c for c in queries.columns]
    monkeypatch.setitem(
        contracts.CONTRACTS, "ubi_queries", replace(queries, columns=tuple(columns))
    )
    assert replay(settings)["stored"] == 4
    assert replay(settings, run="2", apply=True)["stored"] == 4
    assert receipt(settings, "ubi_events.parquet") == (3, 3, 0, 0, None)
    ingest(settings, DAY0)
    sums = {(r.product_id, r.impressions, r.clicks) for r in held(settings)["aggregates"]}
    assert sums == {("p0", 1, 0), ("p1", 1, 1)}


def test_a_file_that_nobody_could_read_is_not_replayed(settings: Settings) -> None:
    land_lines(settings, DAY0, f"{KO}/catalogue.jsonl", GOODS)
    land_bytes(settings, "labels.csv.gz", b"\x1f\x8b\x08 not gzip")
    take_in(settings, DAY0)
    assert replay(settings)["files"] == []
    assert receipt(settings, "labels.csv.gz") == (1, 0, 1, 0, "unreadable_file")


def test_nothing_that_is_stored_is_replaced(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """p1 stays as its own file said first, p2 as the later file of the day said."""
    long = "x" * 2001
    land_lines(settings, DAY0, f"{KO}/catalogue-1.jsonl", [
        product(1, "first"), product(1, long), product(2, long), product(3, long),
    ])  # fmt: skip
    land_lines(settings, DAY0, f"{KO}/catalogue-2.jsonl", [product(2, "mended")])
    take_in(settings, DAY0)
    catalogue = contracts.CONTRACTS["catalogue"]
    columns = [replace(c, max_chars=9999) if c.name == "title" else c for c in catalogue.columns]
    monkeypatch.setitem(
        contracts.CONTRACTS, "catalogue", replace(catalogue, columns=tuple(columns))
    )
    assert replay(settings, apply=True)["files"][0]["reasons"] == {"conflicting_id": 1}
    assert receipt(settings, "catalogue-1.jsonl") == (4, 3, 1, 0, None)
    ingest(settings, DAY0)
    snap = run_step("snapshot", market(), {}, {"stage": 1, "until": DAY0}, settings)
    frame = pl.read_parquet(open_artifact(settings, snap).file("products.parquet"))
    titles = dict(frame.filter(pl.col("locale") == KO).select("product_id", "title").iter_rows())
    assert titles == {"p1": "first", "p2": "mended", "p3": long}


def test_a_replayed_row_comes_before_what_a_later_day_said_of_the_same(
    settings: Settings,
) -> None:
    land_lines(settings, DAY0, f"{KO}/catalogue.jsonl", GOODS)
    rows = [label(1, "우유", "p1", 2), label(2, "우유", "p4", 2)]
    land_lines(settings, DAY0, f"{KO}/labels.jsonl", rows)
    take_in(settings, DAY0)
    land_lines(settings, DAY1, f"{KO}/catalogue.jsonl", [product(4, "d")])
    land_lines(settings, DAY1, f"{KO}/labels.jsonl", [rows[1]])
    take_in(settings, DAY1)
    facts = replay(settings, apply=True)
    assert (facts["stored"], facts["known"]) == (1, 0)
    assert [f[-2] for f in held(settings)["files"] if f[0] == f"{KO}/labels.jsonl"] == [0, 1]
    land_lines(settings, DAY1, f"{KO}/labels.jsonl", [label(3, "라면", "p1", 1)])
    take_in(settings, DAY1)
    assert {(r.label_id, r.day) for r in held(settings)["labels"]} == {
        ("l1", DAY0), ("l2", DAY0), ("l3", DAY1),
    }  # fmt: skip


class Killed(BaseException):
    """The process dies here."""


def test_killed_at_any_write_it_did_nothing_and_is_finished_by_the_next(
    both_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = both_settings
    land_lines(settings, DAY0, f"{KO}/catalogue.jsonl", GOODS)
    land_early(settings)
    take_in(settings, DAY0)
    land_lines(settings, DAY1, f"{KO}/catalogue.jsonl", [product(4, "d"), product(5, "e")])
    take_in(settings, DAY1)
    before = held(settings)
    left = 0

    def mortal(original: Callable[..., Any]) -> Callable[..., Any]:
        def write(*args: Any) -> Any:
            nonlocal left
            left -= 1
            if left < 0:
                raise Killed
            return original(*args)

        return write

    for place, name in (
        (replaying, "insert"), (again, "insert"), (again, "write_rows"), (again, "take_rows"),
        (again, "mark_stale"), (Lake, "write"), (Lake, "write_unstored"), (again, "span"),
    ):  # fmt: skip
        monkeypatch.setattr(place, name, mortal(getattr(place, name)))
    deaths = 0
    while True:
        left = deaths
        try:
            replay(settings, run="1", apply=True)
            break
        except Killed:
            deaths += 1
            assert held(settings) == before
    assert deaths >= 8
    assert receipt(settings, "labels.jsonl") == (5, 3, 1, 1, None)
    assert receipt(settings, "ubi_events.jsonl") == (8, 8, 0, 0, None)
