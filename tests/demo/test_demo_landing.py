"""Landing: the calendar, byte for byte the same, with raters and shoppers as documented."""

from __future__ import annotations

import csv
import gzip
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from csrm_tasks.demo.market.generate import demo_world, generate_demo
from csrm_tasks.demo.market.grades import true_grade
from csrm_tasks.demo.market.labels import default_queries, source_labels, split_gold, target_labels
from csrm_tasks.demo.market.landing import NIGHTS, broken_labels
from csrm_tasks.demo.market.queries import QuerySet, make_queries
from csrm_tasks.demo.market.raters import CONFUSION, EXPERTS, SOURCE_CROWD, TARGET_CROWD, rate
from csrm_tasks.demo.market.search import LexicalIndex, Shelves, bigrams
from csrm_tasks.demo.market.shoppers import Engine, simulate
from csrm_tasks.demo.market.translations import make_translations
from csrm_tasks.demo.market.world import SOURCE, TARGET, World
from csrm_tasks.errors import CsrmError
from csrm_tasks.records import Grade


@pytest.fixture(scope="module")
def landed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("landing")
    assert generate_demo(root, "tiny", products=500, seed=1)
    return root


@pytest.fixture(scope="module")
def world() -> World:
    return demo_world(3000, 1)


def queries_of(world: World, locale: str) -> QuerySet:
    return make_queries(world, locale, default_queries(world)[locale])


def files(root: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()
    }


def rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))


def test_calendar(landed: Path) -> None:
    night = ["catalogue-changes.csv", "labels-gold.jsonl", "labels.csv"]
    behaviour = ["ubi_events.jsonl.gz", "ubi_queries.jsonl.gz"]
    expected = {
        *(f"2026-01-04/ko-KR/{f}" for f in ("catalogue.csv", "labels.csv", *behaviour)),
        *(f"2026-01-04/zh-TW/{f}" for f in ("catalogue.csv", "translations.csv")),
        "judged/zh-TW/generated-truth.parquet",
        *(f"{day}/zh-TW/{f}" for day in NIGHTS for f in (*night, *behaviour)),
    }
    assert set(files(landed / "tiny")) == expected | {".generated.json"}


def test_again_is_nothing(landed: Path) -> None:
    times = {p: p.stat().st_mtime_ns for p in landed.rglob("*")}
    assert not generate_demo(landed, "tiny", products=500, seed=1)
    assert times == {p: p.stat().st_mtime_ns for p in landed.rglob("*")}


def test_interrupted_generation_starts_over_to_the_same_bytes(landed: Path, tmp_path: Path) -> None:
    """No marker means not generated, whatever lies there."""
    stray = tmp_path / "tiny/2026-01-04/ko-KR/catalogue.csv"
    stray.parent.mkdir(parents=True)
    stray.write_text("half")
    assert generate_demo(tmp_path, "tiny", products=500, seed=1)
    assert files(tmp_path) == files(landed)


def test_other_parameters_are_refused(landed: Path) -> None:
    with pytest.raises(CsrmError, match="other parameters: remove that folder"):
        generate_demo(landed, "tiny", products=500, seed=2)
    with pytest.raises(CsrmError, match="between 500 and"):
        generate_demo(landed, "other", products=10)


def test_nights_differ_and_each_has_its_broken_rows(landed: Path) -> None:
    events = []
    for day in NIGHTS:
        folder = landed / "tiny" / day / TARGET
        grades = Counter(r["grade"] for r in rows(folder / "labels.csv"))
        assert grades["5"] == 1 and set(grades) == {"0", "1", "2", "5"}
        events.append(gzip.decompress((folder / "ubi_events.jsonl.gz").read_bytes()))
        with pytest.raises(json.JSONDecodeError):
            json.loads(events[-1].splitlines()[-1])
    assert len(set(events)) == len(NIGHTS)


def test_broken_rows_stay_within_the_tolerance(landed: Path) -> None:
    for day in NIGHTS:
        landed_rows = sum(
            len((gzip.decompress if name.endswith("gz") else bytes)(data).splitlines())
            for name, data in files(landed / "tiny" / day).items()
        )
        assert 7 / landed_rows < 0.005


def test_labels_and_events_refer_to_what_was_landed(landed: Path) -> None:
    start = landed / "tiny/2026-01-04"
    for locale in (SOURCE, TARGET):
        known = {r["product_id"] for r in rows(start / locale / "catalogue.csv")}
        labels = [*(landed / "tiny").glob(f"*/{locale}/labels.csv")]
        used = {r["product_id"] for path in labels for r in rows(path)} - {"TW9999999"}
        assert used <= known
    night = landed / "tiny" / NIGHTS[0] / TARGET
    asked = gzip.decompress((night / "ubi_queries.jsonl.gz").read_bytes()).splitlines()
    shown = {q["query_id"]: q["query_response_hit_ids"] for q in map(json.loads, asked)}
    events = gzip.decompress((night / "ubi_events.jsonl.gz").read_bytes()).splitlines()[:-3]
    for event in map(json.loads, events):
        about = event["event_attributes"]
        hits = shown[event["query_id"]]
        assert hits[about["position"]["ordinal"] - 1] == about["object"]["object_id"]


def test_raters_err_as_documented() -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 3, 60_000)
    for crowd in (SOURCE_CROWD, TARGET_CROWD, EXPERTS):
        errors = crowd.errors(rng)
        assert len(errors) == crowd.raters and errors.std() > 0
        assert errors.mean() == pytest.approx(crowd.error, rel=0.05)
    said = rate(truth, np.full(len(truth), 0.5), rng)
    for grade in range(3):
        wrong = said[(truth == grade) & (said != grade)]
        share = np.bincount(wrong, minlength=3) / len(wrong)
        assert np.allclose(share, CONFUSION[grade], atol=0.02)
    assert (said != truth).mean() == pytest.approx(0.5, abs=0.01)


def test_target_is_noisier_and_gold_survives(world: World) -> None:
    queries = queries_of(world, TARGET)
    train, gold = target_labels(world, queries)
    source = source_labels(world, queries_of(world, SOURCE))
    noise = [float((j.truth != j.grade).mean()) for j in (gold, source, train)]
    assert noise == sorted(noise) and noise[2] > 0.10
    votes = gold.grade.reshape(-1, EXPERTS.raters)
    agree = np.stack([(votes == g).sum(axis=1) for g in range(3)], axis=1)
    assert (agree.max(axis=1) >= 7).mean() > 0.9
    shares = np.bincount(gold.truth, minlength=3) / len(gold.truth)
    assert shares.max() <= 0.42


def test_gold_shares_no_query_and_no_nickname_with_training(world: World) -> None:
    queries = queries_of(world, TARGET)
    gold, train = split_gold(world, queries)
    assert not set(gold) & set(train)
    nicknames = [{queries.queries[i].nickname for i in side} - {None} for side in (gold, train)]
    assert nicknames[0] and nicknames[1] and not nicknames[0] & nicknames[1]


def test_grades_at_once_equal_the_rule(world: World) -> None:
    shelves = Shelves(world.lexicon, world.target)
    rows = np.arange(len(world.target.products))
    for query in queries_of(world, TARGET).queries[::7]:
        slow = [true_grade(world.lexicon, query, shelves.spec(row)) for row in rows.tolist()]
        assert shelves.grades(query, rows).tolist() == slow
        near = shelves.graded(query)
        assert sorted(near[Grade.EXACT]) == [r for r, g in enumerate(slow) if g == 2]
        assert sorted(near[Grade.SUBSTITUTE]) == [r for r, g in enumerate(slow) if g == 1]


def test_lexical_index_equals_a_slow_reference(world: World) -> None:
    shop = world.target
    index = LexicalIndex(shop)
    titles = [bigrams(p.title) for p in shop.products]
    query = "辣味湯麵"
    weight = {
        b: np.log1p(len(titles) / max(1, sum(b in t for t in titles))) for b in bigrams(query)
    }
    scores = np.array([sum(weight[b] for b in sorted(bigrams(query) & t)) for t in titles])
    rows_found, found = index.top(query, 20)
    assert 0 < len(found) == min(20, int((scores > 0).sum()))
    assert np.allclose(np.sort(scores)[::-1][: len(found)], found)
    assert np.allclose(scores[rows_found], found)


def test_behaviour_teaches_what_no_title_says(world: World) -> None:
    """What is bought for a nickname that no title has is mostly what it means."""
    queries = queries_of(world, TARGET)
    engine = Engine(world, queries)
    silent = [
        i
        for i, q in enumerate(queries.queries)
        if q.nickname is not None and not world.lexicon.nicknames[q.nickname].in_titles
    ]
    meant, bought = 0, 0
    for search in simulate(engine, queries, 4000, np.random.default_rng(5)):
        query = queries.queries[search.query]
        if search.query in silent:
            types = [engine.shelves.spec(search.rows[p]).type for p in search.done[2]]
            meant, bought = meant + types.count(query.type or -1), bought + len(types)
    assert bought > 20 and meant / bought > 0.7


def test_position_bias_and_funnel(world: World) -> None:
    queries = queries_of(world, SOURCE)
    engine = Engine(world, queries)
    found = simulate(engine, queries, 3000, np.random.default_rng(6))
    clicks = Counter(p for s in found for p in s.done[0])
    assert clicks[0] > 1.5 * clicks[4] > 1.5 * clicks[9]
    for search in found:
        assert set(search.done[2]) <= set(search.done[1]) <= set(search.done[0])
    assert {s.bucket for s in found} == {"A", "B"}


def test_translations_of_four_kinds(world: World) -> None:
    pairs = make_translations(world)
    kinds = Counter(p.kind for p in pairs)
    assert set(kinds) == {"category", "brand", "title", "query"}
    assert len(pairs) == len(set(pairs)) and kinds["brand"] == len(world.lexicon.brands)
    nicknames = [k.text for k in world.lexicon.nicknames if k.lang == "ko"]
    shown = [p.source_text for p in pairs if p.kind == "title"]
    assert not any(f"{nickname} " in text for nickname in nicknames for text in shown)


def test_every_way_a_label_breaks_is_planted(world: World) -> None:
    planted = list(broken_labels(world, NIGHTS[0]))
    known = {p.product_id for p in world.target.products}
    assert [label[3] in "012" for label in planted] == [False, True, True]
    assert [label[2] in known for label in planted] == [True, False, True]
    assert [bool(label[1]) for label in planted] == [True, True, False]
