"""One shopper has a bounded say in a day, and machines have none; nobody is taken for somebody."""

from __future__ import annotations

from collections import Counter, defaultdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from csrm_tasks.dataset.propensity import behaviour_weights
from csrm_tasks.ingest.aggregates.pairs import ACTIONS
from csrm_tasks.ingest.aggregates.shoppers import PAGE
from csrm_tasks.ingest.aggregates.sums import Sums, sum_up
from csrm_tasks.sections import Behaviour, Ingest
from csrm_tasks.store.lake import EVENTS, SEARCHES, Lake, Stored
from csrm_tasks.store.lake_engines import open_engine
from tests.ingest.test_ingest_aggregates import DAY, Rows, sessions_of, tables

ZH = "zh-TW"
BEGAN = datetime(2026, 1, 4, tzinfo=UTC)
SMALL = Behaviour(impressions=4, actions=2, per_minute=9, per_day=24, breadth=10, click_share=0.9)
Found = dict[str, pl.DataFrame]


def search(
    n: str, at: float, client: str = "", session: str = "", query: str = "牛奶", **more: str
) -> dict[str, Any]:
    about = {"locale": ZH, "query": query, "search_id": n, "client_id": client,
             "session_id": session, "bucket": "", "release": "",
             "at": BEGAN + timedelta(seconds=at)}  # fmt: skip
    return about | more


def event(
    of: dict[str, Any],
    action: str,
    product: str = "p",
    position: int | None = 1,
    after: float = 0.0,
) -> dict[str, Any]:
    said = {"query_id": of["query"], "product_id": product, "action": action, "position": position}
    return of | said | {"at": of["at"] + timedelta(seconds=after)}


def summed(folder: Path, events: Rows, searches: Rows, bounds: Behaviour) -> tuple[Found, Sums]:
    """Sum up rows that lie in two files of each kind."""
    lake, files = Lake(str(folder / "lake"), "tiny"), []
    for rows, kind, schema in ((events, "ubi_events", EVENTS), (searches, "ubi_queries", SEARCHES)):
        for half in (0, 1):
            file = Stored(kind, DAY, ZH, str(half) * 64)
            lake.write(file, pl.DataFrame(rows[half::2], schema=schema))
            files.append(file)
    (folder / "scratch").mkdir(exist_ok=True)
    with open_engine(Ingest(), folder / "scratch", 1) as own:
        made = sum_up(own, lake, files, folder / "scratch", bounds)
        return tables(made), made


def night(seed: int, searches: int = 420) -> tuple[Rows, Rows]:
    """Shoppers of every kind: with clients, sessions only, neither, some of them machines."""
    rng = np.random.default_rng(seed)
    events, asked = [], []
    for n in range(searches):
        who = int(rng.zipf(1.3)) % 60
        client = f"c{who}" if who % 4 else ""
        session = f"v{who}-{int(rng.integers(3))}" if who % 5 else ""
        at = float(rng.integers(50 if who in (1, 7) else 80_000))
        query = f"q{int(rng.integers(40 if who == 2 else 3))}"
        arm = {"bucket": "AB"[who % 2], "release": f"r{who % 2}"}
        asked.append(search(f"s{n}", at, client, session, query, **arm))
        for place in range(int(rng.integers(1, 5))):
            product = f"p{int(rng.integers(4))}"
            shown = place if rng.random() < 0.9 else None
            events.append(event(asked[-1], "impression", product, shown))
            for action in ACTIONS.values():
                if rng.random() < 0.3:
                    where = shown if rng.random() < 0.5 else None
                    events.append(
                        event(asked[-1], action, product, where, float(rng.integers(1, 999)))
                    )
    return events, asked


def shopper(row: dict[str, Any]) -> tuple[str, str]:
    return (row["client_id"], "" if row["client_id"] else row["session_id"])


def slow_machines(events: Rows, searches: Rows, b: Behaviour) -> dict[tuple[str, str], str]:
    """Go through each shopper's day; the first reason by name."""
    found: dict[tuple[str, str], set[str]] = defaultdict(set)
    for who in {shopper(r) for r in (*events, *searches)} - {("", "")}:
        own = [e for e in events if shopper(e) == who]
        acts = [e for e in own if e["action"] != "impression"]
        asked = [s for s in searches if shopper(s) == who]
        for rows, what in ((asked, "query"), (acts, "product_id")):
            minutes = Counter(r["at"].replace(second=0, microsecond=0) for r in rows)
            if len(rows) > b.per_day or max(minutes.values(), default=0) > b.per_minute:
                found[who].add("rate")
            if len({r[what] for r in rows}) > b.breadth:
                found[who].add("breadth")
        shown, clicked = (sum(e["action"] == a for e in own) for a in ("impression", "click"))
        if shown > b.per_day * PAGE:
            found[who].add("rate")
        if shown >= 200 and clicked >= b.click_share * shown:
            found[who].add("clicks")
    return {who: min(reasons) for who, reasons in found.items()}


def _told_apart(e: dict[str, Any]) -> tuple[Any, ...]:
    place = -1 if e["position"] is None else e["position"]
    return e["at"], e["search_id"], place, e["session_id"]


def slow_kept(events: Rows, b: Behaviour) -> Rows:
    """Leave of each shopper, pair and action the first ones."""
    seen: Counter[tuple[Any, ...]] = Counter()
    kept = []
    for e in sorted(events, key=_told_apart):
        key = (e["query_id"], e["product_id"], *shopper(e), e["action"])
        seen[key] += 1
        most = b.impressions if e["action"] == "impression" else b.actions
        if shopper(e) == ("", "") or seen[key] <= most:
            kept.append(e)
    return kept


@pytest.mark.parametrize("seed", range(3))
def test_sums_are_those_of_what_a_loop_leaves(tmp_path: Path, seed: int) -> None:
    events, searches = night(seed)
    machines = slow_machines(events, searches, SMALL)
    its = {r["session_id"] for r in (*events, *searches) if shopper(r) in machines} - {""}

    def human(r: dict[str, Any]) -> bool:
        return shopper(r) not in machines and r["session_id"] not in its

    people, asked = [e for e in events if human(e)], [s for s in searches if human(s)]
    kept = slow_kept(people, SMALL)
    found, made = summed(tmp_path, events, searches, SMALL)

    counts = Counter((e["query_id"], e["product_id"], e["action"]) for e in kept)
    names = {"impressions": "impression"} | ACTIONS
    for row in found["pairs"].iter_rows(named=True):
        pair = (row["query_id"], row["product_id"])
        assert [row[c] for c in names] == [counts[*pair, a] for a in names.values()]
    for c, action in names.items():
        assert found["positions"][c].sum() == sum(e["action"] == action for e in kept)
    session = sessions_of([*people, *asked])
    visits = {session(r) for r in (*people, *asked)} - {""}
    assert found["sessions"]["session_id"].to_list() == sorted(visits)
    out = made.left_out
    assert len(set(machines.values())) == 2 and out.reasons == Counter(machines.values())
    assert out.sessionless == sum(session(e) == "" for e in people)
    assert out.by_locale.rows() == [(
        ZH, len(events), len(searches), len(machines), len(events) - len(people),
        len(searches) - len(asked), len(people) - len(kept),
    )]  # fmt: skip
    assert len(people) > len(kept) + 5 and len(machines) < 20 < len(visits)


def test_any_order_of_rows_says_the_same(tmp_path: Path) -> None:
    events, searches = night(9)
    expected, made = summed(tmp_path, events, searches, SMALL)
    rng = np.random.default_rng(0)
    shuffled = [[rows[i] for i in rng.permutation(len(rows))] for rows in (events, searches)]
    (tmp_path / "again").mkdir()
    again, remade = summed(tmp_path / "again", *shuffled, SMALL)
    for name, frame in expected.items():
        assert again[name].equals(frame), name
    assert remade.left_out.by_locale.equals(made.left_out.by_locale)
    assert remade.left_out.reasons == made.left_out.reasons


def weight(found: Found) -> float:
    """The weight of the one pair that was clicked."""
    days = found["pairs"].with_columns(pl.lit(DAY).alias("day"))
    weighed = behaviour_weights(days, lambda day: found["positions"].drop_nulls("position"))
    return float(weighed.filter(pl.col("clicks") > 0)["weight"].item())


@pytest.mark.parametrize("named", ["client", "session"])
def test_ten_thousand_clicks_of_one_count_as_few(tmp_path: Path, named: str) -> None:
    """Slowly, over the day and over many searches, and however often it is shown."""
    crowd = [search(f"h{n}", 60.0 * n, f"person{n}", f"v{n}") for n in range(100)]
    shown = [event(s, "impression") for s in crowd]
    clicks = [event(s, "click", after=5) for s in crowd[:10]]
    one = {named: "one"}
    its = [search(f"s{n}", 80.0 * n, **one) for n in range(1000)]
    mad = [event(s, "click", after=0.001 * k) for s in its for k in range(10)]
    honest = event(its[0], "impression")
    lenient = Behaviour(per_minute=10**6, per_day=10**6)
    few = [honest, *(event(its[0], "click", after=1.0 + k) for k in range(lenient.actions))]
    for folder in ("few", "mad", "machine", "nobody"):
        (tmp_path / folder).mkdir()
    base, _ = summed(tmp_path / "few", [*shown, *clicks, *few], [*crowd, *its], lenient)
    found, made = summed(tmp_path / "mad", [*shown, *clicks, honest, *mad], [*crowd, *its], lenient)
    assert found["pairs"]["clicks"].to_list() == [10 + lenient.actions]
    assert weight(found) == weight(base)
    assert made.left_out.by_locale["over_bound"].to_list() == [10_000 - lenient.actions]
    # by the usual bounds it is no person at all
    found, made = summed(
        tmp_path / "machine", [*shown, *clicks, honest, *mad], [*crowd, *its], Behaviour()
    )
    assert found["pairs"]["clicks"].to_list() == [10]
    assert made.left_out.reasons == {"rate": 1}
    # the same without client or session might be ten thousand people's
    nameless = [e | {"client_id": "", "session_id": ""} for e in mad]
    found, made = summed(tmp_path / "nobody", [*shown, *clicks, *nameless], crowd, Behaviour())
    assert found["pairs"]["clicks"].to_list() == [10_010] and made.left_out.reasons == {}


def test_a_crawler_is_set_apart_and_a_heavy_shopper_is_not(tmp_path: Path) -> None:
    crawler = [search(f"c{n}", 50.0 * n, "bot", f"b{n // 9}", f"詞 {n}") for n in range(1200)]
    heavy = [search(f"h{n}", 120.0 * n, "fan", f"f{n // 20}", f"q{n % 150}") for n in range(300)]
    seen = [event(s, "impression", f"p{k}", k) for s in (*crawler[:200], *heavy) for k in range(20)]
    acts = [
        event(s, action, f"p{n % 20}", n % 20, 3.0 + n % 40)
        for n, s in enumerate(heavy) for action in ("click", "add_to_cart")[: 1 + n % 2]
    ]  # fmt: skip
    found, made = summed(tmp_path, [*seen, *acts], [*crawler, *heavy], Behaviour())
    assert made.left_out.by_locale.rows() == [(ZH, len(seen) + len(acts), 1500, 1, 4000, 1200, 0)]
    assert made.left_out.reasons == {"breadth": 1}
    assert found["pairs"]["impressions"].sum() == 6000
    assert found["pairs"]["clicks"].sum() == sum(e["action"] == "click" for e in acts)
    assert found["sessions"]["searches"].sum() == 300


def test_a_machine_leaves_the_conversion_of_both_arms_alike(tmp_path: Path) -> None:
    """Its visits, which never buy, met either release; so did a buyer's session that it shared."""
    people, bought = [], []
    for n in range(40):
        arm = {"bucket": "AB"[n % 2], "release": f"r{n % 2}"}
        people.append(search(f"h{n}", 900.0 * n, f"person{n}", f"v{n}", **arm))
        if n % 4 < 2 + 2 * (n % 2):
            bought.append(event(people[-1], "purchase"))
    crawled = [
        search(f"c{n}", 40.0 * n, "bot", f"b{n}", bucket="AB"[n % 2], release=f"r{n % 2}")
        for n in range(2000)
    ]
    silent = event(crawled[0], "impression") | {"client_id": ""}  # the page did not say who it was
    for folder in ("alone", "both"):
        (tmp_path / folder).mkdir()
    alone, _ = summed(tmp_path / "alone", bought, people, Behaviour())
    both, made = summed(tmp_path / "both", [*bought, silent], [*people, *crawled], Behaviour())
    assert both["sessions"].equals(alone["sessions"])
    assert both["pairs"].equals(alone["pairs"])
    assert made.left_out.by_locale.row(0)[3:] == (1, 1, 2000, 0)
    rates = alone["sessions"].group_by("release").agg(pl.len(), pl.col("converted").sum())
    assert rates.sort("release").rows() == [("r0", 20, 10), ("r1", 20, 20)]


def test_who_clicks_on_all_that_is_shown_is_a_machine(tmp_path: Path) -> None:
    def visitor(name: str, clicks: int) -> Rows:
        found = []
        for n in range(20):
            of = search(f"{name}{n}", 3600.0 * n, name, name, f"q{n}")
            found += [event(of, "impression", f"p{k}", k) for k in range(10)]
            found += [event(of, "click", f"p{k}", k, 9.0 * k) for k in range(clicks)]
        return found

    found, made = summed(tmp_path, [*visitor("all", 9), *visitor("most", 8)], [], Behaviour())
    assert made.left_out.reasons == {"clicks": 1}
    assert found["sessions"]["session_id"].to_list() == ["most"]


def test_a_click_beyond_the_shown_ones_that_count_keeps_its_place(tmp_path: Path) -> None:
    """Shown too often to count once more, but that is where the counted click was."""
    asked = [search(f"s{n}", 60.0 * n, "one") for n in range(4)]
    shown = [event(s, "impression", position=5 + n) for n, s in enumerate(asked)]
    click = event(asked[3], "click", position=None, after=9)
    bounds = Behaviour(impressions=2)
    found, _ = summed(tmp_path, [*shown, click], asked, bounds)
    rows = found["positions"].select("position", "impressions", "clicks").rows()
    assert rows == [(5, 1, 0), (6, 1, 0), (8, 0, 1)]
