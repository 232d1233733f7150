"""UBI 1.3 as its plugin and its public clients write it; what is about something else counts."""

from __future__ import annotations

import json
from collections import Counter
from itertools import permutations
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import sqlalchemy as sa

from csrm_tasks.artifacts import Artifact
from csrm_tasks.errors import DataError
from csrm_tasks.ingest.aggregates.sums import follow_corrections
from csrm_tasks.ingest.storage.window import LakeWindow
from csrm_tasks.sections import Ingest
from csrm_tasks.settings import Settings, load_settings
from csrm_tasks.steps import run_step
from csrm_tasks.store.digest import store_digest
from csrm_tasks.store.engine import open_store, reading
from csrm_tasks.store.lake import Lake
from csrm_tasks.store.tables import AGGREGATES, FILES, SESSIONS
from tests.data_fixtures import (
    DAY0,
    DAY1,
    DAY2,
    KO,
    ZH,
    event,
    ingest,
    land_lines,
    market,
    open_artifact,
    product,
    search,
)

Row = dict[str, Any]
STRICT = market(ingest=Ingest(tolerance=0.0))


@pytest.fixture
def shop(settings: Settings) -> Settings:
    return open_shop(settings)


def open_shop(settings: Settings) -> Settings:
    for locale in (KO, ZH):
        land_lines(settings, "2026-01-03", f"{locale}/catalogue.jsonl",
                   [product(i, f"상품 {i}") for i in range(6)])  # fmt: skip
    ingest(settings, "2026-01-03")
    return settings


def receipts(made: dict[str, Artifact]) -> dict[str, Row]:
    found = json.loads(made["store"].file("receipt.json").read_text())["files"]
    for f in found:
        assert f["rows_in"] == f["stored"] + f["quarantined"] + f["known"] + f["ignored"]
    return {f["name"][6:-6]: f for f in found}


def impressions(settings: Settings) -> dict[tuple[str, str], int]:
    """Impressions of all days by query and product."""
    found: Counter[tuple[str, str]] = Counter()
    with reading(open_store(settings.db_url)) as connection:
        for row in connection.execute(sa.select(AGGREGATES)).mappings():
            found[row["query"], row["product_id"]] += row["impressions"]
    return {k: n for k, n in found.items() if n}


def sessions(settings: Settings) -> dict[str, tuple[int, int, int]]:
    """By session: searches, impressions, purchases."""
    columns = [SESSIONS.c[c] for c in ("session_id", "searches", "impressions", "purchases")]
    with reading(open_store(settings.db_url)) as connection:
        return {s: (n, i, p) for s, n, i, p in connection.execute(sa.select(*columns))}


def without(record: Row, *names: str) -> Row:
    return {k: v for k, v in record.items() if k not in names}


OTHERS: list[Row] = [
    {"action_name": "login", "client_id": "c", "timestamp": "2026-01-04T09:00:00Z"},
    {"action_name": "view", "timestamp": "never", "object_id": ["p1", "p2"]},
    {"action_name": "On_Search", "message": "우유", "event_attributes": "?"},
    {"action_name": "type_filter", "event_attributes": {"object": {"object_id": {"a": [1]}}}},
    {"action_name": "check\u202eout", "query_id": "nobody's"},
    event(1, "product_hover", "p1", 2) | {"query_id": "s99"},
]


def test_what_is_about_something_else_is_counted_and_stops_no_night(shop: Settings) -> None:
    browsing = [search("b", "x") | {"user_query": t} for t in ("", "  ", None, "\u200b")]
    browsing = [b | {"query_id": f"b{i}"} for i, b in enumerate(browsing)]
    browsing.append(without(browsing[0], "user_query", "timestamp") | {"query_id": "b9"})
    after = [event(0, "click", "p1", 1) | {"query_id": "b1"},
             event(0, "purchase", "unheard-of", 1) | {"query_id": "b3"}]  # fmt: skip
    own_words = event(0, "click", "p2", 1) | {"query_id": "b1", "user_query": "우유"}
    land_lines(shop, DAY0, f"{KO}/ubi_queries.jsonl", [search(1, "우유"), *browsing])
    events = [event(1, "click", "p1", 1), *OTHERS, *after, own_words]
    land_lines(shop, DAY0, f"{KO}/ubi_events.jsonl", events)
    made = ingest(shop, DAY0, STRICT)
    found = receipts(made)
    assert (found["ubi_queries"]["stored"], found["ubi_queries"]["ignored"]) == (1, 5)
    assert (found["ubi_events"]["stored"], found["ubi_events"]["ignored"]) == (2, 8)
    facts = made["publish_day"].facts
    assert (facts["ignored"], facts["quarantined"]) == (13, 0)
    counted = facts["notes"]["ignored"]
    assert counted["ubi_queries: without user_query"] == 5
    assert counted["ubi_events: of an ignored search"] == 2
    assert counted["ubi_events: action_name check\N{REPLACEMENT CHARACTER}out"] == 1
    assert sum(counted.values()) == 13
    assert sessions(shop)["v1"] == (1, 0, 0)

    land_lines(shop, DAY1, f"{KO}/ubi_queries.jsonl", browsing)  # again, and an event that is late
    land_lines(shop, DAY1, f"{KO}/ubi_events.jsonl", after[:1])
    found = receipts(ingest(shop, DAY1, STRICT))
    assert found["ubi_events"]["ignored"] == 1


def test_a_broken_row_counts_against_what_is_not_ignored(shop: Settings) -> None:
    land_lines(shop, DAY0, f"{KO}/ubi_queries.jsonl", [search(1, "우유")])
    broken = event(1, "click", "p1", 1) | {"timestamp": "never"}
    events = [event(1, "click", "p1", i) for i in range(8)] + [broken] + OTHERS[:1] * 90
    land_lines(shop, DAY0, f"{KO}/ubi_events.jsonl", events)
    with pytest.raises(DataError, match=r"1 of 10 rows are in quarantine \(10\.0%"):
        ingest(shop, DAY0, market(ingest=Ingest(tolerance=0.05)))
    assert ingest(shop, DAY0, market(ingest=Ingest(tolerance=0.1)))


def test_many_other_names_are_summed_up(shop: Settings) -> None:
    rows = [{"action_name": f"act-{i % 400}"} for i in range(1000)]
    land_lines(shop, DAY0, f"{KO}/ubi_events.jsonl", rows)
    notes = ingest(shop, DAY0, STRICT)["publish_day"].facts["notes"]["ignored"]
    assert sum(notes.values()) == 1000
    assert len(notes) == 21


@pytest.mark.parametrize("spelt", ["Click", "click_through", "item_click", "add-to-cart"])
def test_actions_as_clients_spell_them(spelt: str, shop: Settings) -> None:
    land_lines(shop, DAY0, f"{KO}/ubi_queries.jsonl", [search(1, "우유")])
    land_lines(shop, DAY0, f"{KO}/ubi_events.jsonl", [event(1, spelt, "p1", 1)])
    ingest(shop, DAY0, STRICT)
    with reading(open_store(shop.db_url)) as connection:
        row = connection.execute(sa.select(AGGREGATES)).mappings().one()
    assert row["carts" if "cart" in spelt else "clicks"] == 1


def test_rows_of_another_application_are_ignored_with_what_followed(shop: Settings) -> None:
    queries = [
        search(1, "우유"),
        search(2, "우유") | {"application": "type-ahead"},
        without(search(3, "우유"), "application"),
        search(4, "차") | {"application": "csrm"},
    ]
    events = [event(n, "click", "p1", 1) for n in (1, 2, 3, 4)]
    events = [without(e, "application") for e in events] + [
        event(1, "click", "p2", 1) | {"application": "type-ahead"}
    ]
    for day, config, ignored in (
        (DAY0, market(ingest=Ingest(tolerance=0.0, applications=("web",))), (1, 2)),
        (DAY1, STRICT, (0, 0)),
    ):
        locale = KO if day == DAY0 else ZH
        land_lines(shop, day, f"{locale}/ubi_queries.jsonl", queries)
        land_lines(shop, day, f"{locale}/ubi_events.jsonl", events)
        found = receipts(ingest(shop, day, config))
        assert (found["ubi_queries"]["ignored"], found["ubi_events"]["ignored"]) == ignored
        assert found["ubi_events"]["stored"] == 5 - ignored[1]


def test_the_session_is_found_wherever_the_record_has_it(shop: Settings) -> None:
    def at(record: Row, minute: int) -> Row:
        return record | {"timestamp": f"{DAY0}T09:{minute:02d}:00Z"}

    nested = without(search(1, "우유"), "session_id") | {"query_attributes": {"session_id": "n"}}
    inside = without(event(1, "purchase", "p1", 1), "session_id")
    inside["event_attributes"]["session_id"] = "n"
    plugin = without(search(2, "우유"), "session_id") | {"client_id": "x"}  # its events have one
    client = event(2, "click", "p1", 1) | {"client_id": "x", "session_id": "e"}
    visits = [
        without(at(search(n, "차"), minute), "session_id") | {"client_id": "y"}
        for n, minute in ((3, 0), (4, 30), (5, 59))
    ]
    visits[2]["timestamp"] = f"{DAY0}T10:00:01Z"
    bought = without(at(event(4, "purchase", "p1", 1), 45), "session_id") | {"client_id": "y"}
    nobody = without(search(6, "차"), "session_id", "client_id")
    land_lines(shop, DAY0, f"{KO}/ubi_queries.jsonl", [nested, plugin, *visits, nobody])
    land_lines(shop, DAY0, f"{KO}/ubi_events.jsonl", [inside, client, bought])
    ingest(shop, DAY0, STRICT)
    assert sessions(shop) == {
        "n": (1, 0, 1), "e": (1, 0, 0), "y@20260104-090000": (3, 0, 1),
    }  # fmt: skip


HITS = ["p0", "p1", "gone", "p1", "p3"]
SHOWN = {("우유", "p0"): 1, ("우유", "p1"): 1, ("우유", "p3"): 1}
TOLD = {("우유", "p0"): 1, ("우유", "p4"): 1}


def asked(n: int, hits: list[str] | None = None) -> Row:
    return search(n, "우유") | {"query_response_hit_ids": hits or HITS}


def test_a_search_tells_what_it_showed_in_rank_order(shop: Settings) -> None:
    land_lines(shop, DAY0, f"{KO}/ubi_queries.jsonl", [asked(1), asked(2)])
    seen = [event(2, "impression", p, i) for i, p in enumerate(("p0", "p4"), start=1)]
    land_lines(shop, DAY0, f"{KO}/ubi_events.jsonl", [*seen, event(1, "click", "p3", None)])
    ingest(shop, DAY0, STRICT)
    assert impressions(shop) == dict(Counter(SHOWN) + Counter(TOLD))
    statement = sa.select(AGGREGATES).where(AGGREGATES.c.product_id == "p3")
    with reading(open_store(shop.db_url)) as connection:
        row = connection.execute(statement).mappings().one()
    assert (row["position_sum"], row["positions"]) == (5, 1)  # its rank among the hits
    assert sessions(shop) == {"v1": (1, 3, 0), "v2": (1, 2, 0)}


def test_nothing_is_counted_twice_in_whatever_order_it_comes(tmp_path: Path) -> None:
    """The searches, their explicit impressions and an event of another search, on three days."""
    parts: dict[str, tuple[str, list[Row]]] = {
        "searches": ("ubi_queries", [asked(1), asked(2)]),
        "explicit": ("ubi_events", [
            event(1, "impression", p, i) | {"user_query": "우유"}
            for i, p in enumerate(("p0", "p4"))
        ]),
        "other": ("ubi_events", [event(2, "click", "p0", 1) | {"user_query": "우유"}]),
    }  # fmt: skip
    digests = set()
    for number, order in enumerate(permutations(parts)):
        shop = open_shop(load_settings({"CSRM_HOME": str(tmp_path / str(number))}))
        days = dict(zip(parts, (DAY0, DAY1, DAY2), strict=True))
        for name in order:
            kind, rows = parts[name]
            land_lines(shop, days[name], f"{KO}/{kind}.jsonl", rows)
            ingest(shop, days[name], STRICT)
        assert impressions(shop) == dict(Counter(SHOWN) + Counter(TOLD)), order
        lake = Lake(shop.lake, "tiny")
        with reading(open_store(shop.db_url)) as connection:
            digests.add(store_digest(connection, lake, "tiny"))
    assert len(digests) == 1


def test_impressions_that_are_taken_back_count_as_the_search_told_them(shop: Settings) -> None:
    land_lines(shop, DAY0, f"{KO}/ubi_queries.jsonl", [asked(1)])
    ingest(shop, DAY0, STRICT)
    assert impressions(shop) == SHOWN
    late = [event(1, "impression", p, i) for i, p in enumerate(("p0", "p4"))]
    land_lines(shop, DAY1, f"{KO}/ubi_events.jsonl", late)
    ingest(shop, DAY1, STRICT)
    assert impressions(shop) == TOLD
    land_lines(shop, DAY1, f"{KO}/ubi_events.jsonl", [event(1, "click", "p0", 0)])  # a correction
    ingest(shop, DAY1, STRICT)
    assert impressions(shop) == SHOWN
    window = LakeWindow(open_store(shop.db_url), Lake(shop.lake, "tiny"), "tiny", DAY1)
    assert follow_corrections(window, Ingest(), shop.home / "scratch", 1) == []


def test_lake_files_of_an_earlier_version_are_read_as_they_are(shop: Settings) -> None:
    land_lines(shop, DAY0, f"{KO}/ubi_queries.jsonl", [asked(1)])
    land_lines(shop, DAY0, f"{KO}/ubi_queries-b.jsonl", [asked(2)])
    made = ingest(shop, DAY0, STRICT)
    with reading(open_store(shop.db_url)) as connection:
        part = connection.scalar(sa.select(FILES.c.part).where(FILES.c.name.contains("-b.")))
    [old] = [p for p in Path(shop.lake).rglob("*.parquet") if part in p.name]
    pl.read_parquet(old).drop("hits").write_parquet(old)
    assert made["aggregate"].facts["pairs"] == 3
    land_lines(shop, DAY0, f"{KO}/ubi_events.jsonl", [event(2, "click", "p5", 1)])
    made = ingest(shop, DAY0, STRICT)
    assert impressions(shop) == SHOWN
    assert made["aggregate"].facts["sessions"] == 2


def test_what_follows_a_browsing_that_comes_late_is_ignored_then(shop: Settings) -> None:
    late = event(7, "click", "p1", 1) | {"query_id": "b1"}
    land_lines(shop, DAY0, f"{KO}/ubi_events.jsonl", [late, event(7, "click", "p2", 1)])
    with pytest.raises(DataError, match="2 of 2 rows are in quarantine"):
        ingest(shop, DAY0)
    browsing = search("b1", "") | {"query_id": "b1"}
    land_lines(shop, DAY0, f"{KO}/ubi_queries.jsonl", [browsing])
    with pytest.raises(DataError, match="1 of 1 rows are in quarantine"):
        ingest(shop, DAY0)
    with reading(open_store(shop.db_url)) as connection:
        statement = sa.select(FILES).where(FILES.c.kind == "ubi_events", FILES.c.live)
        file = connection.execute(statement).mappings().one()
    assert (file["rows_in"], file["quarantined"], file["ignored"]) == (2, 1, 1)
    assert file["notes"] == {"ignored": {"of an ignored search": 1}}


def test_replayed_rows_that_are_ignored_now_balance_their_receipt(shop: Settings) -> None:
    other = event(7, "click", "p1", 1) | {"application": "app", "timestamp": "never"}
    land_lines(shop, DAY0, f"{KO}/ubi_events.jsonl", [other, event(7, "click", "p2", 1)])
    with pytest.raises(DataError, match="2 of 2 rows are in quarantine"):
        ingest(shop, DAY0)
    config = market(ingest=Ingest(applications=("web",)))
    ref = run_step("replay", config, {}, {"day": DAY0, "run": "1", "apply": True}, shop)
    [told] = open_artifact(shop, ref).facts["files"]
    assert (told["rows"], told["ignored"], told["reasons"]) == (2, 1, {"unknown_query": 1})
    ref = run_step("replay", config, {}, {"day": DAY0, "run": "2", "apply": True}, shop)
    [told] = open_artifact(shop, ref).facts["files"]  # once more it is as it was
    assert (told["rows"], told["ignored"], told["reasons"]) == (1, 0, {"unknown_query": 1})
    with reading(open_store(shop.db_url)) as connection:
        statement = sa.select(FILES).where(FILES.c.kind == "ubi_events", FILES.c.live)
        file = connection.execute(statement).mappings().one()
    assert (file["rows_in"], file["quarantined"], file["ignored"]) == (2, 1, 1)
    assert file["notes"] == {"ignored": {"application app": 1}}


@pytest.mark.parametrize("days", [(DAY0, DAY1), (DAY1, DAY0), (DAY0, DAY0)])
def test_impressions_of_another_search_of_the_same_identifier_take_none_away(
    shop: Settings, days: tuple[str, str]
) -> None:
    """A shop counts anew each day; the night comes early, late or is one with the other."""
    evening = {"timestamp": f"{DAY0}T20:00:00Z", "client_id": "y", "session_id": "vy"}
    other = search(1, "빵") | evening | {"query_id": "s1"}
    seen = event(1, "impression", "p5", 1) | evening | {"query_id": "s1"}
    nights = {
        DAY0: [("ubi_queries", asked(1, ["p0", "p1"]) | {"query_id": "s1"})],
        DAY1: [("ubi_queries-b", other), ("ubi_events-b", seen)],
    }
    if days == (DAY0, DAY0):
        nights = {DAY0: nights[DAY0] + nights[DAY1]}
    for day in dict.fromkeys(days):
        for name, record in nights[day]:
            land_lines(shop, day, f"{KO}/{name}.jsonl", [record])
        ingest(shop, day, STRICT)
    assert impressions(shop) == {("우유", "p0"): 1, ("우유", "p1"): 1, ("빵", "p5"): 1}


def test_two_clients_under_one_identifier_are_two_visits(shop: Settings) -> None:
    first = search(1, "우유") | {"query_id": "1", "client_id": "x", "session_id": "S1"}
    evening = {"client_id": "y", "query_id": "1", "session_id": None}
    second = search(2, "빵") | evening | {"timestamp": f"{DAY0}T20:00:00Z"}
    bought = event(2, "purchase", "p1", 1) | evening | {"timestamp": f"{DAY0}T20:01:00Z"}
    land_lines(shop, DAY0, f"{KO}/ubi_queries.jsonl", [first, second])
    land_lines(shop, DAY0, f"{KO}/ubi_events.jsonl", [bought])
    ingest(shop, DAY0, STRICT)
    found = sessions(shop)
    assert found.pop("S1") == (1, 0, 0)
    [(visit, counts)] = found.items()
    assert visit.startswith("y@") and counts == (1, 0, 1)


@pytest.mark.parametrize(
    ("text", "searches"),
    [("우유", 1), (" 우유\u200b", 1), ("빵", 2)],
    ids=["page", "spelt", "other"],
)
def test_an_identifier_that_comes_again_is_another_search_if_its_text_is_another(
    text: str, searches: int, shop: Settings
) -> None:
    later = {"timestamp": f"{DAY0}T09:05:00Z"}
    again = asked(1, ["p0", "p3"]) | later | {"user_query": text}
    bought = event(1, "purchase", "p3", 1) | {"timestamp": f"{DAY0}T09:06:00Z"}
    land_lines(shop, DAY0, f"{KO}/ubi_queries.jsonl", [asked(1, ["p0"]), again])
    land_lines(shop, DAY0, f"{KO}/ubi_events.jsonl", [bought])
    ingest(shop, DAY0, STRICT)
    [(_, counts)] = sessions(shop).items()
    assert counts[0] == searches and counts[2] == 1
    shown = Counter({(q.strip(" \u200b"), p): n for (q, p), n in impressions(shop).items() if n})
    if text == "빵":
        assert shown == {("우유", "p0"): 1, ("빵", "p0"): 1, ("빵", "p3"): 1}
    else:
        assert set(shown) == {("우유", "p0"), ("우유", "p3")}
