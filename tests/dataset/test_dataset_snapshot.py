"""Snapshots: leak-free, reproducible, and stage 1 sees nothing that the target market said."""

from __future__ import annotations

import json
from typing import Any

import polars as pl
import pytest
import sqlalchemy as sa

from csrm_tasks.artifacts import Artifact, file_digest
from csrm_tasks.dataset.tables import SCHEMAS
from csrm_tasks.errors import ConfigError, DataError
from csrm_tasks.sections import Snapshot
from csrm_tasks.settings import Settings, load_settings
from csrm_tasks.store.engine import open_store
from csrm_tasks.text import pair_id, query_id
from tests.conftest import new_database
from tests.data_fixtures import (
    DAY0,
    DAY1,
    DAY2,
    KO,
    ZH,
    ingest,
    label,
    land_lines,
    land_sessions,
    market,
    product,
    session,
    snapshot,
)

PLANTED = "內衣外穿"  # a target query that only labels and logs know
KO_QUERIES = ["우유", "라면", "매운 라면", "삼성 티비", "두유", "생수", "커피", "녹차"]


def translation(n: int, kind: str, source: str, target: str) -> dict[str, Any]:
    return {"translation_id": f"t{n}", "kind": kind, "source_text": source, "target_text": target}


def land_market(settings: Settings) -> None:
    ko = [product(i, f"[특가] 삼성 상품{i} 500ml", "삼성") for i in range(8)]
    zh = [
        product(i, f"【特價】三星 {kind} 500毫升 新品", "三星", f"食品 > {kind}")
        for i, kind in enumerate(["果汁", "辣湯麵"] * 4)
    ]
    land_lines(settings, DAY0, f"{KO}/catalogue.jsonl", ko)
    land_lines(settings, DAY0, f"{ZH}/catalogue.jsonl", zh)
    land_lines(settings, DAY0, f"{ZH}/translations.jsonl", [
        translation(1, "query", "우유", "牛奶"), translation(2, "brand", "삼성", "三星"),
        translation(3, "title", "상품", "商品"), translation(4, "query", "라면", "泡麵"),
    ])  # fmt: skip
    land_lines(settings, DAY0, f"{KO}/labels.jsonl", [
        label(f"{q}{i}", q, f"p{i}", i % 3) for q in KO_QUERIES for i in range(3)
    ])  # fmt: skip
    land_sessions(settings, DAY0, KO, [
        session(f"{q}{v}", q, ["p3", "p4", "p5"], click="p4", purchase="p4")
        for q in KO_QUERIES for v in range(2)
    ])  # fmt: skip
    gold = [label(f"g{r}{i}", PLANTED, f"p{i}", 2, f"r{r}") for r in range(8) for i in (1, 2)]
    odd = [label(f"o{r}", PLANTED, "p3", r % 2, f"r{r}") for r in range(8)]
    rest = [label(f"z{q}{i}", q, f"p{i}", i) for q in ("LG 冰箱", "拉麵", "豆漿") for i in range(3)]
    alike = [label("alike", PLANTED, "p1", 1)]
    land_lines(settings, DAY1, f"{ZH}/labels.jsonl", [*gold, *odd, *rest])
    land_lines(settings, DAY1, f"{KO}/labels.jsonl", alike)
    land_sessions(settings, DAY1, ZH, [
        session(f"zh{v}", PLANTED, ["p1", "p2"], DAY1, click="p2") for v in range(2)
    ])  # fmt: skip


@pytest.fixture
def landed(settings: Settings) -> Settings:
    land_market(settings)
    ingest(settings, DAY0)
    ingest(settings, DAY1)
    return settings


def table(made: Artifact, name: str) -> pl.DataFrame:
    frame = pl.read_parquet(made.file(f"{name}.parquet"))
    assert dict(frame.schema) == {
        c: t() if isinstance(t, type) else t for c, t in SCHEMAS[name].items()
    }
    return frame


def test_stage_1_never_sees_a_target_label_or_log(landed: Settings) -> None:  # A9
    asked: list[tuple[str, Any]] = []
    engine = open_store(landed.db_url)

    def note(_c: Any, _u: Any, statement: str, parameters: Any, *_: Any) -> None:
        asked.append((statement, parameters))

    sa.event.listen(engine, "before_cursor_execute", note)
    try:
        made = snapshot(landed, 1, DAY1)
    finally:
        sa.event.remove(engine, "before_cursor_execute", note)
    looked = [(s, p) for s, p in asked if "FROM labels" in s or "FROM aggregates" in s]
    assert len(looked) == 3
    assert all(KO in p and ZH not in p for _, p in looked)
    assert table(made, "pairs")["locale"].unique().to_list() == [KO]
    assert table(made, "conversions")["locale"].unique().to_list() == [KO]
    assert table(made, "behaviour").is_empty()
    assert table(made, "queries").filter(query=PLANTED, locale=ZH).is_empty()
    assert set(table(made, "products")["locale"]) == {KO, ZH}


def test_stage_1_target_queries_are_translated_and_derived(landed: Settings) -> None:  # A21
    queries = table(snapshot(landed, 1, DAY1), "queries").filter(locale=ZH).sort("query")
    assert queries.select("query", "origin", "brand").rows() == [
        ("三星", "derived", "三星"),
        ("三星 果汁", "derived", "三星"),
        ("三星 辣湯麵", "derived", "三星"),
        ("果汁", "derived", ""),
        ("泡麵", "translated", ""),
        ("牛奶", "translated", ""),
        ("辣湯麵", "derived", ""),
    ]


def test_further_title_derived_queries_are_for_the_towers_alone(landed: Settings) -> None:  # A31
    few = market(snapshot=Snapshot(derived_queries=2))
    more = market(snapshot=Snapshot(derived_queries=2, distilled_queries=2))
    alone, found = (
        table(snapshot(landed, 1, DAY1, config), "queries").filter(locale=ZH)
        for config in (few, more)
    )
    assert found.filter(pl.col("origin") != "distilled").equals(alone)
    assert alone.filter(origin="derived").height == found.filter(origin="distilled").height == 2


def test_stage_2_has_target_evidence(landed: Settings) -> None:
    made = snapshot(landed, 2, DAY1)
    queries = table(made, "queries")
    planted = queries.filter(query=PLANTED, locale=ZH)
    assert planted.select("origin", "impressions").rows() == [("label", 4)]
    assert planted["query_id"].item() == query_id(ZH, PLANTED)
    behaviour = table(made, "behaviour").sort("product_id")
    columns = ("locale", "product_id", "impressions", "clicks")
    assert behaviour.select(columns).rows() == [(ZH, "p1", 2, 0), (ZH, "p2", 2, 2)]
    assert 0 < behaviour["weight"][0] < behaviour["weight"][1] <= 1


def test_gold_is_what_enough_raters_agree_on_and_in_no_other_split(landed: Settings) -> None:  # A10
    made = snapshot(landed, 2, DAY1)
    pairs = table(made, "pairs")
    gold = pairs.filter(split="gold").sort("product_id")
    expected = [("p1", 2, 8, 8), ("p2", 2, 8, 8)]
    assert gold.select("product_id", "grade", "raters", "agree").rows() == expected
    assert gold["pair_id"][0] == pair_id(query_id(ZH, PLANTED), "p1")
    # neither the pair that its raters disagree on nor the same text in the source language
    assert (
        pairs.filter(pl.col("query_id").is_in([query_id(x, PLANTED) for x in (KO, ZH)])).height == 2
    )
    stricter = market(snapshot=Snapshot(gold_raters=9))
    assert table(snapshot(landed, 2, DAY1, stricter), "pairs").filter(split="gold").is_empty()


def test_a_query_is_on_one_side_of_a_split(landed: Settings) -> None:
    made = snapshot(landed, 2, DAY1)
    pairs = table(made, "pairs").join(table(made, "queries"), on="query_id", suffix="_q")
    assert pairs.group_by("norm").agg(pl.col("split").n_unique())["split"].max() == 1
    per_side = pairs.group_by("locale", "split").agg(pl.col("query_id").n_unique()).sort("locale")
    found = {(x, s): n for x, s, n in per_side.iter_rows()}
    assert found[KO, "dev"] + found[KO, "train"] == 8
    assert found[ZH, "dev"] + found[ZH, "train"] == 3
    held_out = pairs.filter(pl.col("split") != "train")["query_id"]
    assert (
        table(made, "conversions").filter(pl.col("query_id").is_in(held_out.implode())).is_empty()
    )


def test_the_same_days_give_the_same_bytes(landed: Settings, tmp_path: Any) -> None:
    other = load_settings({"CSRM_HOME": str(tmp_path / "other")})
    land_market(other)
    for day in (DAY1, DAY0):  # labels of the second day are refused before their products are here
        ingest(other, day, market(ingest=market().ingest.model_copy(update={"tolerance": 1.0})))
    one, two = snapshot(landed, 1, DAY0), snapshot(other, 1, DAY0)
    for name in SCHEMAS:
        assert file_digest(one.file(f"{name}.parquet")) == file_digest(two.file(f"{name}.parquet"))
    assert snapshot(landed, 1, DAY0).ref == one.ref  # nothing new was published: a no-op
    assert snapshot(landed, 1, DAY1).ref != one.ref


def files_of(made: Artifact) -> dict[str, str]:
    return {p.name: file_digest(p) for p in sorted(made.path.iterdir())}


def test_the_order_in_which_files_come_does_not_matter(landed: Settings, tmp_path: Any) -> None:
    other = load_settings({"CSRM_HOME": str(tmp_path / "other")})
    more = [label(f"x{i}", "豆漿", f"p{i}", i % 3, f"r{i}") for i in range(5)]
    late = [session("x", "豆漿", ["p1", "p2"], DAY0, click="p2")]
    land_lines(landed, DAY1, f"{ZH}/labels-more.jsonl", more)
    land_sessions(landed, DAY1, KO, late)
    ingest(landed, DAY1)  # after the day's other files
    land_market(other)
    ingest(other, DAY0)
    held = {p: p.read_bytes() for p in (other.landing / "tiny" / DAY1).rglob("*.jsonl")}
    for path in held:
        path.unlink()
    land_lines(other, DAY1, f"{ZH}/labels-more.jsonl", more)
    land_sessions(other, DAY1, KO, late)
    ingest(other, DAY1)  # before them
    for path, content in held.items():
        path.write_bytes(content)
    ingest(other, DAY1)
    for stage in (1, 2):
        one, two = snapshot(landed, stage, DAY1), snapshot(other, stage, DAY1)
        assert files_of(one) == files_of(two)
        assert one.facts == two.facts
    assert len(files_of(one)) == len(SCHEMAS) + 3


@pytest.mark.postgres
def test_sqlite_and_postgresql_give_the_same_bytes(
    landed: Settings, server: str, template: str, tmp_path: Any
) -> None:
    there = load_settings({
        "CSRM_HOME": str(tmp_path / "there"), "CSRM_DB_URL": new_database(server, template),
    })  # fmt: skip
    land_market(there)
    for day in (DAY0, DAY1):
        ingest(there, day)
    for stage in (1, 2):
        one, two = snapshot(landed, stage, DAY1), snapshot(there, stage, DAY1)
        assert files_of(one) == files_of(two)


def test_a_snapshot_says_what_it_is_made_of(landed: Settings) -> None:
    made = snapshot(landed, 2, DAY1)
    about = json.loads(made.file("snapshot.json").read_text())
    assert list(about["days"]) == [DAY0, DAY1]
    assert about["tables"] == {
        name: {"rows": table(made, name).height, "sha256": files_of(made)[f"{name}.parquet"]}
        for name in SCHEMAS
    }
    listed = {(f["day"], f["name"]): f["digest"] for f in about["files"]}
    delivered = [p for p in (landed.landing / "tiny").rglob("*.jsonl") if p.is_file()]
    assert listed == {
        (p.parent.parent.name, f"{p.parent.name}/{p.name}"): file_digest(p) for p in delivered
    }
    pairs = table(made, "pairs")
    grades = about["splits"]["grades"]
    assert {x for x, s in pairs.select("locale", "split").iter_rows()} == set(grades)
    assert sum(sum(n) for of in grades.values() for n in of.values()) == pairs.height
    assert about["gold"]["digest"] == made.facts["gold_digest"]
    assert (about["gold"]["pairs"], about["gold"]["queries"]) == (2, 1)
    raters = json.loads(made.file("raters.json").read_text())
    assert raters[ZH]["alpha"] is not None and len(raters[ZH]["raters"]) == 8
    first = json.loads(snapshot(landed, 1, DAY1).file("snapshot.json").read_text())
    read = {(f["locale"], f["name"].split("/")[1]) for f in first["files"]}
    assert {name for x, name in read if x == ZH} == {"catalogue.jsonl", "translations.jsonl"}  # A9


def test_no_event_after_the_windows_end_gets_in(landed: Settings) -> None:
    before = snapshot(landed, 2, DAY1)
    soon, late = f"{DAY2}T11:59:00Z", f"{DAY2}T12:01:00Z"  # around the end of DAY1 at UTC-12
    for at, n in ((soon, "soon"), (late, "late")):
        asked, events = session(n, f"{n} 拉麵", ["p1"], DAY1, click="p1")
        stamped = [e | {"timestamp": at} for e in events]
        land_lines(landed, DAY1, f"{ZH}/ubi_queries-{n}.jsonl", [asked | {"timestamp": at}])
        land_lines(landed, DAY1, f"{ZH}/ubi_events-{n}.jsonl", stamped)
    ingest(landed, DAY1)
    after = snapshot(landed, 2, DAY1)
    typed = set(table(after, "queries")["query"]) - set(table(before, "queries")["query"])
    assert typed == {"soon 拉麵"}
    about = json.loads(after.file("snapshot.json").read_text())
    assert about["events_until"] == "2026-01-06T11:59:00+00:00" < about["ends_at"]


def test_nothing_after_the_window_is_seen(landed: Settings) -> None:
    before = snapshot(landed, 2, DAY1)
    land_lines(landed, DAY2, f"{ZH}/catalogue.jsonl", [product(1, "新", "三星"), product(9, "新")])
    land_lines(landed, DAY2, f"{ZH}/labels.jsonl", [label("late", "新", "p9", 2)])
    land_sessions(landed, DAY2, ZH, [session("late", "拉麵", ["p1"], DAY2, click="p1")])
    ingest(landed, DAY2)
    assert snapshot(landed, 2, DAY1).digest == before.digest
    later = snapshot(landed, 2, DAY2)
    assert table(later, "products").filter(locale=ZH, product_id="p1")["title"].item() == "新"
    assert table(later, "queries").filter(locale=ZH, query="新").height == 1
    assert table(later, "behaviour").height == table(before, "behaviour").height + 1


def test_behaviour_window(landed: Settings) -> None:
    config = market(snapshot=Snapshot(behaviour_days=2))
    assert table(snapshot(landed, 2, DAY2, config), "behaviour").height == 2
    assert table(snapshot(landed, 2, "2026-01-07", config), "behaviour").is_empty()


def test_refusals(landed: Settings) -> None:
    with pytest.raises(DataError, match="no published day"):
        snapshot(landed, 1, "2026-01-03")
    with pytest.raises(ConfigError, match="is 1 or 2, not 3"):
        snapshot(landed, 3, DAY1)
    from csrm_tasks.steps import run_step

    land_lines(landed, DAY1, f"{ZH}/labels-more.jsonl", [label("more", "拉麵", "p5", 2)])
    land = run_step("land", market(), {}, {"day": DAY1}, landed)
    validated = run_step("validate", market(), {"land": land}, {}, landed)
    run_step("store", market(), {"validate": validated}, {}, landed)
    with pytest.raises(DataError, match="2026-01-05: files were added since; run publish_day"):
        snapshot(landed, 2, DAY1, market(seed=8))
