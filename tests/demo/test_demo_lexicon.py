"""The lexicon: complete, consistent, and built so that shared letters mislead."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from csrm_tasks.demo.market.lexicon import Lexicon, load_lexicon

HANGUL, HAN = re.compile(r"[가-힣]"), re.compile(r"[一-鿿]")


@pytest.fixture(scope="module")
def lexicon() -> Lexicon:
    return load_lexicon()


def test_sizes(lexicon: Lexicon) -> None:
    assert len(lexicon.types) >= 150
    assert 40 <= len(lexicon.groups) <= 60
    assert 80 <= len(lexicon.values) <= 120
    assert 120 <= len(lexicon.brands) <= 150
    assert min(Counter(t.group for t in lexicon.types).values()) >= 3


def test_every_name_is_in_its_script_and_unique(lexicon: Lexicon) -> None:
    for things in (lexicon.types, lexicon.groups, lexicon.brands):
        ko, zh = ([t.words[i] for t in things] for i in (0, 1))
        assert all(HANGUL.search(w) and not HAN.search(w) for w in ko)
        assert all(HAN.search(w) and not HANGUL.search(w) for w in zh)
        assert len(set(ko)) == len(ko) and len(set(zh)) == len(zh)


def test_letters_mislead_across_groups(lexicon: Lexicon) -> None:
    """Lake salt is no potato chip, and a mouse pad is found by the word mouse."""
    names = [(t.words.zh, t.group) for t in lexicon.types]
    inside = {(a, b) for a, g in names for b, h in names if a != b and a in b and g != h}
    assert {("湖鹽", "湖鹽洋芋片"), ("牛奶", "牛奶糖"), ("果汁", "果汁機")} <= inside


def test_nicknames_share_nothing_with_what_they_mean(lexicon: Lexicon) -> None:
    for nickname in lexicon.nicknames:
        meant = lexicon.types[nickname.type]
        words = (meant.words, lexicon.brands[nickname.brand].words, *meant.synonyms_zh)
        said = {nickname.text[i : i + 2] for i in range(len(nickname.text) - 1)}
        assert not any(bigram in text for bigram in said for w in words for text in w)
        assert meant.group in lexicon.brands[nickname.brand].groups


def test_some_nicknames_are_in_titles_and_some_in_behaviour_only(lexicon: Lexicon) -> None:
    seen = Counter((n.lang, n.in_titles) for n in lexicon.nicknames)
    assert min(seen[key] for key in (("ko", True), ("zh", True), ("zh", False))) >= 15


def test_every_group_has_brands_attributes_and_units(lexicon: Lexicon) -> None:
    assert all(len(brands) >= 3 for brands in lexicon.brands_of())
    assert all(g.units and all(len(a) >= 2 for a in g.attributes) for g in lexicon.groups)
