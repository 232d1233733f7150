"""The generated market of many languages: what it delivers, and that it goes through the nights."""

from __future__ import annotations

import csv
import json
import shutil
from collections import Counter
from pathlib import Path

import polars as pl
import pytest

from csrm_tasks.demo.market.generate import generate_multi
from csrm_tasks.demo.market.labels import gold_labels
from csrm_tasks.demo.market.landing import HISTORY_DAY, NIGHTS
from csrm_tasks.demo.market.lexicon import load_lexicon
from csrm_tasks.demo.market.lexicon.spelling import RULES, spelt
from csrm_tasks.demo.market.queries import make_queries
from csrm_tasks.demo.market.translations import Direction, make_translations
from csrm_tasks.demo.market.world import SOURCE, TARGET, World, make_multi_world
from csrm_tasks.markets import load_market
from csrm_tasks.settings import PROJECT_ROOT, Settings
from csrm_tasks.text import normalise
from tests.data_fixtures import ingest, snapshot

MARKET = load_market("multi", PROJECT_ROOT / "dags" / "markets")
SOURCES, JUDGED_IN = (SOURCE, "en-US", "de-DE"), "id-ID"
PRODUCTS = 500


@pytest.fixture(scope="module")
def world() -> World:
    return make_multi_world(load_lexicon(), PRODUCTS, 1)


@pytest.fixture(scope="module")
def landed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("landing")
    assert generate_multi(root, "multi", PRODUCTS, 1)
    assert not generate_multi(root, "multi", PRODUCTS, 1)
    return root / "multi"


def test_the_market_file_names_the_languages_that_are_generated(landed: Path) -> None:
    assert MARKET.source_locales == SOURCES and MARKET.gold_locales == (TARGET, JUDGED_IN)
    assert {p.name for p in landed.glob("2*/*")} == set(MARKET.locales)


def test_every_source_brings_its_history_and_the_judged_language_gold_alone(landed: Path) -> None:
    first = landed / HISTORY_DAY
    behaviour = {"ubi_events.jsonl.gz", "ubi_queries.jsonl.gz"}
    for locale in SOURCES:
        held = {p.name for p in (first / locale).iterdir()}
        assert held - {"translations.csv"} == {"catalogue.csv", "labels.csv", *behaviour}
    assert {p.name for p in (first / JUDGED_IN).iterdir()} == {"catalogue.csv", "translations.csv"}
    for day in NIGHTS:
        assert [p.name for p in (landed / day / JUDGED_IN).iterdir()] == ["labels-gold.jsonl"]
        own, target = (
            [json.loads(line) for line in (landed / day / x / "labels-gold.jsonl").open()]
            for x in (JUDGED_IN, TARGET)
        )
        assert 0.5 < len(own) / len(target) < 2.0  # two targets' worth of gold
        raters = Counter((r["query"], r["product_id"]) for r in own)
        assert set(raters.values()) == {8}
    ids: list[str] = []
    for path in landed.glob("*/*/labels*"):
        with path.open(encoding="utf-8") as f:
            rows = csv.DictReader(f) if path.suffix == ".csv" else map(json.loads, f)
            ids += [row["label_id"] for row in rows]
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("lang", list(RULES))
def test_an_invented_language_is_one_to_one_with_english(lang: str) -> None:
    lexicon = load_lexicon()
    for things in (lexicon.types, lexicon.groups, lexicon.values):
        words = [t.words.en for t in things]
        assert len({spelt(w, lang) for w in words}) == len(set(words))
        changed = sum(normalise(spelt(w, lang)) != normalise(w) for w in words)
        assert changed > 0.7 * len(words)  # it is no English
    assert all(spelt(b.words.en, lang) == b.words.en for b in lexicon.brands)  # names stay


def test_translations_are_of_their_direction(world: World) -> None:
    types = {t.words.of("en"): t.words.of("zh") for t in world.lexicon.types}
    made = make_translations(world, Direction("en-US", TARGET))
    assert {t.kind for t in made} == {"category", "brand", "title", "query"}
    plain = {t.source_text: t.target_text for t in made if t.kind == "query"}
    known = [text for text in plain if text in types]
    assert known and all(plain[text] == types[text] for text in known)
    into = make_translations(world, Direction(SOURCE, JUDGED_IN))
    assert all(t.target_text.isascii() for t in into if t.kind in ("category", "query"))


def test_gold_of_the_judged_language_is_as_much_as_the_targets(world: World) -> None:
    gold = gold_labels(world, make_queries(world, JUDGED_IN, 400))
    assert len(set(gold.query.tolist())) == round(300 * world.size)


def test_it_goes_through_the_nights_into_a_snapshot(landed: Path, settings: Settings) -> None:
    shutil.copytree(landed, settings.landing / "multi")
    for day in (HISTORY_DAY, NIGHTS[0]):
        said = ingest(settings, day, MARKET)["publish_day"].facts
        assert said["quarantined"] <= 0.01 * said["rows_in"]
    made = snapshot(settings, 2, NIGHTS[0], MARKET)
    pairs = pl.read_parquet(made.file("pairs.parquet"))
    assert set(pairs.filter(pl.col("split") != "gold")["locale"]) == {*SOURCES, TARGET}
    assert set(pairs.filter(split="gold")["locale"]) == {TARGET, JUDGED_IN}
    translations = pl.read_parquet(made.file("translations.parquet"))
    assert set(translations.select("source_locale", "target_locale").unique().rows()) == {
        *((x, TARGET) for x in SOURCES), (SOURCE, JUDGED_IN)
    }  # fmt: skip
