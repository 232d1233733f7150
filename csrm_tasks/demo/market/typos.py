"""Slips of the finger: a character dropped or swapped; in Korean also a wrong jamo."""

from __future__ import annotations

from itertools import pairwise

from csrm_tasks.demo.market.lexicon import Lang

HANGUL_FIRST, HANGUL_LAST = 0xAC00, 0xD7A3
FINALS, VOWELS = 28, 21
# Vowels that sit together on the keyboard or sound alike, by position in the Unicode order.
NEAR_VOWEL = {0: 2, 2: 0, 1: 5, 5: 1, 4: 6, 6: 4, 8: 12, 12: 8, 13: 17, 17: 13, 18: 20, 20: 18}


def misspell(text: str, lang: Lang, u: float, v: float) -> str:
    """Return ``text`` with one slip chosen by two uniform numbers; texts of one letter as is."""
    at = [i for i, c in enumerate(text) if not c.isspace()]
    if len(at) < 2:
        return text
    i = at[int(v * len(at))]
    if lang == "ko" and u < 0.5:
        return text[:i] + _jamo(text[i], u * 2) + text[i + 1 :]
    if u < 0.75 and len(at) > 2:
        return text[:i] + text[i + 1 :]
    i, j = next((a, b) for a, b in pairwise(at) if i in (a, b))
    letters = list(text)
    letters[i], letters[j] = letters[j], letters[i]
    return "".join(letters)


def _jamo(syllable: str, u: float) -> str:
    """Change one jamo: a near vowel, or the final consonant lost or gained."""
    code = ord(syllable)
    if not HANGUL_FIRST <= code <= HANGUL_LAST:
        return syllable
    rest, final = divmod(code - HANGUL_FIRST, FINALS)
    initial, vowel = divmod(rest, VOWELS)
    if u < 0.5 and vowel in NEAR_VOWEL:
        vowel = NEAR_VOWEL[vowel]
    else:
        final = 0 if final else 4  # 4 is ㄴ
    return chr(HANGUL_FIRST + (initial * VOWELS + vowel) * FINALS + final)
