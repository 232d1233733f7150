"""One slip of the fingers: by keyboard where a script has one, else a letter dropped or swapped."""

from __future__ import annotations

import unicodedata
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from csrm_tasks.training.misspelling import (
    CONSONANTS,
    JAMO,
    LATIN,
    QWERTY,
    SHORTEST,
    VOWELS,
    neighbours,
    slip,
)

LETTERS = "abzQ 가각뷁힣 茶壺傘の ñé 05"


def slips(text: str, n: int = 600) -> set[str]:
    made = (slip(text, np.random.default_rng(seed)) for seed in range(n))
    return {t for t in made if t is not None}


def dropped_or_swapped(text: str) -> set[str]:
    """Every drop of a letter but the last, and every swap of two next to each other, one by one."""
    at = [i for i, c in enumerate(text) if not c.isspace() and not c.isnumeric()]
    found = {text[:i] + text[i + 1 :] for i in at[:-1]}
    for i, j in pairwise(at):
        found.add(text[:i] + text[j] + text[i + 1 : j] + text[i] + text[j + 1 :])
    return found


def one_key_off(text: str) -> set[str]:
    """Every key of the decomposed text replaced by every other that is not the same key."""
    keys = unicodedata.normalize("NFD", text)
    table = {key: set(near) for key, near in {**LATIN, **JAMO}.items()}
    found = set()
    for i, key in enumerate(keys):
        for other in table.get(key.lower(), set()):
            typed = other.upper() if key.isupper() else other
            found.add(unicodedata.normalize("NFC", keys[:i] + typed + keys[i + 1 :]))
    return found


@settings(max_examples=400, deadline=None)
@given(st.text(LETTERS, max_size=12), st.integers(0, 10**6))
def test_a_slip_is_one_of_those_that_there_are(text: str, seed: int) -> None:
    made = slip(text, np.random.default_rng(seed))
    assert made == slip(text, np.random.default_rng(seed))
    if sum(not c.isspace() and not c.isnumeric() for c in text) < SHORTEST:
        assert made is None
        return
    assert made in dropped_or_swapped(text) | one_key_off(text)
    digits = [c for c in text if c.isnumeric()]
    assert [c for c in made if c.isnumeric()] == digits
    assert made == unicodedata.normalize("NFC", made)


@pytest.mark.parametrize("text", ["tea", "녹차잔", "紅茶壺", "차 mug"])
def test_every_slip_that_there_is_occurs(text: str) -> None:
    """All of them in enough draws, and none by keyboard in a script without one."""
    assert slips(text, 4000) == dropped_or_swapped(text) | one_key_off(text)
    assert text != "紅茶壺" or one_key_off(text) == set()


def test_a_korean_slip_of_a_jamo_stays_a_syllable() -> None:
    made = one_key_off("녹차잔")
    assert {"녹치잔", "녹하잔", "녹타잔"} & made  # ㅏ-ㅣ beside each other; ㅎ and ㅌ not beside ㅊ
    assert "녹치잔" in made and "녹하잔" not in made
    for word in made:
        assert len(word) == 3 and all("가" <= syllable <= "힣" for syllable in word)


@pytest.mark.parametrize("rows", [QWERTY, CONSONANTS, VOWELS])
def test_keys_lie_beside_each_other_both_ways(rows: tuple[str, ...]) -> None:
    table = neighbours(rows)
    assert set(table) == set("".join(rows))
    for key, near in table.items():
        assert key not in near and len(set(near)) == len(near) > 0
        assert all(key in table[other] for other in near)
    assert set(neighbours(QWERTY)["s"]) == set("adwx")
