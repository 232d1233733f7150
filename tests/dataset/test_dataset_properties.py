"""What holds for every snapshot: no leak between splits, nothing from later, no order of rows."""

from __future__ import annotations

from functools import cache
from typing import Any

import polars as pl
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy.engine import Connection

from csrm_tasks.dataset.snapshot import Tables, build
from csrm_tasks.ingest.storage.days import day_state
from csrm_tasks.markets import MarketConfig
from csrm_tasks.sections import Snapshot
from csrm_tasks.store.lake import POSITIONS, Lake
from csrm_tasks.store.models import Base
from csrm_tasks.store.tables import AGGREGATES, DAYS, FILES, LABELS, PRODUCTS
from csrm_tasks.text import normalise, query_id
from csrm_tasks.towers.pairs import distillation_queries
from tests.data_fixtures import KO, ZH, market

DAYS_OF_TWO_WEEKS = [f"2026-01-{d:02d}" for d in range(5, 19)]  # from a Monday
# The same text as people type it: width, case, spaces, invisible characters.
SPELT = [
    ["tv 4k", "TV 4K", "ｔｖ　４ｋ", " Tv  4K ", "tv\u200b 4k"],
    ["lg", "LG", "ＬＧ", "l\u200bg"],
    ["牛奶", "牛奶 ", "\ufeff牛奶"],
    ["straße", "STRASSE", "Strasse"],
    ["우유", "우유\u00ad"],
]
NO_LAKE = Lake("/nowhere", "tiny")  # no file has rows there
JA, VI = "ja-JP", "vi-VN"  # a second source, and a language that is only judged in
LOCALES = (KO, JA, ZH, VI)
MARKET = market(
    source_locale=(KO, JA),
    evaluation_locales=(VI,),
    snapshot=Snapshot(gold_raters=2, gold_agree=2, dev_share=0.3, derived_queries=5),
)

spelling = st.sampled_from(SPELT).flatmap(st.sampled_from)
locale = st.sampled_from(LOCALES)
day = st.sampled_from(DAYS_OF_TWO_WEEKS)
products = st.integers(0, 3).map("p{}".format)
label = st.tuples(day, locale, spelling, products, st.integers(0, 2), st.sampled_from(["", *"abc"]))
act = st.tuples(day, locale, spelling, products, st.integers(1, 9), st.integers(0, 2))
Rows = list[tuple[Any, ...]]
deliveries = (st.lists(label, max_size=40), st.lists(act, max_size=25), day)


def made_of(labels: Rows, acts: Rows, until: str, config: MarketConfig = MARKET) -> Tables:
    """Put the rows into an empty store and build stage 2 of it."""
    with empty_store().connect() as connection:
        _fill(connection, labels, acts)
        nowhere = pl.DataFrame(schema=POSITIONS)
        built = build(connection, config, 2, until, lambda day: nowhere, NO_LAKE)
        connection.rollback()  # the next example's store is empty again
    return built.tables


@cache
def empty_store() -> sa.Engine:
    engine = sa.create_engine("sqlite://")
    Base.metadata.create_all(engine)
    return engine


def _fill(connection: Connection, labels: Rows, acts: Rows) -> None:
    own = {"market": "tiny"}
    days = sorted({DAYS_OF_TWO_WEEKS[0], *(row[0] for row in (*labels, *acts))})
    files = {
        (d, x, kind): i
        for i, (d, x, kind) in enumerate(
            (d, x, k) for d in days for x in LOCALES for k in ("catalogue", "labels", "ubi_events")
        )
    }
    counts = dict.fromkeys(("rows_in", "stored", "quarantined", "known"), 1)
    listed = [
        own | counts | {"id": i, "day": d, "locale": x, "kind": k, "name": f"{x}/{k}",
                        "digest": f"{i:064d}"}
        for (d, x, k), i in files.items()
    ]  # fmt: skip
    sold = [
        own | {"locale": x, "product_id": f"p{i}", "day": days[0], "title": f"tv {i}",
               "brand": "", "category": "c", "description": "",
               "file_id": files[days[0], x, "catalogue"]}
        for x in LOCALES for i in range(4)
    ]  # fmt: skip
    rated = [
        own | {"label_id": f"l{i:03d}", "day": d, "locale": x, "query": q, "product_id": p,
               "grade": g, "rater_id": r, "guideline_version": "", "file_id": files[d, x, "labels"]}
        for i, (d, x, q, p, g, r) in enumerate(labels)
    ]  # fmt: skip
    for table, rows in ((FILES, listed), (PRODUCTS, sold), (LABELS, rated),
                        (AGGREGATES, _summed(own, acts))):  # fmt: skip
        if rows:
            connection.execute(sa.insert(table), rows)
    for d in days:
        digest = day_state(connection, "tiny", d).digest
        counted = {"day": d, "digest": digest, "rows_in": 6, "quarantined": 0, "share": 0.0}
        connection.execute(sa.insert(DAYS).values(**own, **counted))


def _summed(own: dict[str, str], acts: Rows) -> Rows:
    found: dict[Any, dict[str, Any]] = {}
    for d, x, q, p, shown, bought in acts:
        row = found.setdefault((d, x, normalise(q), p), own | {
            "day": d, "locale": x, "query_id": query_id(x, q), "product_id": p, "query": q,
            **dict.fromkeys(("impressions", "clicks", "carts", "purchases"), 0),
            "position_sum": 0, "positions": 0, "skips": 0,
        })  # fmt: skip
        for column, n in (("impressions", shown), ("clicks", bought), ("purchases", bought),
                          ("positions", shown)):  # fmt: skip
            row[column] += n
        row["query"] = min(row["query"], q)
    return list(found.values())


def norms(frame: pl.DataFrame, tables: Tables) -> set[str]:
    """Return the normalised texts of a table's queries, whatever the locale."""
    ids = frame.select("query_id").unique()
    found = tables.queries.join(ids, on="query_id")
    assert found.height == ids.height, "a query without a text"
    return set(found["norm"])


@settings(max_examples=300, deadline=None)
@given(*deliveries)
def test_no_text_is_on_two_sides(labels: Rows, acts: Rows, until: str) -> None:  # A10
    tables = made_of(labels, acts, until)
    sides = {s: norms(tables.pairs.filter(split=s), tables) for s in ("train", "dev", "gold")}
    assert not sides["train"] & sides["dev"]
    assert not sides["gold"] & (sides["train"] | sides["dev"])
    held_out = sides["dev"] | sides["gold"]
    assert not norms(tables.conversions, tables) & held_out
    judged_in = tables.pairs.filter(locale=VI)
    assert set(judged_in["split"]) <= {"gold"}  # A36
    assert set(tables.conversions["locale"]) <= {KO, JA, ZH}
    assert set(tables.queries.filter(locale=VI)["query_id"]) == set(judged_in["query_id"])
    learnt = distillation_queries(tables.queries, tables.pairs, ZH, 1000)
    assert not set(learnt["norm"]) & held_out
    assert set(tables.queries["norm"]) == {normalise(n) for n in tables.queries["norm"]}
    assert tables.queries.select("locale", "norm").is_unique().all()


@settings(max_examples=25, deadline=None)
@given(*deliveries)
def test_what_comes_later_changes_nothing_and_gold_only_grows(
    labels: Rows, acts: Rows, until: str
) -> None:
    now = made_of(labels, acts, until)
    before = made_of(
        [r for r in labels if r[0] <= until], [r for r in acts if r[0] <= until], until
    )
    assert_equal(now, before)
    gold = ("pair_id", "grade", "raters", "agree")
    later = made_of(labels, acts, DAYS_OF_TWO_WEEKS[-1]).pairs.filter(split="gold").select(gold)
    assert set(now.pairs.filter(split="gold").select(gold).rows()) <= set(later.rows())


@settings(max_examples=25, deadline=None)
@given(*deliveries)
def test_the_order_of_rows_does_not_matter(labels: Rows, acts: Rows, until: str) -> None:
    # One rater's two ratings of a pair, and no time to tell which is the last: left out here.
    distinct = list({
        (x, normalise(q), p, r or i): (d, x, q, p, g, r)
        for i, (d, x, q, p, g, r) in enumerate(labels)
    }.values())  # fmt: skip
    assert_equal(made_of(distinct, acts, until), made_of(distinct[::-1], acts[::-1], until))


def assert_equal(one: Tables, two: Tables) -> None:
    for name in Tables.__annotations__:
        assert getattr(one, name).equals(getattr(two, name)), name


def test_the_tables_are_not_empty_on_an_ordinary_market() -> None:
    """So that the properties above are about something."""
    labels = [
        (d, x, q[i % len(q)], f"p{i % 4}", i % 3, r)
        for d in DAYS_OF_TWO_WEEKS[:2] for x in (KO, ZH) for i, q in enumerate(SPELT) for r in "a"
    ]  # fmt: skip
    labels += [(DAYS_OF_TWO_WEEKS[0], ZH, "lg", "p0", 2, r) for r in "bc"]
    acts = [(DAYS_OF_TWO_WEEKS[1], x, q[0], "p1", 9, 1) for x in (KO, ZH) for q in SPELT]
    tables = made_of(labels, acts, DAYS_OF_TWO_WEEKS[-1])
    assert set(tables.pairs["split"]) == {"train", "dev", "gold"}
    assert tables.conversions.height > 0
    assert tables.behaviour.height > 0


def test_the_consensus_is_the_markets_choice() -> None:
    """Two careful raters are outvoted by three who say 0 whatever they see."""
    labels = [
        (DAYS_OF_TWO_WEEKS[0], ZH, f"query {i}", f"p{i % 4}", i % 3 if r in "ab" else 0, r)
        for i in range(60) for r in "abcde"
    ]  # fmt: skip
    found = {}
    for method in ("majority", "dawid_skene"):
        rules = Snapshot(consensus=method)  # type: ignore[arg-type]
        tables = made_of(labels, [], DAYS_OF_TWO_WEEKS[0], market(snapshot=rules))
        found[method] = tables.pairs["grade"].value_counts().sort("grade")["count"].to_list()
    assert found == {"majority": [60], "dawid_skene": [20, 20, 20]}
