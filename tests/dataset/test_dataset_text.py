"""Text rules: one canonical form, and identifiers that depend on nothing else."""

from __future__ import annotations

import unicodedata

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from csrm_tasks.blobs import text_digest
from csrm_tasks.text import (
    INVISIBLE,
    LANGUAGES,
    REDEFINED,
    language_of,
    normalise,
    normalised,
    pair_id,
    pair_ids,
    query_id,
    query_ids,
)

# What has a name of its own; ideographs and syllables, which come in thousands, by some of them.
ASSIGNED = [
    chr(c) for c in [*range(0x3400), *range(0x4E00, 0x9FFF, 97), *range(0xA000, 0xAC00), 0xAC00,
                     0xD55C, *range(0xE000, 0x20000), *range(0xE0000, 0xE1000)]
    if unicodedata.category(chr(c)) not in ("Cn", "Co") or c >= 0xE0000
]  # fmt: skip


@pytest.mark.parametrize(
    ("typed", "canonical"),
    [
        ("  Samsung\tGalaxy　S24 ", "samsung galaxy s24"),
        ("ＬＧ　冰箱", "lg 冰箱"),
        ("ｱｲﾌｫﾝ", "アイフォン"),
        ("STRASSE", "strasse"),
        ("Straße", "strasse"),
        ("\ufeff牛\u200b奶", "牛奶"),
        ("500㎖", "500ml"),
        ("안성탕면", "안성탕면"),  # decomposed jamo
        ("", ""),
        ("치킨ㆍ피자", "치킨·피자"),  # a letter to Unicode, a middle dot to who writes it
        ("ㅎㆍㄴ글", "ᄒᆞᄂ글"),  # the old vowel itself
        ("1½吋 螺絲", "1 1/2吋 螺絲"),
        ("½컵", "1/2컵"),
        ("1\u20442", "1/2"),
        ("딸\u3164기\uffa0 우유\u115f", "딸기 우유"),  # Hangul fillers
        ("\u2068牛奶\u2069\u061c", "牛奶"),  # directional isolates
        ("❤\ufe0f 雞蛋", "❤ 雞蛋"),
    ],
)
def test_canonical_form(typed: str, canonical: str) -> None:
    assert normalise(typed) == canonical


def test_what_nobody_sees_is_what_unicode_calls_so() -> None:
    points = [chr(c) for c in range(0x110000) if not 0xD800 <= c < 0xE000]
    ignorable = pl.Series(points).str.contains(r"^\p{Default_Ignorable_Code_Point}$")
    assert {ord(c) for c in pl.Series(points).filter(ignorable)} == set(INVISIBLE)


def test_every_character_between_others_has_a_form_of_its_own() -> None:
    for before, after in (("", ""), ("1", "2"), ("ᄒ", "ᆫ"), ("가", "나")):
        for c in ASSIGNED:
            form = normalise(before + c + after)
            assert normalise(form) == form, hex(ord(c))


def test_texts_that_were_normalised_otherwise_are_known() -> None:
    old = dict.fromkeys([0xAD, *range(0x200B, 0x2010), *range(0x202A, 0x202F), 0x2060, 0xFEFF])
    for text in (f"1{c}가" for c in ASSIGNED):
        folded = unicodedata.normalize("NFKC", text.translate(old)).casefold()
        before = " ".join(unicodedata.normalize("NFKC", folded).split())
        if before != normalise(text):
            assert pl.Series([text]).str.contains(REDEFINED).all(), hex(ord(text[1]))


@given(st.text())
@settings(max_examples=300, deadline=None)
def test_normalising_twice_changes_nothing(text: str) -> None:
    assert normalise(normalise(text)) == normalise(text)


def test_query_id_is_the_digest_of_locale_and_canonical_form() -> None:
    assert query_id("zh-TW", "ＬＧ 冰箱") == text_digest("zh-TW", "lg 冰箱")
    assert query_id("zh-TW", "lg  冰箱") == query_id("zh-TW", "LG 冰箱")
    assert query_id("ko-KR", "lg") != query_id("zh-TW", "lg")


def test_columns_equal_one_by_one() -> None:
    typed = pl.Series(["LG 冰箱", None, "lg  冰箱", "牛奶"])
    norms = normalised(typed)
    assert norms.to_list() == ["lg 冰箱", None, "lg 冰箱", "牛奶"]
    ids = query_ids("zh-TW", norms)
    assert ids.to_list() == [t and query_id("zh-TW", t) for t in typed]
    products = pl.Series(["a", "b", "c"])
    kept = ids.drop_nulls()
    assert pair_ids(kept, products).to_list() == [
        pair_id(q, p) for q, p in zip(kept, products, strict=True)
    ]


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("냉장고", "ko"),
        ("삼성 refrigerator 4도어", "ko"),
        ("三星 정품 케이스", "ko"),
        ("三星手機 정품", "zh"),  # the Hangul is less than half
        ("冷蔵庫です", "ja"),
        ("ｱｲﾌｫﾝ", "ja"),
        ("優の良品", "zh"),  # a Taiwanese brand's ornament
        ("冷蔵庫", "zh"),  # script alone cannot know better
        ("iphone 15 手機殼", "zh"),
        ("iphoneㆍcase\u3164", "latin"),  # separator and filler are in the Hangul script
        ("ㆍ", "none"),
        ("Café crème", "latin"),
        ("чайник", "other"),
        ("500 - 32", "none"),
        ("", "none"),
        (None, None),
    ],
)
def test_language_by_script(text: str | None, language: str | None) -> None:
    frame = pl.DataFrame({"t": [text]}, schema={"t": pl.String})
    assert frame.select(language_of(pl.col("t"))).item() == language


SCRIPTS = {
    "HANGUL": "ko", "HIRAGANA": "kana", "KATAKANA": "kana", "CJK": "han", "LATIN": "latin",
}  # fmt: skip


def slow_language(text: str) -> str:
    """Count by the names that the standard library gives to characters."""
    found = [SCRIPTS.get(unicodedata.name(c).split()[0]) for c in text if c != "の"]
    if any(s in ("ko", "kana", "han") for s in found):
        if found.count("ko") >= found.count("kana") + found.count("han"):
            return "ko"
        return "ja" if "kana" in found else "zh"
    if "latin" in found:
        return "latin"
    return "other" if any(c.isalpha() for c in text) else "none"


@given(st.lists(st.text("가나冰箱アいの aéж5-", max_size=8), max_size=8))
@settings(max_examples=200, deadline=None)
def test_language_of_a_column_equals_one_by_one(texts: list[str]) -> None:
    frame = pl.DataFrame({"t": texts}, schema={"t": pl.String})
    tags = frame.select(language_of(pl.col("t")))["t"].to_list()
    assert tags == [slow_language(t) for t in texts]
    assert set(tags) <= set(LANGUAGES)


def test_empty_columns_stay_empty() -> None:
    empty = pl.Series("query", [], dtype=pl.String)
    assert normalised(empty).to_list() == []
    assert pair_ids(empty, empty).to_list() == []
