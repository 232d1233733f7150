"""Late, repeated and separated behaviour; and a night reads its own days, not all history."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import sqlalchemy as sa

from csrm_tasks.artifacts import Artifact
from csrm_tasks.ingest.storage.behaviour import stretches
from csrm_tasks.sections import Schedule
from csrm_tasks.settings import Settings
from csrm_tasks.store.engine import open_store, reading
from csrm_tasks.store.lake import Lake, Stored
from csrm_tasks.store.tables import AGGREGATES, SESSIONS
from tests.data_fixtures import (
    DAY0,
    ZH,
    event,
    ingest,
    land_lines,
    land_sessions,
    market,
    product,
    search,
    session,
)

PRODUCTS = [product(n, f"商品 {n}") for n in range(6)]


def day_after(n: int) -> str:
    return (date.fromisoformat(DAY0) + timedelta(days=n)).isoformat()


def land_night(settings: Settings, n: int, late: Sequence[dict[str, Any]] = ()) -> None:
    day = day_after(n)
    visits = [session(f"{n}-{i}", "牛奶", ["p0", "p1", "p2"], day, click="p1") for i in range(3)]
    land_sessions(settings, day, ZH, visits)
    if late:
        land_lines(settings, day, f"{ZH}/ubi_events-late.jsonl", late)


@pytest.fixture
def shop(settings: Settings) -> Settings:
    land_lines(settings, DAY0, f"{ZH}/catalogue.jsonl", PRODUCTS)
    land_night(settings, 0)
    ingest(settings, DAY0)
    return settings


def receipts(made: dict[str, Artifact]) -> dict[str, tuple[int, int, int]]:
    """By file: how many rows were stored, quarantined, known."""
    found = json.loads(made["store"].file("receipt.json").read_text())["files"]
    return {f["name"][6:-6]: (f["stored"], f["quarantined"], f["known"]) for f in found}


def clicks(settings: Settings, day: str) -> dict[str, int]:
    statement = sa.select(AGGREGATES.c.product_id, AGGREGATES.c.clicks)
    with reading(open_store(settings.db_url)) as connection:
        return dict(connection.execute(statement.where(AGGREGATES.c.day == day)).tuples().all())


def sessions(settings: Settings, day: str) -> list[dict[str, Any]]:
    statement = sa.select(SESSIONS).where(SESSIONS.c.day == day).order_by(SESSIONS.c.session_id)
    with reading(open_store(settings.db_url)) as connection:
        return [dict(r) for r in connection.execute(statement).mappings()]


@pytest.mark.parametrize("where", ["one file", "two files", "two days"])
def test_an_event_delivered_twice_counts_once(shop: Settings, where: str) -> None:
    asked, happened = session("x", "豆漿", ["p3", "p4"], day_after(1), click="p4")
    twice = [*happened, happened[-1]] if where == "one file" else happened
    land_sessions(shop, day_after(1), ZH, [(asked, twice)])
    if where == "two files":
        land_lines(shop, day_after(1), f"{ZH}/ubi_events-again.jsonl", happened)
    found = receipts(ingest(shop, day_after(1)))
    if where == "two files":  # stored in the order of their names
        assert (found["ubi_events-again"], found["ubi_events"]) == ((3, 0, 0), (0, 0, 3))
    else:
        assert found["ubi_events"] == (3, 0, int(where == "one file"))
    if where == "two days":
        land_lines(shop, day_after(2), f"{ZH}/ubi_events.jsonl", happened)
        assert receipts(ingest(shop, day_after(2)))["ubi_events"] == (0, 0, 3)
        assert clicks(shop, day_after(2)) == {}
    assert clicks(shop, day_after(1)) == {"p3": 0, "p4": 1}


def test_a_late_event_counts_on_the_day_of_its_delivery(shop: Settings) -> None:
    late = event("0-1", "purchase", "p1", 1, DAY0)
    known = event("0-1", "click", "p1", 1, DAY0)
    land_night(shop, 3, [late, known])
    assert receipts(ingest(shop, day_after(3)))["ubi_events-late"] == (1, 0, 1)
    assert clicks(shop, DAY0) == {"p0": 0, "p1": 3, "p2": 0}  # that day's sums stay
    (visit,) = (s for s in sessions(shop, day_after(3)) if s["session_id"] == "v0-1")
    assert visit["converted"]
    assert visit["first_at"] == datetime(2026, 1, 4, 9, 0, 1, tzinfo=UTC)


def test_the_search_may_come_in_another_file_or_the_night_before(shop: Settings) -> None:
    day = day_after(1)
    land_lines(shop, day, f"{ZH}/ubi_queries-b.jsonl", [search("b", "豆漿", day)])
    land_lines(shop, day, f"{ZH}/ubi_events-a.jsonl", [
        event("b", "click", "p1", 1, day),  # of this day's other file
        event("0-2", "add_to_cart", "p1", 1, DAY0),  # of the night before, late
        event("c", "click", "p1", 1, day),  # of a search that nobody has delivered
    ])  # fmt: skip
    made = ingest(shop, day)
    assert receipts(made)["ubi_events-a"] == (2, 1, 0)
    assert made["publish_day"].facts["reasons"][0]["reason"] == "unknown_query"


def test_searches_without_events_and_visits_without_id(shop: Settings) -> None:
    day = day_after(1)
    silent = search("s", "無", day) | {"query_attributes": {"bucket": "B", "release": "r7"}}
    nameless = search("n", "牛奶", day) | {"session_id": ""}
    land_lines(shop, day, f"{ZH}/ubi_queries.jsonl", [silent, nameless])
    shown = event("n", "impression", "p1", 1, day) | {"session_id": ""}
    land_lines(shop, day, f"{ZH}/ubi_events.jsonl", [shown])
    made = ingest(shop, day)
    derived, visit = sessions(shop, day)
    assert derived["session_id"] == f"cn@{day.replace('-', '')}-090000"
    assert (derived["searches"], derived["impressions"]) == (1, 1)
    assert (visit["session_id"], visit["bucket"], visit["release"]) == ("vs", "B", "r7")
    assert (visit["searches"], visit["impressions"], visit["converted"]) == (1, 0, False)
    assert made["aggregate"].facts | {"summed": ""} == {
        "summed": "",
        "day": day, "pairs": 1, "events": 1, "sessions": 2, "events_without_session": 0,
        "machines": 0, "machine_events": 0, "machine_searches": 0, "machine_reasons": {},
        "over_bound": 0,
    }  # fmt: skip


def test_stretches_cover_whole_days_and_leave_out_what_lies_between() -> None:
    def at(*values: str) -> pl.Series:
        return pl.Series(values).str.to_datetime(time_unit="us", time_zone="UTC")

    def day(n: int, hour: int = 0) -> datetime:
        return datetime(2026, 1, n, hour, tzinfo=UTC)

    times = at("2026-01-20T23:59:59Z", "2026-01-01T05:00:00Z", "2026-01-19T00:00:00Z")
    assert stretches(times, "UTC") == [(day(1), day(2)), (day(19), day(21))]
    assert stretches(times, "UTC", timedelta(hours=6))[1] == (day(18, 18), day(21))
    assert stretches(times.clear(), "UTC") == []
    change = at("2026-03-08T12:00:00Z")  # clocks go forward: a day of 23 hours
    (found,) = stretches(change, "America/New_York")
    assert found == (datetime(2026, 3, 8, 5, tzinfo=UTC), datetime(2026, 3, 9, 4, tzinfo=UTC))


@pytest.mark.parametrize(
    ("zone", "day", "begins", "ends"),
    [  # midnight is left out, or comes twice
        ("America/Santiago", "2026-09-06", "2026-09-06T04:00", "2026-09-07T03:00"),
        ("Africa/Cairo", "2026-04-24", "2026-04-23T22:00", "2026-04-24T21:00"),
        ("America/Havana", "2026-11-01", "2026-11-01T04:00", "2026-11-02T05:00"),
    ],
)
def test_a_day_that_has_no_midnight_or_two_is_a_day(
    shop: Settings, zone: str, day: str, begins: str, ends: str
) -> None:
    noon = pl.Series([f"{day}T17:00:00"]).str.to_datetime(time_unit="us", time_zone="UTC")
    moments = tuple(datetime.fromisoformat(f"{m}+00:00") for m in (begins, ends))
    assert stretches(noon, zone) == [moments]
    config = market(schedule=Schedule(timezone=zone))
    before = (date.fromisoformat(day) - timedelta(days=1)).isoformat()
    for name in (before, day):  # on the day before it is the day's end that is missing
        land_sessions(shop, name, ZH, [session(name, "牛奶", ["p1"], name, click="p1")])
        made = ingest(shop, name, config)
        assert made["aggregate"].facts["events"] == 2
        assert made["publish_day"].facts["quarantined"] == 0


def test_a_night_reads_the_days_it_touches_and_changes_no_other(
    shop: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in range(1, 5):
        land_night(shop, n)
        ingest(shop, day_after(n))
    opened: set[str] = set()
    original = Lake.paths

    def paths(self: Lake, files: Sequence[Stored], scratch: Path) -> list[Path]:
        opened.update(f.day for f in files)
        return original(self, files, scratch)

    monkeypatch.setattr(Lake, "paths", paths)
    land_night(shop, 5)
    ingest(shop, day_after(5))
    assert opened == {day_after(4), day_after(5)}  # a search may be of the evening before

    def others() -> list[Any]:
        with reading(open_store(shop.db_url)) as connection:
            return [
                connection.execute(sa.select(t).where(t.c.day < day_after(6)).order_by(*t.c)).all()
                for t in (AGGREGATES, SESSIONS)
            ]

    before = others()
    opened.clear()
    land_night(shop, 6, [event("1-0", "purchase", "p1", 1, day_after(1))])
    ingest(shop, day_after(6))
    assert opened == {day_after(n) for n in (0, 1, 5, 6)}  # none of the days in between
    assert others() == before
