"""One slip of the fingers in a query, as its script is typed.

- Latin letters: the letter beside it on a QWERTY keyboard.
- Hangul: the jamo beside it on the Korean two-set keyboard (dubeolsik), within its syllable.
- Any script: a letter dropped, or swapped with the one after it.

Chinese is typed by sound; homophones would need a table of a library that this project does not
have, so Han and kana slip as any script does.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence

import numpy as np

from csrm_tasks.text import compose

SHORTEST = 3  # letters; a slip leaves too little of a shorter query
QWERTY = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
# The two-set keyboard: consonants to the left, vowels to the right; a slip stays on its side.
CONSONANTS = ("ㅂㅈㄷㄱㅅ", "ㅁㄴㅇㄹㅎ", "ㅋㅌㅊㅍ")
VOWELS = ("ㅛㅕㅑㅐㅔ", "ㅗㅓㅏㅣ", "ㅠㅜㅡ")


def neighbours(rows: tuple[str, ...]) -> dict[str, str]:
    """Return the keys to the left, to the right, above and below of every key."""
    found: dict[str, str] = {}
    for r, row in enumerate(rows):
        for c, key in enumerate(row):
            beside = row[max(0, c - 1) : c] + row[c + 1 : c + 2]
            others = [rows[n][c : c + 1] for n in (r - 1, r + 1) if 0 <= n < len(rows)]
            found[key] = beside + "".join(others)
    return found


def _conjoining() -> dict[str, str]:
    """Return the neighbours of leading, vowel and trailing jamo as conjoining characters."""
    found: dict[str, str] = {}
    for rows, positions in ((CONSONANTS, ("CHOSEONG", "JONGSEONG")), (VOWELS, ("JUNGSEONG",))):
        for position in positions:
            for key, beside in neighbours(rows).items():
                found[_jamo(position, key)] = "".join(_jamo(position, other) for other in beside)
    return found


def _jamo(position: str, key: str) -> str:
    name = unicodedata.name(key).removeprefix("HANGUL LETTER ")
    return unicodedata.lookup(f"HANGUL {position} {name}")


LATIN: Mapping[str, str] = neighbours(QWERTY)
JAMO: Mapping[str, str] = _conjoining()


def slip(text: str, rng: np.random.Generator) -> str | None:
    """Return ``text`` with one slip; None for one of fewer than :data:`SHORTEST` letters.

    A neighbouring key half of the time, where the script has one; else :func:`misspelt`. Digits
    stay: 50 ml for 500 ml is another product, and the label would be wrong.
    """
    text = compose(text)
    at = [i for i in letters(text) if not text[i].isnumeric()]
    if len(at) < SHORTEST:
        return None
    touched = _neighbour(text, rng) if rng.random() < 0.5 else None
    return misspelt(text, rng, at) if touched is None else touched


def misspelt(text: str, rng: np.random.Generator, at: Sequence[int] | None = None) -> str:
    """Return ``text`` with one slip: a letter but the last dropped, or swapped with the next one.

    ``at``: where the letters stand that may slip, two or more; None: :func:`letters`.
    """
    at = letters(text) if at is None else at
    nth = int(rng.integers(len(at) - 1))
    i, j = at[nth], at[nth + 1]
    if rng.random() < 0.5:
        return text[:i] + text[i + 1 :]
    swapped = list(text)
    swapped[i], swapped[j] = swapped[j], swapped[i]
    return "".join(swapped)


def letters(text: str) -> list[int]:
    """Return where the letters stand: whatever is no space."""
    return [i for i, letter in enumerate(text) if not letter.isspace()]


def _neighbour(text: str, rng: np.random.Generator) -> str | None:
    """Return ``text`` with one key's neighbour in its place; None where no key is known."""
    keys = unicodedata.normalize("NFD", text)
    at = [i for i, key in enumerate(keys) if key.lower() in LATIN or key in JAMO]
    if not at:
        return None
    i = at[int(rng.integers(len(at)))]
    key = keys[i]
    beside = JAMO.get(key) or LATIN[key.lower()]
    other = beside[int(rng.integers(len(beside)))]
    typed = other.upper() if key.isupper() else other
    return compose(keys[:i] + typed + keys[i + 1 :])
