"""Who said what, and when: later grades, identifiers used again, pages, products that leave."""

from __future__ import annotations

import contextlib
from typing import Any

import polars as pl
import pytest
import sqlalchemy as sa

from csrm_tasks.dataset.source import catalogue, published_days
from csrm_tasks.errors import DataError
from csrm_tasks.ingest.validation.times import parse_times
from csrm_tasks.ingest.validation.validate import times_of
from csrm_tasks.sections import Schedule
from csrm_tasks.settings import Settings
from csrm_tasks.store.engine import open_store, reading
from csrm_tasks.store.lake import Lake
from csrm_tasks.store.tables import AGGREGATES, FILES, PRODUCTS, QUARANTINE, SESSIONS
from tests.data_fixtures import (
    DAY0,
    DAY1,
    DAY2,
    KO,
    ZH,
    event,
    ingest,
    label,
    land_lines,
    land_sessions,
    market,
    product,
    search,
    session,
    snapshot,
)

GOODS = [product(i, f"상품 {i}") for i in range(6)]
SHOP = [product(i, f"商品 {i}") for i in range(4)]


@pytest.fixture
def shop(settings: Settings) -> Settings:
    land_lines(settings, DAY0, f"{KO}/catalogue.jsonl", GOODS)
    land_lines(settings, DAY0, f"{ZH}/catalogue.jsonl", SHOP)
    rated = [label(i, "우유", f"p{i}", i % 3) for i in range(6)]
    land_lines(settings, DAY0, f"{KO}/labels.jsonl", rated)
    return settings


def take(settings: Settings, night: str) -> None:
    """Take a night in; one that speaks of what a missing one brings is not published yet."""
    with contextlib.suppress(DataError):
        ingest(settings, night)


def stored(settings: Settings, *columns: sa.Column[Any]) -> list[Any]:
    with reading(open_store(settings.db_url)) as connection:
        return sorted(tuple(r) for r in connection.execute(sa.select(*columns)))


def said(n: str, grade: int, at: str | None) -> dict[str, Any]:
    row = {"label_id": n, "query": "라면", "product_id": "p1", "grade": grade, "rater_id": "ann"}
    return row if at is None else row | {"rated_at": at}


@pytest.mark.parametrize(
    ("nights", "grade"),
    [
        ({DAY0: [said("9", 0, None)], DAY1: [said("10", 2, None)]}, 2),  # the later delivery
        ({DAY0: [said("b", 0, None), said("a", 2, None)]}, 2),  # the later row
        ({DAY0: [said("b", 2, f"{DAY0}T09:00:00Z"), said("a", 0, f"{DAY0}T08:00:00Z")]}, 2),
        ({DAY0: [said("b", 0, f"{DAY0}T09:00:00Z")], DAY1: [said("a", 2, f"{DAY0}T09:00:00Z")]}, 2),
        ({DAY0: [said("b", 0, f"{DAY0}T09:00:00Z")], DAY1: [said("a", 2, None)]}, 2),
        ({DAY0: [said("b", 0, None)], DAY1: [said("a", 2, f"{DAY0}T09:00:00Z")]}, 2),
    ],
)  # fmt: skip
def test_a_raters_later_grade_counts(
    shop: Settings, nights: dict[str, list[dict[str, Any]]], grade: int
) -> None:
    for night, rows in nights.items():
        land_lines(shop, night, f"{KO}/labels-ann.jsonl", rows)
    for night in sorted({DAY0, *nights}, reverse=True):  # in whichever order they come
        take(shop, night)
    found = snapshot(shop, 1, DAY2)
    pairs, queries = (pl.read_parquet(found.file(f"{n}.parquet")) for n in ("pairs", "queries"))
    mine = pairs.join(queries.filter(query="라면"), on="query_id", how="semi")
    assert mine["grade"].to_list() == [grade]


def sums(settings: Settings) -> list[Any]:
    columns = (AGGREGATES.c.day, AGGREGATES.c.query, AGGREGATES.c.product_id)
    return stored(settings, *columns, AGGREGATES.c.impressions, AGGREGATES.c.clicks)


def test_an_identifier_used_again_next_day_means_that_days_search(shop: Settings) -> None:
    first, again = session(1, "우유", ["p0"], click="p0"), session(1, "라면", ["p3"], DAY1)
    land_sessions(shop, DAY0, KO, [first])
    land_sessions(shop, DAY1, KO, [again])
    late = event(1, "click", "p0", 0) | {"timestamp": f"{DAY0}T23:00:00Z"}
    land_lines(shop, DAY1, f"{KO}/ubi_events-late.jsonl", [late])
    for night in (DAY1, DAY0):
        take(shop, night)
    assert sums(shop) == [
        (DAY0, "우유", "p0", 1, 1), (DAY1, "라면", "p3", 1, 0), (DAY1, "우유", "p0", 0, 1)
    ]  # fmt: skip
    assert stored(shop, QUARANTINE.c.reason) == []


def at(row: dict[str, Any], clock: str) -> dict[str, Any]:
    return row | {"timestamp": f"{DAY0}T{clock}Z"}


def test_an_identifier_used_again_within_a_day_means_the_search_before(shop: Settings) -> None:
    land_lines(shop, DAY0, f"{KO}/ubi_queries.jsonl", [
        at(search(1, "우유"), "09:00:00"), at(search(1, "라면"), "11:00:00"),
        at(search(1, "두유"), "10:00:00") | {"client_id": "other"},
    ])  # fmt: skip
    land_lines(shop, DAY0, f"{KO}/ubi_events.jsonl", [
        at(event(1, "click", "p0", 0), "10:30:00"), at(event(1, "click", "p1", 0), "11:30:00"),
        at(event(1, "click", "p2", 0), "10:30:00") | {"client_id": "other"},
    ])  # fmt: skip
    ingest(shop, DAY0)
    assert [(q, p) for _, q, p, *_ in sums(shop)] == [
        ("두유", "p2"),
        ("라면", "p1"),
        ("우유", "p0"),
    ]


def test_a_second_page_is_the_same_search_with_more_impressions(shop: Settings) -> None:
    pages = [at(search(1, "우유"), "09:00:00"), at(search(1, "우유"), "09:02:00")]
    shown = [event(1, "impression", f"p{i}", i) for i in range(4)]
    land_lines(shop, DAY0, f"{KO}/ubi_queries.jsonl", pages)
    seen = [at(e, f"09:0{2 * (i // 2)}:0{i}") for i, e in enumerate(shown)]
    land_lines(shop, DAY0, f"{KO}/ubi_events.jsonl", seen)
    ingest(shop, DAY0)
    assert stored(shop, QUARANTINE.c.reason) == []
    assert [row[3] for row in sums(shop)] == [1, 1, 1, 1]
    assert stored(shop, SESSIONS.c.searches, SESSIONS.c.impressions) == [(1, 4)]


def test_one_search_said_twice_at_one_time_with_other_texts_is_a_conflict(shop: Settings) -> None:
    land_lines(shop, DAY0, f"{KO}/ubi_queries.jsonl", [search(1, "우유"), search(1, "라면")])
    ingest(shop, DAY0)
    assert stored(shop, QUARANTINE.c.row, QUARANTINE.c.reason) == [(2, "conflicting_id")]


SPELT = {  # all of them 2026-01-05 10:00 UTC
    "T and Z": "2026-01-05T10:00:00Z",
    "offset without colon": "2026-01-05T19:00:00+0900",
    "hours of offset": "2026-01-05 10:00:00+00",
    "BigQuery": "2026-01-05 10:00:00.000000 UTC",
    "nanoseconds": "2026-01-05T10:00:00.000000000Z",
    "decimal comma": "2026-01-05T10:00:00,000Z",
    "no seconds": "2026-01-05T10:00Z",
    "no minutes": "2026-01-05T10",
    "compact": "20260105T100000Z",
    "slashes, year first": "2026/01/05 10:00:00",
    "mail": "Mon, 05 Jan 2026 10:00:00 GMT",
    "compact, no minutes": "20260105T10Z",
    "Java": "2026-01-05T19:00+09:00[Asia/Seoul]",
    "Temporal": "2026-01-05T19:00:00+09:00[!Asia/Seoul][u-ca=gregory]",
    "Go": "2026-01-05 10:00:00 +0000 UTC",
    "Go, in Seoul": "2026-01-05 19:00:00.000000 +0900 KST m=+0.000012",
    "Go, a zone without letters": "2026-01-05 14:30:00 +0430 +0430",
    "s": "1767607200", "ms": "1767607200000", "us": "1767607200000000",
    "ns": "1767607200000000000", "decimals": "1767607200.000", "float": "1.7676072E9",
}  # fmt: skip
AMBIGUOUS = ("05/01/2026 10:00", "5.1.2026", "26-01-05", "2026-01-05 10:00:00 EST", "20260105")
REFUSED = (  # as docs/DATA.md says: forms of ISO 8601 that exporters do not write
    "2026-W02-1", "2026-W02-1T10:00:00Z", "2026W021", "2026-005", "2026-005T10:00:00Z", "2026-01",
    "2026", "2026-01-05T10:00.5Z", "2026-01-05T10.5Z", "2026-01-05T10:00:00+09:00:00",
    "2026-01-05T10:00:00Z/2026-01-05T11:00:00Z", "T10:00:00Z", "2026-01-05T10:00[Asia/Seoul]",
)  # fmt: skip


def test_times_as_exporters_write_them_are_one_time_and_ambiguous_ones_none() -> None:
    found = parse_times(pl.Series([*SPELT.values(), *AMBIGUOUS, *REFUSED])).to_list()
    wrong = {
        n: t for n, t in zip(SPELT, found, strict=False) if str(t) != "2026-01-05 10:00:00+00:00"
    }
    assert wrong == {}
    assert found[len(SPELT) :] == [None] * len(AMBIGUOUS + REFUSED)


def test_parquet_times_of_any_unit_and_zone_are_one_time(shop: Settings) -> None:
    moment = pl.Series(["2026-01-04 10:00:00"]).str.to_datetime()
    for unit in ("ms", "us", "ns"):
        for zone in (None, "UTC", "Asia/Seoul"):
            here = moment.dt.cast_time_unit(unit)
            here = (
                here
                if zone is None
                else here.dt.replace_time_zone("UTC").dt.convert_time_zone(zone)
            )
            name = f"{unit}{zone or ''}".replace("/", "_")
            path = shop.landing / "tiny" / DAY0 / KO / f"ubi_queries-{name}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            row = {"query_id": [f"s{name}"], "user_query": ["우유"], "timestamp": here}
            pl.DataFrame(row).write_parquet(path)
    ingest(shop, DAY0)
    with reading(open_store(shop.db_url)) as connection:
        here = sa.select(FILES.c.first_at).where(FILES.c.kind == "ubi_queries").distinct()
        assert [str(t) for t in connection.scalars(here)] == ["2026-01-04 10:00:00+00:00"]


def test_a_day_ends_by_the_markets_clocks() -> None:
    """Half a day after it, for sessions that go on; a day may have 23 hours."""
    ends = {z: times_of("2026-03-08", 30, z).latest.isoformat() for z in
            ("UTC", "Asia/Seoul", "America/New_York")}  # fmt: skip
    assert ends == {
        "UTC": "2026-03-09T12:00:00+00:00", "Asia/Seoul": "2026-03-09T03:00:00+00:00",
        "America/New_York": "2026-03-09T16:00:00+00:00",
    }  # fmt: skip


def test_an_event_of_tomorrow_in_the_markets_zone_is_in_the_future(shop: Settings) -> None:
    seoul = market(schedule=Schedule(timezone="Asia/Seoul"))
    tomorrow = search(1, "우유") | {"timestamp": f"{DAY1}T04:00:00Z"}  # 13:00 there
    tonight = search(2, "우유") | {"timestamp": f"{DAY0}T16:00:00Z"}  # 01:00 there, a late session
    land_lines(shop, DAY0, f"{KO}/ubi_queries.jsonl", [tomorrow, tonight])
    ingest(shop, DAY0, seoul)
    assert stored(shop, QUARANTINE.c.row, QUARANTINE.c.reason) == [(1, "future_time")]


def titles(settings: Settings, until: str) -> dict[str, str]:
    """What the target's snapshot knows; the refresh of what is served sees the same."""
    found = pl.read_parquet(snapshot(settings, 1, until).file("products.parquet"))
    mine = found.filter(locale=ZH).select("product_id", "title")
    with reading(open_store(settings.db_url)) as connection:
        days = list(published_days(connection, "tiny", until))
        served = catalogue(connection, Lake(settings.lake, "tiny"), "tiny", days, ZH)
    assert served.select("product_id", "title").equals(mine.sort("product_id"))
    return dict(mine.iter_rows())


def test_a_product_is_gone_when_a_row_says_so_and_comes_back(shop: Settings) -> None:
    gone = [{"product_id": "p1", "deleted": True}, product(2, "商品 2") | {"deleted": "yes"}]
    land_lines(shop, DAY1, f"{ZH}/catalogue.jsonl", gone)
    land_lines(shop, DAY2, f"{ZH}/catalogue.jsonl", [product(1, "別的"), product(3, "商品 3")])
    for night in (DAY2, DAY0, DAY1):
        take(shop, night)
    assert sorted(titles(shop, DAY0)) == ["p0", "p1", "p2", "p3"]
    assert sorted(titles(shop, DAY1)) == ["p0", "p3"]
    assert titles(shop, DAY2) == {"p0": "商品 0", "p1": "別的", "p3": "商品 3"}


def test_a_whole_catalogue_takes_out_what_it_lacks(shop: Settings) -> None:
    land_lines(shop, DAY1, f"{ZH}/catalogue-full.1.jsonl", SHOP[:1])
    land_lines(shop, DAY1, f"{ZH}/catalogue-full.2.jsonl", SHOP[2:3])
    land_lines(shop, DAY2, f"{ZH}/catalogue.jsonl", SHOP[3:])  # as it was: nothing new to store
    for night in (DAY1, DAY2, DAY0):
        take(shop, night)
    assert sorted(titles(shop, DAY0)) == ["p0", "p1", "p2", "p3"]
    assert sorted(titles(shop, DAY1)) == ["p0", "p2"]
    assert sorted(titles(shop, DAY2)) == ["p0", "p2", "p3"]
    found = pl.read_parquet(snapshot(shop, 1, DAY2).file("products.parquet"))
    assert found.filter(locale=KO).height == len(GOODS)  # the other locale's is another catalogue


def test_a_whole_catalogue_with_a_row_in_quarantine_takes_nothing_out(shop: Settings) -> None:
    rows = [*SHOP[:2], product(2, "")]
    land_lines(shop, DAY1, f"{ZH}/catalogue-full.jsonl", rows)
    for night in (DAY0, DAY1):
        take(shop, night)
    assert stored(shop, QUARANTINE.c.detail) == [("title",)]
    assert sorted(titles(shop, DAY1)) == ["p0", "p1", "p2", "p3"]
    land_lines(shop, DAY1, f"{ZH}/catalogue-full.jsonl", SHOP[:2])  # corrected
    ingest(shop, DAY1)
    assert sorted(titles(shop, DAY1)) == ["p0", "p1"]


def test_what_was_said_of_a_product_that_left_is_kept(shop: Settings) -> None:
    """Its labels and events go in, and count again when it is back."""
    land_lines(shop, DAY1, f"{KO}/catalogue.jsonl", [{"product_id": "p1", "deleted": 1}])
    land_lines(shop, DAY1, f"{KO}/labels.jsonl", [label("late", "두유", "p1", 2)])
    land_lines(shop, DAY2, f"{KO}/catalogue.jsonl", [GOODS[1]])
    for night in (DAY0, DAY1, DAY2):
        take(shop, night)
    assert stored(shop, QUARANTINE.c.reason) == []
    pairs = {n: pl.read_parquet(snapshot(shop, 1, n).file("pairs.parquet")) for n in (DAY1, DAY2)}
    assert [pairs[n].filter(product_id="p1").height for n in (DAY1, DAY2)] == [0, 2]
    assert stored(shop, PRODUCTS.c.day, PRODUCTS.c.deleted)[-2:] == [(DAY1, 1), (DAY2, 0)]
