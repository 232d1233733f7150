"""A market of several source languages and one that is only judged in: what a snapshot holds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from csrm_tasks.dataset.snapshot import directed
from csrm_tasks.dataset.splits import assign_splits
from csrm_tasks.errors import ConfigError, DataError
from csrm_tasks.llm.data import selection_dev, translation_rows
from csrm_tasks.markets import MarketConfig, parse_market
from csrm_tasks.sections import Snapshot
from csrm_tasks.settings import Settings
from csrm_tasks.text import normalise, query_id
from tests.data_fixtures import (
    DAY0,
    DAY1,
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

JA, VI = "ja-JP", "vi-VN"
LEAST = (
    "market: m\ntarget_locale: zh-TW\nllm: {base: ./b}\nretrieval: {ebr: {encoder: ./e}}\n"
    "towers: {encoder: ./e}\n"
)


def several(**sections: Any) -> MarketConfig:
    rules = Snapshot(dev_share=0.25, gold_raters=3, gold_agree=3, derived_queries=4)
    given: dict[str, Any] = {
        "source_locale": (KO, JA), "evaluation_locales": (VI,), "snapshot": rules,
    }  # fmt: skip
    return market(**(given | sections))


def translated(n: int, kind: str, source: str, target: str) -> dict[str, Any]:
    return {"translation_id": f"t{n}", "kind": kind, "source_text": source, "target_text": target}


def judged_by_three(name: str, query: str, products: Sequence[int]) -> list[dict[str, Any]]:
    return [label(f"{name}{query}{i}{r}", query, f"p{i}", i % 3, f"r{r}")
            for i in products for r in range(3)]  # fmt: skip


@pytest.fixture
def landed(settings: Settings) -> Settings:
    for locale, word in ((KO, "우유"), (JA, "ミルク"), (ZH, "牛奶"), (VI, "sữa")):
        land_lines(settings, DAY0, f"{locale}/catalogue.jsonl",
                   [product(i, f"{word} {i}", "mlk") for i in range(4)])  # fmt: skip
    for locale, words in ((KO, "우유 라면 커피 생수"), (JA, "ミルク ラーメン コーヒー 水")):
        land_lines(settings, DAY0, f"{locale}/labels.jsonl", [
            label(f"{locale}{q}{i}", q, f"p{i}", i % 3) for q in [*words.split(), "mlk 500", "both"]
            for i in range(3)
        ])  # fmt: skip
        land_sessions(settings, DAY0, locale, [
            session(f"{locale}{q}", q, ["p0", "p1", "p2"], click="p1", purchase="p1")
            for q in [*words.split(), "both"]
        ])  # fmt: skip
    land_lines(settings, DAY0, f"{KO}/translations.jsonl", [translated(1, "query", "우유", "牛奶")])
    land_lines(settings, DAY0, f"{JA}/translations.jsonl", [
        translated(2, "query", "ミルク", "牛奶"), translated(3, "brand", "エム", "mlk"),
    ])  # fmt: skip
    land_lines(settings, DAY0, f"{ZH}/translations.jsonl", [
        translated(4, "query", "우유", "牛奶"), translated(5, "title", "우유 1", "牛奶 1"),
    ])  # fmt: skip
    land_lines(settings, DAY0, f"{VI}/translations.jsonl", [translated(6, "query", "우유", "sữa")])
    land_lines(settings, DAY1, f"{ZH}/labels.jsonl", [
        *judged_by_three("z", "泡麵", [1, 2]),
        *[label(f"zz{i}", "牛奶", f"p{i}", i) for i in range(3)],
    ])  # fmt: skip
    land_lines(settings, DAY1, f"{VI}/labels.jsonl", [
        *judged_by_three("v", "sữa", [0, 2]), *judged_by_three("v", "both", [1]),
        label("alone", "cà phê", "p1", 2),
    ])  # fmt: skip
    land_sessions(settings, DAY1, VI, [session("vi", "phở", ["p0", "p1"], DAY1, click="p1")])
    ingest(settings, DAY0, several())
    ingest(settings, DAY1, several())
    return settings


def read(settings: Settings, stage: int) -> dict[str, pl.DataFrame]:
    made = snapshot(settings, stage, DAY1, several())
    names = ("pairs", "queries", "products", "votes", "translations", "conversions", "behaviour")
    return {name: pl.read_parquet(made.file(f"{name}.parquet")) for name in names}


def locales(frame: pl.DataFrame) -> set[str]:
    return set(frame["locale"])


def test_stage_1_is_of_all_sources_and_of_nothing_else(landed: Settings) -> None:  # A9
    made = read(landed, 1)
    assert locales(made["pairs"]) == locales(made["conversions"]) == {KO, JA}
    assert set(made["pairs"]["split"]) == {"train", "dev"}
    assert locales(made["products"]) == {KO, JA, ZH, VI}
    own = made["queries"].filter(~pl.col("locale").is_in([KO, JA]))
    assert set(own["origin"]) <= {"translated", "derived"} and locales(own) == {ZH}


def test_stage_2_adds_the_target_and_of_a_language_only_judged_in_its_gold(
    landed: Settings,
) -> None:
    made = read(landed, 2)
    pairs = made["pairs"]
    assert locales(pairs.filter(split="gold")) == {ZH, VI}
    assert locales(pairs.filter(pl.col("split") != "gold")) == {KO, JA, ZH}
    assert locales(made["votes"]) == {KO, JA, ZH} and locales(made["behaviour"]) <= {ZH}
    assert locales(made["conversions"]) == {KO, JA}
    judged_in = made["queries"].filter(locale=VI)
    assert set(judged_in["query"]) == {"sữa", "both"}  # neither the log nor what is no gold
    # Gold of one language is learnt from in none: a text is held out, not a row.
    for locale in (KO, JA):
        asked = query_id(locale, "both")
        assert pairs.filter(query_id=asked).is_empty()
        assert made["conversions"].filter(query_id=asked).is_empty()
    for stage, learnt, missing in ((1, [KO, JA], [ZH, VI]), (2, [KO, JA, ZH], [VI])):  # A36
        about = snapshot(landed, stage, DAY1, several()).file("snapshot.json").read_text()
        assert json.loads(about)["locales"] == {"learnt": learnt, "missing": missing}


def test_translations_say_from_which_language_into_which(landed: Settings) -> None:
    made = read(landed, 2)["translations"]
    assert made.drop("split").sort(pl.all()).rows() == [
        ("brand", "エム", "mlk", JA, ZH),
        ("query", "ミルク", "牛奶", JA, ZH),
        ("query", "우유", "sữa", KO, VI),
        ("query", "우유", "牛奶", KO, ZH),  # delivered in two folders
        ("title", "우유 1", "牛奶 1", KO, ZH),
    ]
    path = landed.home / "x"
    path.mkdir(parents=True)
    made.with_columns(split=pl.lit("train")).write_parquet(path / "translations.parquet")
    assert set(translation_rows(path).groups) == {
        "brand ja-JP>zh-TW", "query ja-JP>zh-TW", "query ko-KR>vi-VN", "query ko-KR>zh-TW",
        "title ko-KR>zh-TW",
    }  # fmt: skip


def test_dev_that_selects_is_the_targets_and_that_of_sources_is_of_all(landed: Settings) -> None:
    for stage in (1, 2):
        made = snapshot(landed, stage, DAY1, several())
        dev, sources = selection_dev(made.path, ZH)
        assert locales(sources) == {KO, JA}
        assert locales(dev) == ({KO, JA} if stage == 1 else {ZH})


def test_a_language_that_the_market_lacks_is_one_line(landed: Settings) -> None:
    land_lines(landed, DAY1, "th-TH/labels.jsonl", [label("th", "นม", "p1", 2)])
    with pytest.raises(DataError, match=r"ko-KR, ja-JP, zh-TW, vi-VN") as caught:
        ingest(landed, DAY1, several())
    assert "th-TH/labels.jsonl" in str(caught.value) and "\n" not in str(caught.value)


folder = st.sampled_from([KO, JA, ZH, VI])
delivered = st.lists(st.tuples(st.sampled_from(["query", "title"]), st.sampled_from("ab"),
                               st.sampled_from("cd"), folder), max_size=12)  # fmt: skip


@examples(max_examples=150, deadline=None)
@given(rows=delivered, sources=st.sampled_from([(KO,), (KO, JA), (JA, KO)]))
def test_every_delivered_pair_has_one_direction_and_is_there_once(
    rows: list[tuple[str, str, str, str]], sources: tuple[str, ...]
) -> None:
    own = several(source_locale=sources, evaluation_locales=())
    there = [row for row in rows if row[3] in own.locales]
    schema = dict.fromkeys(("kind", "source_text", "target_text", "locale"), pl.String)
    expected = set()
    for kind, text, other, locale in there:
        origin = locale if locale in sources else sources[0]
        expected.add((kind, text, other, origin, ZH))
    made = directed(pl.DataFrame(there, schema, orient="row"), own)
    assert made.rows() == sorted(expected)


typed = st.sampled_from(["lg tv", "LG  TV", "ｌｇ ｔｖ", "우유", "milk", "MILK", "ミルク"])
judged = st.lists(st.tuples(st.sampled_from([KO, JA, ZH, VI]), typed), min_size=1, max_size=20)


@examples(max_examples=200, deadline=None)
@given(rows=judged, gold=judged, seed=st.integers(0, 9))
def test_a_text_is_on_one_side_in_all_languages(  # A10
    rows: list[tuple[str, str]], gold: list[tuple[str, str]], seed: int
) -> None:
    def table(of: list[tuple[str, str]]) -> pl.DataFrame:
        return pl.DataFrame(
            [(x, query_id(x, q), "p1", normalise(q), 1, 1, 1) for x, q in dict.fromkeys(of)],
            {"locale": pl.String, "query_id": pl.String, "product_id": pl.String,
             "norm": pl.String, "grade": pl.Int8, "raters": pl.Int32, "agree": pl.Int32},
            orient="row",
        ).unique(["locale", "query_id"], maintain_order=True)  # fmt: skip

    split = assign_splits(table(rows), table(gold), 0.4, seed)
    sides = split.group_by("norm").agg(pl.col("split").n_unique())
    assert (sides["split"] == 1).all()
    held = split.filter(split="gold")
    assert set(held.select("locale", "norm").rows()) == {(x, normalise(q)) for x, q in gold}


# What a market file may say


def test_one_source_has_two_spellings_and_they_are_the_same(tmp_path: Path) -> None:
    found = []
    for number, line in enumerate(("source_locale: ko-KR", "source_locales: [ko-KR]")):
        path = tmp_path / f"m{number}.yaml"
        path.write_text(f"{LEAST}{line}\n")
        found.append(parse_market(path))
    assert found[0] == found[1] and found[0].source_locales == (KO,)
    again = MarketConfig.model_validate_json(found[0].model_dump_json())
    assert again == found[0]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("source_locales: [ko-KR, ja-JP, ko-KR]", "source_locales: ko-KR is given twice"),
        ("source_locales: [ko-KR, zh-TW]", "source_locales and target_locale are both zh-TW"),
        ("source_locales: [ko-KR, ja_JP]", "source_locales.1: String should match"),
        ("source_locales: []", "source_locales: "),
        ("source_locale: ko", "source_locale: String should match"),
        ("source_locale: ko-KR\nsource_locales: [ja-JP]", "source_locale: stands beside"),
        ("source_locale: ko-KR\nevaluation_locales: [ko-KR]", "ko-KR is a source or the target"),
        ("source_locale: ko-KR\nevaluation_locales: [vi-VN, vi-VN]", "vi-VN is given twice"),
        ("seed: 1", "source_locales: has no default"),
        (
            "source_locales: [ko-KR, ja-JP]\ngate: {slices: [language th-TH]}",
            "'th-TH' is none of the market's locales, ko-KR, ja-JP, zh-TW",
        ),
    ],
)
def test_languages_that_cannot_be_are_one_line(line: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "m.yaml"
    path.write_text(f"{LEAST}{line}\n")
    with pytest.raises(ConfigError) as caught:
        parse_market(path)
    assert said in str(caught.value) and "\n" not in str(caught.value)
