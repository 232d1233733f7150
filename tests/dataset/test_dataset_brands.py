"""The query-brand dictionary: longest form, word boundaries, scripts that run words together."""

from __future__ import annotations

import polars as pl
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from csrm_tasks.dataset.brands import BrandDictionary, build_brands

BRANDS = build_brands(
    ["LG", "Mi", "小米", "小米生活", "農心", "Nike Golf", "NIKE", "삼성", "X"],
    [("三星", "삼성"), ("nongshim", "農心"), ("화웨이", "Huawei"), ("", "NIKE")],
)


EXAMPLES = [
    ("lg 冰箱", "LG"),
    ("lg冰箱", "LG"),  # from Latin to Han is a boundary
    ("algae", ""),
    ("mini 手機", ""),
    ("mi手機", "Mi"),
    ("便宜小米生活電鍋", "小米生活"),  # longest
    ("買小米手機", "小米"),
    ("nike golf shoes", "Nike Golf"),
    ("nike golfer", "NIKE"),
    ("三星手機", "삼성"),  # an alias leads to the catalogue's spelling
    ("nongshim 辛拉麵", "農心"),
    ("화웨이 폰", "Huawei"),  # whose partner the catalogue does not have
    ("삼성전자", ""),  # Hangul words end at spaces
    ("삼성 티비", "삼성"),
    ("x 手機", "X"),
    ("x手機", ""),  # one character: only as a whole word
    ("", ""),
    ("nikemi nike", "NIKE"),
    ("𠮷lg 𠮷", "LG"),  # two UTF-16 units, four bytes
]


def test_match() -> None:
    norms = pl.Series("norm", [norm for norm, _ in EXAMPLES])
    matched = dict(zip(norms, BRANDS.match(norms), strict=True))
    assert matched == dict(EXAMPLES)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_columns_without_any_hit(count: int) -> None:
    norms = pl.Series("norm", ["zzz"] * count, dtype=pl.String)
    assert BRANDS.match(norms).to_list() == [""] * count
    assert build_brands([], []).match(norms).to_list() == [""] * count


def test_order_of_deliveries_does_not_matter() -> None:
    names, aliases = ["ACME", "Acme", "acme "], [("b", "ACME"), ("b", "Zeta")]
    one = build_brands(names, aliases)
    two = build_brands(reversed(names), reversed(aliases))
    norms = pl.Series(["acme", "b"])
    assert one.match(norms).to_list() == two.match(norms).to_list()


def slow_match(forms: set[str], text: str) -> str:
    """Try every form at every place."""

    def alone(start: int, end: int) -> bool:
        left, right = text[start - 1 : start], text[end : end + 1]
        if end - start == 1:
            return not (left.isalnum() or right.isalnum())
        before = not left.isalnum() or left in "小米" or text[start] in "小米"
        return before and (not right.isalnum() or right in "小米" or text[end - 1] in "小米")

    found = [
        (-len(f), i, f)
        for f in forms
        for i in range(len(text))
        if text.startswith(f, i) and alone(i, i + len(f))
    ]
    return min(found)[2] if found else ""


@given(
    st.sets(st.text("ab&小米é", min_size=1, max_size=4), max_size=8),
    st.lists(st.text("ab &小米é", max_size=12), max_size=6),
)
@hypothesis_settings(max_examples=400, deadline=None)
def test_equals_a_slow_search_over_all_forms(forms: set[str], texts: list[str]) -> None:
    matched = BrandDictionary({f: f.upper() for f in forms}).match(
        pl.Series(texts, dtype=pl.String)
    )
    assert matched.to_list() == [slow_match(forms, t).upper() for t in texts]
