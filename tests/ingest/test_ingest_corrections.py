"""A corrected file takes the place of its day's earlier one, and nothing that was said is lost."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import sqlalchemy as sa

from csrm_tasks.artifacts import json_digest
from csrm_tasks.dataset.source import check_days, published_days
from csrm_tasks.errors import DataError
from csrm_tasks.ingest.storage.days import COUNTED, behaviour_files, day_state
from csrm_tasks.settings import Settings
from csrm_tasks.steps import run_step
from csrm_tasks.store import open_store, reading
from csrm_tasks.store.lake import Lake
from csrm_tasks.store.tables import AGGREGATES, FILES, LABELS, PRODUCTS, QUARANTINE
from tests.data_fixtures import (
    DAY0,
    DAY1,
    KO,
    event,
    ingest,
    label,
    land_lines,
    land_sessions,
    market,
    product,
    session,
)

TITLES = [product(i, f"상품 {i}") for i in range(4)]


@pytest.fixture
def settings(both_settings: Settings) -> Settings:
    return both_settings


def select(settings: Settings, *columns: sa.Column[Any], where: Any = True) -> list[Any]:
    with reading(open_store(settings.db_url)) as connection:
        found = connection.execute(sa.select(*columns).where(where)).all()
    return sorted(tuple(r) for r in found)


def receipts(settings: Settings, kind: str) -> list[Any]:
    """(day, name, live, rows in, stored, quarantined, known), balanced."""
    counts = (FILES.c.rows_in, FILES.c.stored, FILES.c.quarantined, FILES.c.known)
    about = (FILES.c.day, FILES.c.name, FILES.c.live)
    found = select(settings, *about, *counts, where=FILES.c.kind == kind)
    assert all(r[3] == sum(r[4:]) for r in found)
    return [(r[0], r[1].split("/")[1], *r[2:]) for r in found]


def grades(settings: Settings) -> list[Any]:
    return select(settings, LABELS.c.label_id, LABELS.c.grade, LABELS.c.day)


def land_labels(settings: Settings, day: str, name: str, **given: int) -> None:
    rows = [label(n, "우유", "p1", grade) for n, grade in given.items()]
    land_lines(settings, day, f"{KO}/{name}.jsonl", rows)


def assert_all_published(settings: Settings) -> None:
    with reading(open_store(settings.db_url)) as connection:
        check_days(connection, "tiny", published_days(connection, "tiny", "2099-01-01"))


def test_what_another_file_said_too_is_kept_as_its_own(settings: Settings) -> None:
    land_lines(settings, DAY0, f"{KO}/catalogue.jsonl", TITLES)
    land_labels(settings, DAY0, "labels", a=2, b=1, c=0)
    ingest(settings, DAY0)
    land_labels(settings, DAY1, "labels", a=2, b=1, d=1)
    ingest(settings, DAY1)
    assert receipts(settings, "labels") == [
        (DAY0, "labels.jsonl", True, 3, 3, 0, 0), (DAY1, "labels.jsonl", True, 3, 1, 0, 2)
    ]  # fmt: skip
    land_labels(settings, DAY0, "labels", b=1, c=2, e=0)  # a is gone, b as before, c mended
    ingest(settings, DAY0)
    assert grades(settings) == [
        ("la", 2, DAY1), ("lb", 1, DAY0), ("lc", 2, DAY0), ("ld", 1, DAY1), ("le", 0, DAY0)
    ]  # fmt: skip
    assert receipts(settings, "labels") == [
        (DAY0, "labels.jsonl", False, 3, 3, 0, 0), (DAY0, "labels.jsonl", True, 3, 3, 0, 0),
        (DAY1, "labels.jsonl", True, 3, 2, 0, 1),
    ]  # fmt: skip
    assert_all_published(settings)


def test_what_contradicts_the_correction_is_quarantined_with_what_it_said(
    settings: Settings,
) -> None:
    land_lines(settings, DAY0, f"{KO}/catalogue.jsonl", TITLES)
    land_labels(settings, DAY0, "labels-a", a=2, b=1)
    land_labels(settings, DAY0, "labels-b", a=2, b=1)
    ingest(settings, DAY0)
    land_labels(settings, DAY0, "labels-a", a=0, b=1)
    made = ingest(settings, DAY0)
    assert grades(settings) == [("la", 0, DAY0), ("lb", 1, DAY0)]
    assert receipts(settings, "labels")[2:] == [(DAY0, "labels-b.jsonl", True, 2, 0, 1, 1)]
    ((row, reason, raw),) = select(
        settings, QUARANTINE.c.row, QUARANTINE.c.reason, QUARANTINE.c.raw
    )
    said = json.loads(raw)
    assert (row, reason, said["label_id"], said["grade"]) == (1, "conflicting_id", "la", 2)
    assert made["publish_day"].facts["quarantined"] == 1
    land_labels(settings, DAY0, "labels-b", a=0, b=1)  # mended too: all agree
    made = ingest(settings, DAY0)
    assert made["publish_day"].facts["quarantined"] == 0
    assert receipts(settings, "labels")[3:] == [(DAY0, "labels-b.jsonl", True, 2, 0, 0, 2)]


def test_the_first_delivery_again_is_a_correction_of_the_second(settings: Settings) -> None:
    land_lines(settings, DAY0, f"{KO}/catalogue.jsonl", TITLES)
    states = []
    for grade in (2, 1, 2):
        land_labels(settings, DAY0, "labels", a=grade)
        ingest(settings, DAY0)
        states.append(grades(settings))
    assert states == [[("la", 2, DAY0)], [("la", 1, DAY0)], [("la", 2, DAY0)]]
    assert [r[2] for r in receipts(settings, "labels")].count(True) == 1
    assert len(receipts(settings, "labels")) == 3


def test_an_attempt_that_was_overtaken_does_not_undo_the_correction(settings: Settings) -> None:
    land_lines(settings, DAY0, f"{KO}/catalogue.jsonl", TITLES)
    land_labels(settings, DAY0, "labels", a=2)
    listed = run_step("land", market(), {}, {"day": DAY0}, settings)
    checked = run_step("validate", market(), {"land": listed}, {}, settings)
    land_labels(settings, DAY0, "labels", a=1)
    ingest(settings, DAY0)
    with pytest.raises(DataError, match=r"labels\.jsonl: another delivery .* run land again"):
        run_step("store", market(), {"validate": checked}, {}, settings)
    assert grades(settings) == [("la", 1, DAY0)]


def test_the_same_bytes_under_two_names_are_two_deliveries(settings: Settings) -> None:
    land_lines(settings, DAY0, f"{KO}/catalogue.jsonl", TITLES)
    shown = session(1, "우유", ["p1", "p2"], click="p1")
    land_sessions(settings, DAY0, KO, [shown])
    land_lines(settings, DAY0, f"{KO}/ubi_events-copy.jsonl", shown[1])
    ingest(settings, DAY0)
    assert receipts(settings, "ubi_events") == [
        (DAY0, "ubi_events-copy.jsonl", True, 3, 3, 0, 0),
        (DAY0, "ubi_events.jsonl", True, 3, 0, 0, 3),
    ]
    land_lines(settings, DAY0, f"{KO}/ubi_events-copy.jsonl", shown[1][:1])
    ingest(settings, DAY0)
    assert len(events(settings, DAY0)) == 3  # the copy's other rows are still said by the original
    assert receipts(settings, "ubi_events")[1:] == [
        (DAY0, "ubi_events-copy.jsonl", True, 1, 1, 0, 0),
        (DAY0, "ubi_events.jsonl", True, 3, 2, 0, 1),
    ]


def events(settings: Settings, day: str) -> list[Any]:
    lake = Lake(settings.lake, "tiny")
    with reading(open_store(settings.db_url)) as connection:
        files = [f for f in behaviour_files(connection, "tiny", day) if f.kind == "ubi_events"]
    columns = ["search_id", "product_id", "action", "query"]
    return sorted(lake.read("ubi_events", files, columns).iter_rows())


def test_late_events_take_over_and_both_days_are_summed_up_again(settings: Settings) -> None:
    land_lines(settings, DAY0, f"{KO}/catalogue.jsonl", TITLES)
    shown = session(1, "우유", ["p1", "p2"], click="p1")
    land_sessions(settings, DAY0, KO, [shown])
    ingest(settings, DAY0)
    late = [shown[1][0], event(1, "purchase", "p1", 0)]
    land_lines(settings, DAY1, f"{KO}/ubi_events.jsonl", late)
    ingest(settings, DAY1)
    assert receipts(settings, "ubi_events")[1] == (DAY1, "ubi_events.jsonl", True, 2, 1, 0, 1)
    land_lines(settings, DAY0, f"{KO}/ubi_events.jsonl", shown[1][1:])  # without p1's impression
    ingest(settings, DAY0)
    sums = (AGGREGATES.c.day, AGGREGATES.c.product_id, AGGREGATES.c.impressions,
            AGGREGATES.c.clicks, AGGREGATES.c.purchases)  # fmt: skip
    assert select(settings, *sums) == [
        (DAY0, "p1", 0, 1, 0), (DAY0, "p2", 1, 0, 0), (DAY1, "p1", 1, 0, 1)
    ]  # fmt: skip
    assert receipts(settings, "ubi_events")[2] == (DAY1, "ubi_events.jsonl", True, 2, 2, 0, 0)
    assert_all_published(settings)


def test_events_follow_the_corrected_text_of_their_search(settings: Settings) -> None:
    land_lines(settings, DAY0, f"{KO}/catalogue.jsonl", TITLES)
    found = [session(1, "우유", ["p1"]), session(2, "라면", ["p2"])]
    land_sessions(settings, DAY0, KO, found)
    ingest(settings, DAY0)
    late = [event(1, "click", "p1", 0)]
    land_lines(settings, DAY1, f"{KO}/ubi_events.jsonl", late)
    ingest(settings, DAY1)
    corrected = [{**found[0][0], "user_query": "두유"}]  # and the other search is gone
    land_lines(settings, DAY0, f"{KO}/ubi_queries.jsonl", corrected)
    ingest(settings, DAY0)
    assert {q for *_, q in events(settings, DAY0)} == {"두유"}
    assert {q for *_, q in events(settings, DAY1)} == {"두유"}
    assert select(settings, AGGREGATES.c.day, AGGREGATES.c.query) == [
        (DAY0, "두유"), (DAY1, "두유")
    ]  # fmt: skip
    assert select(settings, QUARANTINE.c.reason) == [("unknown_query",)]  # as if it had never been
    assert_all_published(settings)


def test_a_product_that_a_later_catalogue_repeated_stays_from_then_on(settings: Settings) -> None:
    land_lines(settings, DAY0, f"{KO}/catalogue.jsonl", TITLES)
    ingest(settings, DAY0)
    land_lines(settings, DAY1, f"{KO}/catalogue.jsonl", TITLES[:2])  # nothing new
    ingest(settings, DAY1)
    land_lines(settings, DAY0, f"{KO}/catalogue.jsonl", [product(0, "새 상품"), TITLES[2]])
    ingest(settings, DAY0)
    assert select(settings, PRODUCTS.c.product_id, PRODUCTS.c.day, PRODUCTS.c.title) == [
        ("p0", DAY0, "새 상품"), ("p0", DAY1, "상품 0"), ("p1", DAY1, "상품 1"),
        ("p2", DAY0, "상품 2"),
    ]  # fmt: skip
    assert_all_published(settings)


def test_of_one_days_two_catalogues_the_other_one_is_left_when_one_goes(
    settings: Settings,
) -> None:
    land_lines(settings, DAY0, f"{KO}/catalogue-a.jsonl", [product(1, "하나")])
    land_lines(settings, DAY0, f"{KO}/catalogue-b.jsonl", [product(1, "둘"), product(1, "둘")])
    ingest(settings, DAY0)
    land_lines(settings, DAY0, f"{KO}/catalogue-a.jsonl", [product(1, "셋")])
    ingest(settings, DAY0)
    land_lines(settings, DAY0, f"{KO}/catalogue-a.jsonl", [product(2, "넷")])
    ingest(settings, DAY0)
    assert select(settings, PRODUCTS.c.product_id, PRODUCTS.c.title) == [("p1", "둘"), ("p2", "넷")]


def test_two_machines_with_one_correction_end_as_one(settings: Settings, tmp_path: Path) -> None:
    land_lines(settings, DAY0, f"{KO}/catalogue.jsonl", TITLES)
    land_labels(settings, DAY0, "labels", a=2)
    ingest(settings, DAY0)
    land_labels(settings, DAY0, "labels", a=1)
    for name in ("a", "b"):
        ingest(replace(settings, home=settings.home / name), DAY0)
    assert [r[2:] for r in receipts(settings, "labels")] == [
        (False, 1, 1, 0, 0), (True, 1, 1, 0, 0)
    ]  # fmt: skip


def test_a_file_of_known_rows_keeps_exactly_those(settings: Settings) -> None:
    land_lines(settings, DAY0, f"{KO}/catalogue.jsonl", TITLES)
    land_labels(settings, DAY0, "labels", a=2, b=1)
    ingest(settings, DAY0)
    land_labels(settings, DAY1, "labels", a=2, c=1, b=1)
    ingest(settings, DAY1)
    paths = sorted(Path(settings.lake).glob("tiny/known/labels/day=*/*.parquet"))
    assert [pl.read_parquet(p)["label_id"].to_list() for p in paths] == [["la", "lb"]]


def test_a_days_digest_is_the_same_in_any_database(settings: Settings) -> None:
    """Names that two collations order differently: the digest follows none."""
    land_lines(settings, DAY0, f"{KO}/catalogue.jsonl", TITLES)
    for name in ("labels-a", "labels-B", "labels-_", "labels-2", "labels", "labels-\u00e9"):
        land_labels(settings, DAY0, name, **{name.removeprefix("labels-"): 2})
    ingest(settings, DAY0)
    rows = select(settings, *(FILES.c[c] for c in COUNTED))
    rows.sort(key=lambda r: (r[2], r[1], r[0]))
    with reading(open_store(settings.db_url)) as connection:
        found = day_state(connection, "tiny", DAY0)
    assert found.files == 7
    assert found.digest == json_digest([dict(zip(COUNTED, r, strict=True)) for r in rows])


def test_a_file_that_another_run_stores_before_a_day_is_published_is_summed_up(
    settings: Settings,
) -> None:
    land_lines(settings, DAY0, f"{KO}/catalogue.jsonl", TITLES)
    land_sessions(settings, DAY0, KO, [session(1, "우유", ["p1"], click="p1")])
    made = ingest(settings, DAY0)
    query, events = session(2, "우유", ["p1", "p2"])
    land_lines(settings, DAY0, f"{KO}/ubi_queries-b.jsonl", [query])
    land_lines(settings, DAY0, f"{KO}/ubi_events-b.jsonl", events)
    config, land = market(), run_step("land", market(), {}, {"day": DAY0}, settings)
    valid = run_step("validate", config, {"land": land}, {}, settings)
    run_step("store", config, {"validate": valid}, {}, settings)
    run_step("publish_day", config, {"aggregate": made["aggregate"].ref}, {"day": DAY0}, settings)
    sums = (AGGREGATES.c.product_id, AGGREGATES.c.impressions, AGGREGATES.c.clicks)
    assert select(settings, *sums) == [("p1", 2, 1), ("p2", 1, 0)]
    assert_all_published(settings)
