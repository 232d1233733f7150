"""Forms of one character are one to a search, and other words stay others."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from csrm_tasks.lexical.analyser import tokens
from csrm_tasks.lexical.variants import HAN, TABLES, variants
from csrm_tasks.retrieval.bm25 import Bm25Index
from csrm_tasks.text import language_of, query_id


@pytest.mark.parametrize(
    "forms",
    ["濕溼湿", "台臺", "裡裏", "床牀", "麵麪麺", "線綫", "群羣", "祕秘", "煙菸", "鉤鈎", "鶏雞鷄"],
)
def test_forms_of_a_character_are_one_token(forms: str) -> None:
    found = {tuple(tokens(f"{c}紙巾 3{c}")) for c in forms}
    assert len(found) == 1


@pytest.mark.parametrize("words", ["面麵", "后後", "里裡", "干乾", "台颱", "谷穀", "制製"])
def test_words_that_simplified_chinese_writes_alike_stay_apart(words: str) -> None:
    assert len({tuple(tokens(f"{c}食")) for c in words}) == 2


def test_every_form_leads_to_one_that_stays() -> None:
    table = variants()
    assert len(table) > 400
    assert not {ord(c) for c in table.values()} & table.keys()
    assert all(len(c) == 1 and ord(c) in HAN for c in table.values())


def test_classes_are_those_that_the_tables_link() -> None:
    """The slow way: walk from every character over all tables until nothing new is reached."""
    from opencc import OpenCC

    links: dict[str, set[str]] = {}
    tables = [OpenCC(t) for t in TABLES]
    for one in map(chr, HAN):
        for other in (t.convert(one) for t in tables):
            if len(other) == 1 and other != one:
                links.setdefault(one, set()).add(other)
                links.setdefault(other, set()).add(one)
    expected = {}
    for start in links:
        reached, fresh = {start}, {start}
        while fresh:
            fresh = {o for c in fresh for o in links[c]} - reached
            reached |= fresh
        if min(reached) != start:
            expected[ord(start)] = min(reached)
    assert variants() == expected


def test_a_search_finds_either_form_and_a_query_keeps_its_own(tmp_path: Path) -> None:
    index = Bm25Index.build(
        tmp_path / "i", [("a", "濕紙巾 80抽"), ("b", "臺灣啤酒"), ("c", "面膜")]
    )
    asked = ["溼紙巾", "台灣啤酒", "麵"]
    assert [[i for i, _ in hits] for hits in index.search(asked, 5)] == [["a"], ["b"], []]
    assert query_id("zh-TW", "溼紙巾") != query_id("zh-TW", "濕紙巾")
    assert pl.select(language_of(pl.lit("溼紙巾"))).item() == "zh"
