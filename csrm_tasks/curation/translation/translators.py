"""What a translator is, and how one remembers what it was asked before.

A translator's answer depends on its identity, the text and the direction alone. So what any shard
of any week has kept may stand for asking again: it saves the work and changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import polars as pl

from csrm_tasks.errors import DataError
from csrm_tasks.records import Schema

Key = tuple[str, str, str]  # text, source locale, target locale

MEMORY: Schema = {  # what translators have answered
    "translator": pl.String,  # its identity
    "text": pl.String,
    "source": pl.String,
    "target": pl.String,
    "candidates": pl.List(pl.String),  # best first; empty where it had nothing to say
}


class Translator(Protocol):
    """Something that translates queries."""

    def translate(self, texts: Sequence[str], source: str, target: str) -> list[tuple[str, ...]]:
        """Return each text's translations, best first; an empty tuple where there is none.

        Raises :class:`ConfigError` or :class:`DataError` where it does not know a language at all.
        """
        ...


class Remembered:
    """A translator that is asked only what is not known yet, and made only when it is asked."""

    def __init__(self, identity: str, make: Callable[[], Translator], memory: pl.DataFrame) -> None:
        """``memory``: MEMORY, of whichever translators."""
        self.identity, self._make, self._inner = identity, make, None
        own = memory.filter(pl.col("translator") == identity)
        columns = own.select("text", "source", "target", "candidates").iter_rows()
        self._known: dict[Key, tuple[str, ...]] = {(t, s, g): tuple(c) for t, s, g, c in columns}
        self._used: dict[Key, tuple[str, ...]] = {}
        self.asked = 0

    _inner: Translator | None

    def translate(self, texts: Sequence[str], source: str, target: str) -> list[tuple[str, ...]]:
        """Return what is known, and of the rest what the translator says."""
        new = [t for t in dict.fromkeys(texts) if (t, source, target) not in self._known]
        if new:
            self._inner = self._inner or self._make()
            answers = self._inner.translate(new, source, target)
            self.asked += len(new)
            self._known |= {(t, source, target): a for t, a in zip(new, answers, strict=True)}
        found = [self._known[t, source, target] for t in texts]
        self._used |= {(t, source, target): a for t, a in zip(texts, found, strict=True)}
        return found

    def used(self) -> pl.DataFrame:
        """Return every answer that was given, as MEMORY, sorted."""
        rows = [(self.identity, *key, list(found)) for key, found in sorted(self._used.items())]
        return pl.DataFrame(rows, MEMORY, orient="row")


def cleaned(texts: Iterable[str]) -> tuple[str, ...]:
    """Return distinct translations that are not empty, white space as single spaces, in order."""
    spaced = (" ".join(text.split()) for text in texts)
    return tuple(dict.fromkeys(text for text in spaced if text))


def readable(
    tokens: Sequence[Sequence[int]], unknown: int | None, whose: str, locale: str
) -> list[bool]:
    """Say of each text, given as its tokens, whether the tokenizer knows any of it.

    Raises :class:`DataError` where it knows nothing of any: it does not know the language.
    """
    known = [any(token != unknown for token in text) for text in tokens]
    if tokens and not any(known):
        raise DataError(
            f"the tokenizer of {whose} does not know the language of {locale}: all of "
            f"{len(tokens)} queries are unknown tokens; choose a model that was made for it"
        )
    return known
