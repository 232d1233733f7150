"""Checks, table, choice and rows of translated queries (A36, A37)."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from csrm_tasks.curation.translation import run
from csrm_tasks.curation.translation.asked import Barred, asked_queries, missing_locales
from csrm_tasks.curation.translation.checks import Brands, likeness, numbers
from csrm_tasks.curation.translation.rows import translated_pairs
from csrm_tasks.curation.translation.run import DECIDED, Judges, Translators, translated
from csrm_tasks.curation.translation.table import Table
from csrm_tasks.curation.translation.translators import MEMORY, Remembered, cleaned, readable
from csrm_tasks.dataset.sides import text_ids
from csrm_tasks.errors import DataError
from csrm_tasks.records import PAIRS, PRODUCTS, QUERIES, TRANSLATED, TRANSLATIONS
from csrm_tasks.text import normalise, pair_id, query_id
from tests.llm_fixtures import SOURCE, TARGET, make_market

NOBODY = pl.DataFrame(schema=MEMORY)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("우유 500ml 12개", ["12", "500ml"]),
        ("牛奶５００ＭＬ", ["500ml"]),
        ("牛奶 500毫升 12入", ["12", "500ml"]),
        ("1,000g", ["1000g"]),
        ("1.50 kg", ["1.5kg"]),
        ("1,5 kg", ["1.5kg"]),
        ("٣٢ شاشة", ["32"]),
        ("usb3.0 i7-12700 007", ["007", "12700", "3", "7"]),
        ("5gallon 5g手機", ["5", "5g"]),
        ("라면", []),
    ],
)
def test_numbers_are_read_with_their_units_in_whichever_form(text: str, found: list[str]) -> None:
    assert numbers(text) == found


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 10**6), st.sampled_from(["ml", "kg", "%", "개", ""])),
                max_size=4))  # fmt: skip
def test_numbers_survive_full_width_and_order(parts: list[tuple[int, str]]) -> None:
    texts = [f"{n}{unit}" for n, unit in parts]
    wide = ["".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in text) for text in texts]
    assert numbers(" ".join(texts)) == numbers(" 茶 ".join(reversed(wide)))
    assert Counter(n.rstrip("mlkg%") for n in numbers(" ".join(texts))) == Counter(
        str(n) for n, _ in parts
    )


def test_likeness_is_of_letters_and_pairs_without_spaces() -> None:
    assert likeness("순한맛 라면", "순한맛라면") == 1.0
    assert likeness("라면", "우유") == likeness("", "우유") == likeness("", "") == 0.0
    # letters 라 면 라면, of two: 3 of 3; and of four letters and three pairs: 2 · 3 / (3 + 7)
    assert likeness("라면", "라면 우유") == pytest.approx(0.6)


TABLE = [
    ("query", "라면", "拉麵", SOURCE, TARGET),
    ("query", "순한맛 라면", "溫和拉麵", SOURCE, TARGET),
    ("brand", "오뚜기", "不倒翁", SOURCE, TARGET),
    ("category", "컵", "杯", SOURCE, TARGET),
    ("category", "주방 > 찻잔", "廚房 > 茶杯", SOURCE, TARGET),
    (
        "category",
        "주방 > 조리 > 냄비",
        "廚房 > 鍋",
        SOURCE,
        TARGET,
    ),  # levels that do not answer each other
    ("query", "컵라면", "杯麵", SOURCE, TARGET),
    ("title", "라면", "拉麵條", SOURCE, TARGET),
]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("라면", ("拉麵", "拉麵條")),  # a query's translation is before a title's
        ("순한맛 라면", ("溫和拉麵",)),  # the longest piece
        ("오뚜기 순한맛 라면 500ml", ("不倒翁 溫和拉麵 500ml",)),
        ("컵라면", ("杯麵",)),
        ("컵 라면", ("杯 拉麵",)),
        ("오뚜기라면", ()),  # Hangul has word boundaries: no piece of a word
        ("오뚜기 짬뽕", ()),  # a word is not covered
        ("라면 12개", ()),
        ("12", ("12",)),
        ("주방 찻잔", ("廚房 茶杯",)),
        ("냄비", ()),
    ],
)
def test_a_table_translates_what_it_covers_whole(text: str, found: tuple[str, ...]) -> None:
    assert Table(TABLE).translate([text], SOURCE, TARGET) == [found]


def test_a_table_reads_both_ways_and_scripts_that_run_together() -> None:
    table = Table(TABLE)
    assert table.translate(["不倒翁拉麵"], TARGET, SOURCE) == [("오뚜기 라면",)]
    assert table.knows("라면", "拉麵條", SOURCE, TARGET)
    assert table.knows("拉麵條", "라면", TARGET, SOURCE)
    assert not table.knows("라면", "杯麵", SOURCE, TARGET)
    assert table.identity == Table(reversed(TABLE)).identity
    assert table.translate(["라면"], SOURCE, "ja-JP") == [()]  # of other languages it says nothing
    with pytest.raises(DataError, match="no translations from ja-JP to zh-TW") as caught:
        Table([]).translate(["ラーメン"], "ja-JP", TARGET)
    assert "\n" not in str(caught.value)


def covers(text: str, pieces: Sequence[str]) -> bool:
    """Whether pieces of the script that runs together, as a check by trying all, cover a text."""
    return not text or any(
        covers(text[len(p) :].lstrip(" "), pieces) for p in pieces if text.startswith(p)
    )


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(["茶", "茶壺", "壺蓋", "蓋"]), min_size=1, max_size=3, unique=True),
       st.text("茶壺蓋 ", min_size=1, max_size=8))  # fmt: skip
def test_a_table_finds_a_cover_where_there_is_one(pieces: list[str], text: str) -> None:
    table = Table([("query", p, f"<{p}>", TARGET, SOURCE) for p in pieces])
    (found,) = table.translate([text], TARGET, SOURCE)
    norm = normalise(text)
    assert bool(found) == (bool(norm) and covers(norm, pieces))
    if found:
        assert [c for c in found[0] if c not in "<> "] == [c for c in norm if c != " "]


class Says:
    """A translator that says what it is told, by text."""

    def __init__(self, answers: dict[str, tuple[str, ...]]) -> None:
        self.answers, self.asked = answers, 0

    def translate(self, texts: Sequence[str], source: str, target: str) -> list[tuple[str, ...]]:
        self.asked += len(texts)
        return [self.answers.get(t, ()) for t in texts]


def world(
    train: dict[str, list[int]], held: dict[str, str], brand: str = ""
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Queries and pairs: train texts of the source with their grades; ``held``: text → split."""
    queries, pairs = [], []
    for text, grades in train.items():
        q = query_id(SOURCE, text)
        queries.append((q, SOURCE, text, normalise(text), brand, "label", 1))
        for i, grade in enumerate(grades):
            pairs.append((pair_id(q, f"p{i}"), q, f"p{i}", SOURCE, grade, "train", 1, 1))
    for text, split in held.items():
        q = query_id(TARGET, text)
        queries.append((q, TARGET, text, normalise(text), "", "label", 1))
        pairs.append((pair_id(q, "p0"), q, "p0", TARGET, 2, split, 3, 3))
    frames = (queries, QUERIES), (pairs, PAIRS)
    made = [pl.DataFrame(rows, schema, orient="row") for rows, schema in frames]
    return made[0].unique("query_id", keep="first", maintain_order=True), made[1]


def judges(
    queries: pl.DataFrame,
    pairs: pl.DataFrame,
    table: Table | None = None,
    texts: Sequence[str] = (),
    round_trip: float = 0.5,
) -> Judges:
    products = pl.DataFrame(
        [("p0", TARGET, "t", "不倒翁", "", ""), ("p1", SOURCE, "t", "오뚜기", "", "")],
        PRODUCTS, orient="row",
    )  # fmt: skip
    brands = pl.DataFrame(
        [("brand", "오뚜기", "不倒翁", "train", SOURCE, TARGET)], TRANSLATIONS, orient="row"
    )
    barred = Barred.of(queries, pairs, texts)
    return Judges(Brands(products, brands), barred, table or Table([]), round_trip)


def said(
    train: dict[str, list[int]], answers: dict[str, tuple[str, ...]],
    held: dict[str, str] | None = None, brand: str = "", texts: Sequence[str] = (),
    table: Table | None = None,
) -> pl.DataFrame:  # fmt: skip
    queries, pairs = world(train, held or {}, brand)
    asked = asked_queries(queries, pairs, [TARGET], 0).queries
    one = Remembered("says", lambda: Says(answers), NOBODY)
    return translated(asked, Translators(one, one), judges(queries, pairs, table, texts))


@pytest.mark.parametrize(
    ("query", "answers", "brand", "reason"),
    [
        ("라면", {"라면": ("拉麵",), "拉麵": ("라면",)}, "", ""),
        ("라면", {}, "", run.NOTHING),
        ("라면", {"라면": ("라면",)}, "", run.UNCHANGED),
        ("라면 500ml", {"라면 500ml": ("拉麵",)}, "", run.NUMBER),
        ("라면 500ml", {"라면 500ml": ("拉麵 500g",)}, "", run.NUMBER),
        ("라면", {"라면": ("拉麵 12",)}, "", run.NUMBER),
        ("오뚜기 라면", {"오뚜기 라면": ("拉麵",)}, "오뚜기", run.BRAND),
        (
            "오뚜기 라면",
            {"오뚜기 라면": ("不倒翁拉麵",), "不倒翁拉麵": ("오뚜기라면",)},
            "오뚜기",
            "",
        ),
        ("라면", {"라면": ("牛奶",), "牛奶": ("우유",)}, "", run.ROUND_TRIP),
        ("라면", {"라면": ("牛奶",)}, "", run.ROUND_TRIP),  # nothing comes back
        ("라면", {"라면": ("茶壺",), "茶壺": ("라면",)}, "", run.HELD_OUT),
    ],
)
def test_a_translation_is_dropped_for_a_reason(
    query: str, answers: dict[str, tuple[str, ...]], brand: str, reason: str
) -> None:
    row = said({query: [2, 0]}, answers, {"茶壺": "gold"}, brand).row(0, named=True)
    assert row["reason"] == reason
    assert row["text"] == answers.get(query, ("",))[0]
    if not reason:
        assert row["likeness"] >= 0.5 and row["back"] == answers[row["text"]][0]


def test_a_beam_that_keeps_numbers_and_brand_is_preferred() -> None:
    text = "오뚜기 라면 5개"
    answers = {text: ("拉麵 5", "不倒翁拉麵", "不倒翁拉麵 5"), "不倒翁拉麵 5": (text,)}
    row = said({text: [1]}, answers, brand="오뚜기").row(0, named=True)
    assert (row["text"], row["reason"]) == ("不倒翁拉麵 5", "")
    assert (row["numbers"], row["brand"]) == ("5", "不倒翁")


def test_what_the_market_itself_calls_a_translation_needs_no_way_back() -> None:
    table = Table([("query", "라면", "拉麵", SOURCE, TARGET)])
    row = said({"라면": [2]}, {"라면": ("拉麵",)}, table=table).row(0, named=True)
    assert (row["reason"], row["back"], row["likeness"]) == ("", "라면", 1.0)


def test_what_another_snapshot_held_out_is_no_translation() -> None:
    """A cold start's snapshot has no target query; the register of sides has them (A10)."""
    gold = text_ids(pl.Series([normalise("拉麵")])).to_list()
    answers = {"라면": ("拉麵",), "拉麵": ("라면",)}
    assert said({"라면": [2]}, answers, texts=gold)["reason"].to_list() == [run.HELD_OUT]
    assert said({"라면": [2]}, answers)["reason"].to_list() == [""]


TEXTS = st.text("가나다 茶壺蓋15", min_size=1, max_size=4).filter(lambda t: bool(normalise(t)))


@settings(max_examples=400, deadline=None)
@given(
    st.dictionaries(TEXTS, st.lists(st.integers(0, 2), min_size=1, max_size=3), min_size=1,
                    max_size=5),
    st.dictionaries(TEXTS, st.sampled_from(["dev", "gold"]), max_size=3),
    st.dictionaries(TEXTS, st.lists(TEXTS, min_size=1, max_size=3).map(tuple), max_size=8),
    st.lists(st.lists(TEXTS, min_size=1, max_size=3).map(tuple), min_size=5, max_size=5),
    st.sampled_from([0.0, 0.5]),
)  # fmt: skip
def test_no_learnt_translation_is_held_out_or_loses_a_number_and_none_is_too_many(
    train: dict[str, list[int]], held: dict[str, str], answers: dict[str, tuple[str, ...]],
    more: list[tuple[str, ...]], round_trip: float,
) -> None:  # fmt: skip
    answers = answers | dict(zip(train, more, strict=False))
    queries, pairs = world(train, held)
    pairs = pairs.unique("pair_id", keep="first", maintain_order=True)
    asked = asked_queries(queries, pairs, missing_locales(make_market(Path("b")), pairs), 0)
    one = Remembered("says", lambda: Says(answers), NOBODY)
    judged = judges(queries, pairs, round_trip=round_trip)
    decided = translated(asked.queries, Translators(one, one), judged)
    rows, counts = translated_pairs(decided, pairs)
    barred = {normalise(t) for t in held}
    labels = dict(pairs.select("pair_id", "grade").iter_rows())
    texts = dict(queries.select("query_id", "query").iter_rows())
    for row in rows.iter_rows(named=True):
        assert normalise(row["text"]) not in barred and normalise(row["query"]) not in barred
        assert numbers(row["text"]) == numbers(row["query"])
        assert row["text"] in answers[texts[row["query_id"]]]
        assert row["grade"] == labels[row["pair_id"]] and row["likeness"] >= round_trip
    originals = pairs.filter(split="train").group_by("locale").len()["len"]
    for _, own in rows.group_by("to_locale"):
        assert own.height <= max(originals.to_list())
    keys = ["to_locale", "text", "product_id", "locale"]
    assert rows.select(keys).is_unique().all() and dict(rows.schema) == TRANSLATED
    asked_pairs = decided.join(pairs.filter(split="train"), on="query_id").height
    assert sum(sum(c.values()) for c in counts.values()) == asked_pairs
    assert sum(c.get("kept", 0) for c in counts.values()) == rows.height


def test_two_queries_with_one_translation_are_one_row_or_none() -> None:
    """Where the labels agree the first stays; where they do not, nobody knows."""
    answers = {"라면": ("麵",), "라 면": ("麵",), "麵": ("라면",)}
    queries, pairs = world({"라면": [2, 0], "라 면": [2, 1]}, {})
    asked = asked_queries(queries, pairs, [TARGET], 0).queries
    one = Remembered("says", lambda: Says(answers), NOBODY)
    decided = translated(asked, Translators(one, one), judges(queries, pairs))
    rows, counts = translated_pairs(decided, pairs)
    assert rows.select("product_id", "grade").rows() == [("p0", 2)]
    assert counts == {TARGET: {"conflict": 2, "duplicate": 1, "kept": 1}}


def test_languages_are_derived_from_what_is_judged_and_what_is_learnt() -> None:
    market = make_market(Path("b"))
    _, pairs = world({"라면": [2]}, {})
    assert missing_locales(market, pairs) == [TARGET]
    other = pairs.with_columns(locale=pl.lit("ja-JP"), split=pl.lit("dev"))
    assert missing_locales(market, pl.concat([pairs, other])) == ["ja-JP", TARGET]
    own = pairs.with_columns(locale=pl.lit(TARGET))
    assert missing_locales(market, pl.concat([pairs, own])) == []


def test_a_language_gets_no_more_rows_than_the_largest_has_and_keeps_what_it_had() -> None:
    """Three training languages of 6, 3 and 3 rows: at most 6, drawn of all."""
    parts = []
    for locale, n in ((SOURCE, 6), ("ja-JP", 3), ("en-US", 3)):
        for i in range(n):
            q = query_id(locale, f"{locale}{i}")
            parts.append((q, locale, f"{locale}{i}"))
    queries = pl.DataFrame(
        [(*row, normalise(row[2]), "", "label", 1) for row in parts], QUERIES, orient="row"
    )
    pairs = pl.DataFrame(
        [(pair_id(q, "p"), q, "p", loc, 1, "train", 1, 1) for q, loc, _ in parts], PAIRS,
        orient="row",
    )  # fmt: skip
    asked = asked_queries(queries, pairs, [TARGET], 3)
    assert (asked.queries.height, asked.capped) == (6, 6)
    assert asked.queries["locale"].n_unique() > 1
    shuffled = asked_queries(queries.reverse(), pairs.reverse(), [TARGET], 3)
    assert shuffled.queries.equals(asked.queries)


def test_what_is_known_is_not_asked_again_and_no_model_is_made_for_it() -> None:
    made: list[Says] = []

    def make() -> Says:
        made.append(Says({"라면": ("拉麵",)}))
        return made[-1]

    first = Remembered("says", make, NOBODY)
    assert first.translate(["라면", "우유", "라면"], SOURCE, TARGET) == [("拉麵",), (), ("拉麵",)]
    assert (len(made), made[0].asked, first.asked) == (1, 2, 2)
    again = Remembered("says", make, first.used())
    assert again.translate(["우유", "라면"], SOURCE, TARGET) == [(), ("拉麵",)]
    assert (len(made), again.asked) == (1, 0) and again.used().equals(first.used())
    other = Remembered("others", make, first.used())
    other.translate(["라면"], SOURCE, TARGET)
    again.translate(["라면"], TARGET, SOURCE)  # the other direction
    assert (len(made), other.asked, again.asked) == (3, 1, 1)


def test_a_language_that_a_tokenizer_does_not_know_is_named_in_a_line() -> None:
    assert readable([[1, 0], [0, 0]], 0, "m", TARGET) == [True, False]
    assert readable([[0]], None, "m", TARGET) == [True]
    assert readable([], 0, "m", TARGET) == []
    with pytest.raises(DataError, match=r"tokenizer of m does not know .* zh-TW: all of 2") as e:
        readable([[0], [0, 0]], 0, "m", TARGET)
    assert "\n" not in str(e.value)
    assert cleaned([" a  b", "a b", "", unicodedata.lookup("IDEOGRAPHIC SPACE")]) == ("a b",)
    assert set(DECIDED) >= {"reason", "likeness", "translator"}
