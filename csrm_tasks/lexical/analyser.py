"""Language-aware tokens for lexical retrieval (A20), decided by script, not by a locale's name.

Scripts written without reliable spaces (Han, kana) and Hangul, whose words carry particles, give
character bigrams; a run of one character gives that character. Every other script gives words.
A number keeps its decimals and its unit, so that "500 ml", "500ml" and "500ＭＬ" are one token and
never match "50"; a fraction with a unit is its decimal: "1½吋" is "1.5吋" and no "2吋". Forms
of one character (濕 溼 湿) are one (:mod:`csrm_tasks.lexical.variants`). No word list and no model:
the same text gives the same tokens for ever.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from functools import cache, lru_cache
from operator import add
from pathlib import Path

from csrm_tasks import text as text_module
from csrm_tasks.lexical.variants import variants
from csrm_tasks.text import compose, normalise

# Han (with the iteration mark and the extensions in use) and kana run together as Japanese does.
_HAN_KANA = "\u3005\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_HANGUL = "\uac00-\ud7a3\u1100-\u11ff\u3130-\u318f"
_LATIN_UNITS = (
    "ml|cl|dl|l|mg|kg|g|oz|lb|lbs|mm|cm|m|km|inch|in|ft|w|kw|v|mah|hz|ghz|mb|gb|tb|p|pcs|ea|%|°c"
)
_CJK_UNITS = (
    "毫升|公升|公克|公斤|[入包盒瓶罐片枚組個件條支袋串張雙双台臺吋寸斤]"
    "|개입|박스|세트|켤레|캔|[개병팩봉매입장]"
)
_NUMBER = r"\d+(?:[.,]\d+)*"
_FRACTION = r"(?:\d+\s)?(?<![\d/.,])\d/[1-9]\d?(?!\d)"

_TOKEN = re.compile(
    rf"(?P<unit>(?:{_FRACTION}|{_NUMBER})\s?(?:(?:{_LATIN_UNITS})(?![a-wyz0-9]|x(?!\d))|{_CJK_UNITS}))"
    rf"|(?P<han>[{_HAN_KANA}]+)"
    rf"|(?P<hangul>[{_HANGUL}]+)"
    rf"|(?P<number>{_NUMBER}(?![^\W_{_HAN_KANA}{_HANGUL}]))"
    rf"|(?P<word>[^\W_{_HAN_KANA}{_HANGUL}]+)",
    re.IGNORECASE,
)
KNOWN = 2**15  # chunks of text whose tokens are remembered: some ten megabytes
_SPACE = re.compile(r"\s+")
_PARTS = re.compile(r"(?:(\d+)\s)?(\d)/(\d+)")


def tokens(text: str) -> list[str]:
    """Return the search tokens of ``text``, in order, repetitions kept; [] for punctuation."""
    terms: list[str] = []
    for chunk in chunks(text):
        terms += chunk_tokens(chunk)
    return terms


def chunks(text: str) -> list[str]:
    """Cut ``text`` where no token can reach across: at a space behind a letter.

    The tokens of a text are those of its chunks, one after the other, and catalogues write the same
    words again and again: what is known of a chunk needs no analysis.
    """
    if " " not in text:
        return [text]
    cut: list[str] = []
    held = ""
    for word in text.split(" "):
        held = f"{held} {word}" if held else word
        if word[-1:].isalpha():
            cut.append(held)
            held = ""
    if held:
        cut.append(held)
    return cut


@lru_cache(maxsize=KNOWN)
def chunk_tokens(chunk: str) -> tuple[str, ...]:
    """Return the tokens of one of :func:`chunks`; the latest :data:`KNOWN` are remembered."""
    return tuple(term for _, _, terms in pieces(normalise(chunk)) for term in terms)


def pieces(norm: str) -> Iterator[tuple[str, int, list[str]]]:
    """Yield the kind, the place and the search tokens of each piece of a normalised text.

    Kinds are unit (a number with its unit), han (with kana), hangul, number and word.
    """
    for match in _TOKEN.finditer(norm):
        piece, kind = match.group(), match.lastgroup or ""
        if not piece.isascii():
            piece = piece.translate(variants())
        if kind in ("han", "hangul"):
            yield kind, match.start(), bigrams(piece)
        else:
            yield kind, match.start(), [_with_unit(piece) if kind == "unit" else piece]


def _with_unit(piece: str) -> str:
    """Return a number and its unit as one token, a fraction as its decimal."""
    if "/" in piece:
        piece = _PARTS.sub(_decimal, piece, count=1)
    return _SPACE.sub("", piece)


def _decimal(match: re.Match[str]) -> str:
    whole, above, below = match.groups(default="0")
    return f"{int(whole) + int(above) / int(below):.3f}".rstrip("0").rstrip(".")


def bigrams(run: str) -> list[str]:
    """Return the neighbouring characters of a run; of a run of one, that character."""
    return list(map(add, run, run[1:])) if len(run) > 1 else [run]


@cache
def identity() -> str:
    """Digest the code that decides what a token is: an index made by other code is made anew."""
    sources = (Path(__file__), Path(text_module.__file__))
    forms = repr(sorted(variants().items())).encode()  # by the data of the library's version
    return hashlib.sha256(b"".join([*(p.read_bytes() for p in sources), forms])).hexdigest()[:16]


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
