"""DuckDB and Spark sum up the same events to the same rows as a plain loop does."""

from __future__ import annotations

import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from csrm_tasks.errors import ConfigError
from csrm_tasks.ingest.aggregates.interleaved import PER_RELEASE, credit_sums
from csrm_tasks.ingest.aggregates.pairs import ACTIONS, DAILY
from csrm_tasks.ingest.aggregates.sessions import DONE, PER_SESSION
from csrm_tasks.ingest.aggregates.sums import Sums, sum_up
from csrm_tasks.sections import Behaviour, Ingest, Spark
from csrm_tasks.store.lake import EVENTS, POSITIONS, SEARCHES, Lake, Stored
from csrm_tasks.store.lake_engines import Engine, frames, open_engine
from csrm_tasks.text import normalised, query_ids

DAY = "2026-01-04"
FILES = [
    *(Stored("ubi_events", DAY, locale, "a" * 64) for locale in ("ko-KR", "zh-TW")),
    *(Stored("ubi_queries", DAY, locale, "b" * 64) for locale in ("ko-KR", "zh-TW")),
]
LOCAL = Spark(master="local[1]", conf={
    "spark.sql.shuffle.partitions": "1", "spark.sql.adaptive.enabled": "false",
    "spark.sql.codegen.wholeStage": "false",  # a few rows are not worth compiling for
    "spark.driver.extraJavaOptions": "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC",
})  # fmt: skip
Rows = list[dict[str, Any]]
# Folders that say what is not so of every column by which anything is summed up.
NAMED = "release=r9/bucket=Z/locale=xx/query_id=q/session_id=v/action=click/position=1"


def id_of(record: dict[str, Any]) -> str:
    return query_ids(record["locale"], normalised(pl.Series([record["query"]])))[0]  # type: ignore[no-any-return]


# Bounds that nobody reaches, and such that some are machines and many are over them.
ALL = Behaviour(impressions=10**6, actions=10**6, per_minute=10**6, per_day=10**6, breadth=10**6)
FEW = Behaviour(impressions=2, actions=1, per_day=16, breadth=10)


def night(searches: int, seed: int) -> tuple[Rows, Rows]:
    """Events and searches with everything that a log may do: no position, no session, two arms.

    Of some searches only their own record tells what they showed.
    """
    rng = np.random.default_rng(seed)
    began = datetime(2026, 1, 4, tzinfo=UTC)
    events: Rows = []
    asked: Rows = []
    for n in range(searches):
        locale = ("ko-KR", "zh-TW")[n % 2]
        query = int(rng.zipf(1.6)) % 12
        at = began + timedelta(seconds=int(rng.integers(80_000)))
        about = {
            "locale": locale, "query": f"질의 {query}" if rng.random() < 0.6 else f"질의  {query}",
            "search_id": f"s{n}",
            # Two clients of many searches, whose visits have to be told; others of few; nobody.
            "client_id": f"d{n % 8}" if n % 4 == 0 else f"c{n % 90}" if n % 3 else "",
            "session_id": f"v{n // 3}" if n % 7 and n % 4 else "",
            "bucket": ("A", "interleaved", "")[int(rng.integers(3))], "release": f"r{n % 40 // 39}",
        }  # fmt: skip
        shown = rng.choice(20, int(rng.integers(0, 9)), replace=False).tolist()
        hits = [*(f"p{product}" for product in [*shown, *shown[:1]]), None]
        asked.append(about | {"at": at, "hits": hits if rng.random() < 0.5 else None})
        told = rng.random() < 0.7
        if n % 5 == 0:  # a record without a session may be of a search that has one
            about |= {"session_id": f"w{n}"}
        for place, product in enumerate([*shown, *shown[:1]]):  # the first is shown twice
            placed = place if rng.random() < 0.9 else None
            event = about | {"query_id": id_of(about), "product_id": f"p{product}"}
            if told:
                events.append(event | {"position": placed, "action": "impression", "at": at})
            for action in ("click", "add_to_cart", "purchase"):
                if rng.random() < 0.25:
                    where = placed if rng.random() < 0.5 else None
                    later = at + timedelta(microseconds=int(rng.integers(10**9)))
                    events.append(event | {"position": where, "action": action, "at": later})
    return events, asked


@pytest.fixture(scope="module")
def delivered() -> tuple[Rows, Rows]:
    return night(400, 1)


@pytest.fixture(scope="module")
def summed(delivered: tuple[Rows, Rows]) -> tuple[Rows, Rows]:
    """The night with the impressions and the sessions that have to be told from other records."""
    events, asked = delivered
    told = {(e["locale"], e["search_id"]) for e in events if e["action"] == "impression"}
    for s in asked:
        if s["hits"] is None or (s["locale"], s["search_id"]) in told:
            continue
        for rank, product in enumerate(s["hits"], start=1):
            if product is not None and product not in s["hits"][: rank - 1]:
                events = [*events, s | {
                    "query_id": id_of(s), "product_id": product, "position": rank,
                    "action": "impression",
                }]  # fmt: skip
    whose = sessions_of([*events, *asked])
    return ([e | {"session_id": whose(e)} for e in events],
            [s | {"session_id": whose(s)} for s in asked])  # fmt: skip


def sessions_of(records: Rows) -> Callable[[dict[str, Any]], str]:
    """Its own; else the least of its search; else its client's, of whom thirty minutes end one."""
    named: dict[tuple[str, str], set[str]] = defaultdict(set)
    for r in records:
        if r["session_id"]:
            named[r["locale"], r["search_id"]].add(r["session_id"])
    begun: dict[tuple[str, str, datetime], str] = {}
    before: dict[tuple[str, str], tuple[datetime, datetime]] = {}  # last moment, beginning
    for r in sorted(records, key=lambda r: r["at"]):
        who = (r["locale"], r["client_id"])
        if not r["session_id"] and r["client_id"] and not named[r["locale"], r["search_id"]]:
            last, began = before.get(who, (datetime.min.replace(tzinfo=UTC), r["at"]))
            began = r["at"] if r["at"] - last > timedelta(minutes=30) else began
            before[who] = (r["at"], began)
            begun[(*who, r["at"])] = f"{r['client_id']}@{began:%Y%m%d-%H%M%S}"

    def session(r: dict[str, Any]) -> str:
        said = min(named[r["locale"], r["search_id"]], default="")
        return r["session_id"] or said or begun.get((r["locale"], r["client_id"], r["at"]), "")

    return session


@pytest.fixture(scope="module")
def lake(delivered: tuple[Rows, Rows], tmp_path_factory: pytest.TempPathFactory) -> Lake:
    made = Lake(str(tmp_path_factory.mktemp("lake") / NAMED), "tiny")
    for rows, kind, schema in zip(
        delivered, ("ubi_events", "ubi_queries"), (EVENTS, SEARCHES), strict=True
    ):
        frame = pl.DataFrame(rows, schema=schema)
        for file in FILES:
            if file.kind == kind:
                made.write(file, frame.filter(locale=file.locale))
    return made


def tables(sums: Sums) -> dict[str, pl.DataFrame]:
    named = {"pairs": DAILY, "positions": POSITIONS, "sessions": PER_SESSION}
    named["interleaved"] = PER_RELEASE
    return {
        n: pl.concat([pl.DataFrame(schema=schema), *frames(getattr(sums, n), schema)])
        for n, schema in named.items()
    }


@pytest.fixture(scope="module")
def found(lake: Lake, tmp_path_factory: pytest.TempPathFactory) -> dict[str, pl.DataFrame]:
    scratch = tmp_path_factory.mktemp("duckdb") / NAMED
    with open_engine(Ingest(), scratch, 1) as engine:
        return tables(sum_up(engine, lake, FILES, scratch, ALL))


@pytest.fixture(scope="module")
def spark(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Engine, Path]]:
    if shutil.which("java") is None:
        pytest.skip("Spark needs Java, and there is none on this machine")
    scratch = tmp_path_factory.mktemp("spark") / NAMED
    with open_engine(Ingest(engine="spark", spark=LOCAL), scratch, 1) as engine:
        yield engine, scratch


def test_a_file_says_what_is_in_it_and_no_folder_above_it(tmp_path: Path) -> None:
    path = tmp_path / NAMED / "day=2020-01-01" / "a.parquet"
    path.parent.mkdir(parents=True)
    said = pl.DataFrame({"release": ["r1", "r2"], "locale": ["ko-KR", "zh-TW"]})
    said.write_parquet(path)
    with open_engine(Ingest(), tmp_path / "scratch", 1) as engine:
        assert engine.read("a", [path, path]).to_polars().equals(pl.concat([said, said]))


def located(events: Rows) -> Iterator[tuple[dict[str, Any], int | None]]:
    """Every event with its position: of an action that has none, where its search showed it."""
    first: dict[tuple[str, ...], int] = {}
    key = ("locale", "search_id", "product_id")
    for e in events:
        if e["action"] == "impression" and e["position"] is not None:
            k = tuple(e[c] for c in key)
            first[k] = min(first.get(k, e["position"]), e["position"])
    for e in events:
        silent = e["action"] != "impression" and e["position"] is None
        yield e, first.get(tuple(e[c] for c in key)) if silent else e["position"]


def counts_by(events: Rows, *, placed: bool) -> dict[tuple[Any, ...], Counter[str]]:
    found: dict[tuple[Any, ...], Counter[str]] = defaultdict(Counter)
    for e, position in located(events):
        pair = (e["locale"], e["query_id"], e["product_id"])
        found[(*pair, position) if placed else pair][e["action"]] += 1
        if not placed and e["action"] == "impression" and position is not None:
            found[pair].update(positions=1, position_sum=position)
    return found


def test_pairs_are_what_a_loop_counts(
    summed: tuple[Rows, Rows], found: dict[str, pl.DataFrame]
) -> None:
    events, _ = summed
    expected = counts_by(events, placed=False)
    by_search: dict[tuple[str, str], Rows] = defaultdict(list)
    typed: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for e in events:
        by_search[e["locale"], e["search_id"]].append(e)
        typed[e["locale"], e["query_id"]][e["query"]] += 1
    skips: Counter[tuple[str, ...]] = Counter()
    for (locale, _), happened in by_search.items():
        stood: dict[str, list[int]] = defaultdict(list)
        done: dict[str, set[str]] = defaultdict(set)
        for e in happened:
            if e["action"] != "impression":
                done[e["product_id"]].add(e["action"])
            elif e["position"] is not None:
                stood[e["product_id"]].append(e["position"])
        sold = [min(stood[p]) for p, what in done.items() if "purchase" in what and stood.get(p)]
        for p, places in stood.items():
            if sold and p not in done and places and min(places) < max(sold):
                skips[locale, happened[0]["query_id"], p] += 1
    rows = [
        (*pair, min((-n, q) for q, n in typed[pair[:2]].items())[1], c["impression"],
         *(c[a] for a in ACTIONS.values()), c["position_sum"], c["positions"], skips[pair])
        for pair, c in sorted(expected.items())
    ]  # fmt: skip
    assert found["pairs"].rows() == rows
    assert found["pairs"]["skips"].sum() > 20


def test_positions_are_what_a_loop_counts(
    summed: tuple[Rows, Rows], found: dict[str, pl.DataFrame]
) -> None:
    expected = counts_by(summed[0], placed=True)
    actions = ("impression", *ACTIONS.values())
    assert found["positions"].rows() == [
        (*key, *(expected[key][a] for a in actions))
        for key in sorted(expected, key=lambda k: (k[:3], k[3] is None, k[3] or 0))
    ]
    assert found["positions"]["position"].null_count() > 20


def test_sessions_are_what_a_loop_counts(
    summed: tuple[Rows, Rows], found: dict[str, pl.DataFrame]
) -> None:
    events, searches = summed
    visits: dict[tuple[str, str], Rows] = defaultdict(list)
    for e in [*events, *(s | {"action": "search"} for s in searches)]:
        if e["session_id"]:
            visits[e["locale"], e["session_id"]].append(e)
    rows = []
    for key, seen in sorted(visits.items()):
        arms = {s: (e["bucket"], e["release"]) for e in seen for s in [e["search_id"]]}
        began = {s: min(e["at"] for e in seen if e["search_id"] == s) for s in arms}
        order = sorted(arms, key=lambda s: (*(v == "" for v in arms[s]), began[s], s))
        did = Counter(e["action"] for e in seen)
        times = [e["at"] for e in seen]
        named = [{arm[i] for arm in arms.values()} - {""} for i in (0, 1)]
        rows.append((
            *key, *arms[order[0]], any(len(names) > 1 for names in named), len(arms),
            *(did[a] for a in DONE.values()), did["purchase"] > 0, min(times), max(times),
            max(e["client_id"] for e in seen),
        ))  # fmt: skip
    assert found["sessions"].rows() == rows
    assert found["sessions"]["mixed"].n_unique() == 2
    silent = found["sessions"].filter(impressions=0)
    assert silent.height > 0  # a visit in which nothing was found counts
    derived = found["sessions"].filter(pl.col("session_id").str.contains("@"))
    assert derived["searches"].max() > 1
    assert any(not e["session_id"] for e in events)  # nobody says whose it is


def credits_by_loop(events: Rows) -> Rows:
    """Session by session and product by product."""
    seen: dict[tuple[Any, ...], dict[tuple[Any, ...], datetime]] = defaultdict(dict)
    for e in events:
        good = e["action"] in ("click", "add_to_cart") and e["bucket"] == "interleaved"
        if good and e["release"] and e["session_id"]:
            one = (e["search_id"], e["product_id"], e["action"])
            mine = seen[e["locale"], e["session_id"], e["release"]]
            mine[one] = min(mine.get(one, e["at"]), e["at"])
    return [(*key, len(done), min(done.values())) for key, done in sorted(seen.items())]  # type: ignore[misc]


def test_credits_of_interleaved_sessions_are_what_a_loop_counts(
    summed: tuple[Rows, Rows], found: dict[str, pl.DataFrame]
) -> None:
    assert found["interleaved"].rows() == credits_by_loop(summed[0])
    assert found["interleaved"].height > 20


@pytest.mark.parametrize("seed", range(3))
def test_a_product_gives_one_credit_per_action_to_the_release_that_picked_it(
    seed: int, tmp_path: Path
) -> None:
    rng = np.random.default_rng(seed)

    def one(values: Sequence[str]) -> str:
        return str(values[int(rng.integers(len(values)))])

    events = [
        {
            "locale": "zh-TW", "query": "q", "query_id": "q", "position": 1, "client_id": "c",
            "session_id": one(["s1", "s2", ""]), "search_id": one(["a", "b"]),
            "product_id": one(["p1", "p2"]), "release": one(["new", "old", ""]),
            "bucket": one(["interleaved", "interleaved", "stable"]),
            "action": one(["click", "add_to_cart", "purchase", "impression"]),
            "at": datetime(2026, 1, 4, tzinfo=UTC) + timedelta(seconds=int(rng.integers(9_000))),
        }
        for _ in range(150)
    ]  # fmt: skip
    frame = pl.DataFrame(events, schema_overrides={"at": pl.Datetime("us", "UTC")})
    with open_engine(Ingest(), tmp_path, 1) as engine:
        table = engine.give("e", frame, tmp_path / "e.parquet")
        sums = engine.fetch(credit_sums(table), tmp_path / "sums.parquet")
    assert sums.rows() == credits_by_loop(events)
    assert sums["credits"].max() > 1


def test_spark_and_duckdb_say_the_same(
    spark: tuple[Engine, Path], lake: Lake, tmp_path: Path
) -> None:
    with open_engine(Ingest(), tmp_path / "scratch", 1) as duckdb:
        here = sum_up(duckdb, lake, FILES, tmp_path / "scratch", FEW)
        found = tables(here)
    there = sum_up(spark[0], lake, FILES, spark[1], FEW)
    for name, frame in tables(there).items():
        assert found[name].equals(frame), name
    assert there.left_out.by_locale.equals(here.left_out.by_locale)
    assert there.left_out.reasons == here.left_out.reasons
    assert (here.left_out.by_locale.select("machines", "over_bound").to_numpy() > 0).all()


@pytest.mark.parametrize("kinds", [("ubi_queries",), ("ubi_events",), ()])
def test_a_day_may_lack_events_or_searches(lake: Lake, tmp_path: Path, kinds: tuple[str]) -> None:
    with open_engine(Ingest(), tmp_path / "scratch", 1) as engine:
        some = [f for f in FILES if f.kind in kinds]
        made = tables(sum_up(engine, lake, some, tmp_path / "scratch", ALL))
    assert made["pairs"].is_empty() == (not kinds)  # searches alone tell what they showed
    assert made["positions"].is_empty() == (not kinds)
    assert made["sessions"].is_empty() == (not kinds)


def test_spark_without_java_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    asked = open_engine(Ingest(engine="spark"), tmp_path / "scratch", 1)
    with pytest.raises(ConfigError, match="there is no Java: install Java 17") as e, asked:
        pass
    assert "\n" not in str(e.value)


def test_spark_without_pyspark_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    java = tmp_path / "bin" / "java"
    java.parent.mkdir()
    java.touch()
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    monkeypatch.setitem(__import__("sys").modules, "pyspark.sql", None)
    asked = open_engine(Ingest(engine="spark"), tmp_path / "scratch", 1)
    with pytest.raises(ConfigError, match=r"install csrm\[spark\]"), asked:
        pass
