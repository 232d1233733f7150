"""Language-aware tokens for lexical retrieval (A20), decided by script, not by a locale's name.

Scripts written without reliable spaces (Han, kana) and Hangul, whose words carry particles, give
character bigrams; a run of one character gives that character. Every other script gives words.
A number keeps its decimals and its unit, so that "500 ml", "500ml" and "500ＭＬ" are one token and
never match "50". No dictionary and no model: the same text gives the same tokens for ever.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from csrm_tasks import text as text_module
from csrm_tasks.text import compose, normalise

# Han (with the iteration mark and the extensions in use) and kana run together as Japanese does.
_HAN_KANA = "\u3005\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_HANGUL = "\uac00-\ud7a3\u1100-\u11ff\u3130-\u318f"
_LATIN_UNITS = (
    "ml|cl|dl|l|mg|kg|g|oz|lb|lbs|mm|cm|m|km|inch|in|ft|w|kw|v|mah|hz|ghz|mb|gb|tb|p|pcs|ea|%|°c"
)
_CJK_UNITS = (
    "毫升|公升|公克|公斤|[入包盒瓶罐片枚組個件條支袋串張雙台吋寸斤]"
    "|개입|박스|세트|켤레|캔|[개병팩봉매입장]"
)
_NUMBER = r"\d+(?:[.,]\d+)*"

_TOKEN = re.compile(
    rf"(?P<unit>{_NUMBER}\s?(?:(?:{_LATIN_UNITS})(?![a-wyz0-9]|x(?!\d))|{_CJK_UNITS}))"
    rf"|(?P<han>[{_HAN_KANA}]+)"
    rf"|(?P<hangul>[{_HANGUL}]+)"
    rf"|(?P<number>{_NUMBER}(?![^\W_{_HAN_KANA}{_HANGUL}]))"
    rf"|(?P<word>[^\W_{_HAN_KANA}{_HANGUL}]+)",
    re.IGNORECASE,
)
_SPACE = re.compile(r"\s+")


def tokens(text: str) -> list[str]:
    """Return the search tokens of ``text``, in order, repetitions kept; [] for punctuation."""
    return [term for _, _, terms in pieces(normalise(text)) for term in terms]


def pieces(norm: str) -> Iterator[tuple[str, int, list[str]]]:
    """Yield the kind, the place and the search tokens of each piece of a normalised text.

    Kinds are unit (a number with its unit), han (with kana), hangul, number and word.
    """
    for match in _TOKEN.finditer(norm):
        piece, kind = match.group(), match.lastgroup or ""
        if kind in ("han", "hangul"):
            yield kind, match.start(), bigrams(piece)
        else:
            yield kind, match.start(), [_SPACE.sub("", piece) if kind == "unit" else piece]


def bigrams(run: str) -> list[str]:
    """Return the neighbouring characters of a run; of a run of one, that character."""
    return [run[i : i + 2] for i in range(len(run) - 1)] if len(run) > 1 else [run]


@cache
def identity() -> str:
    """Digest the code that decides what a token is: an index made by other code is made anew."""
    sources = (Path(__file__), Path(text_module.__file__))
    return hashlib.sha256(b"".join(p.read_bytes() for p in sources)).hexdigest()[:16]


def truncate_title(title: str, limit: int) -> str:
    """Return ``title`` up to its ``limit``-th reading unit, composed, else as it was written (A24).

    A reading unit is a word, a number with its unit, or one Han, kana or Hangul character. It is
    counted here and not by a model's tokenizer, so that a cached text outlives the model.
    """
    title, left, end = compose(title), limit, 0
    for match in _TOKEN.finditer(title):
        size = len(match.group()) if match.lastgroup in ("han", "hangul") else 1
        if size > left:
            return title[: match.start() + left if left else end].strip()
        left, end = left - size, match.end()
    return title.strip()
