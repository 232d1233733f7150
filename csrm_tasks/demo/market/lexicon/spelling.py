"""Invented languages in Latin letters: English words, spelt by rule.

A market of many languages needs words that are nobody's, share some letters with English, as
neighbouring languages do, and are one to one with it. Words in capitals are names, and stay.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache

RULES: Mapping[str, Sequence[tuple[str, str]]] = {
    "de": (
        ("sh", "sch"), ("th", "d"), ("ck", "k"), ("oo", "u"), ("ea|ee", "ie"), ("ph", "f"),
        ("c(?!h)", "k"), ("w", "v"), (r"y\b", "ei"), (r"(?<=[bdgkmnprst])\b", "e"),
    ),
    "id": (
        ("sh", "sy"), ("th", "t"), ("ck|c(?!h)", "k"), ("oo|ou", "u"), ("ea|ee", "i"),
        ("ph|v", "f"), ("x", "ks"), ("y\\b", "i"), (r"([bdfgklmnprst])\1", r"\1"),
        (r"([bdgkpt])(?=[bdgkpstl])", r"\1a"), (r"(?<=[bdgkpt])\b", "u"),
    ),
}  # fmt: skip


@cache
def spelt(text: str, lang: str) -> str:
    """Return English ``text`` in the language ``lang`` of :data:`RULES`."""
    return " ".join(_word(word, lang) for word in text.split(" "))


def _word(word: str, lang: str) -> str:
    if not word.isalpha() or (word.isupper() and len(word) > 1):
        return word
    made = word.lower()
    for pattern, new in RULES[lang]:
        made = re.sub(pattern, new, made)
    return made
