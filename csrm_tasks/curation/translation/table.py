"""The market's own translations as a translator: a whole text, or pieces that cover it whole.

A category path gives its levels as pieces as well. The longest piece that fits is tried first, and
given up where what is left then cannot be covered. In scripts that run words together a piece may
stand anywhere; elsewhere it begins and ends with a word. Numbers with their units stand for
themselves. A text of which one letter is left has no translation: half of a query is another query.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from csrm_tasks.artifacts import json_digest
from csrm_tasks.curation.translation.checks import NUMBER
from csrm_tasks.curation.translation.translators import cleaned
from csrm_tasks.errors import DataError
from csrm_tasks.text import LEVEL_SEPARATOR, normalise

KINDS = ("query", "brand", "category", "title")  # whose translation stands first
Direction = tuple[str, str]  # source, target locale
Row = tuple[str, str, str, str, str]  # kind, text, its translation, source, target locale


class Table:
    """Translations of texts by direction."""

    def __init__(self, rows: Iterable[Row]) -> None:
        """``rows``: kind, text, its translation, the locales of both."""
        split = {one for row in rows for one in (row, *_levels(row))}
        ordered = sorted(split, key=lambda row: (KINDS.index(row[0]), row[1:]))
        self.identity = f"table:{json_digest(ordered)[:16]}"
        texts: dict[Direction, list[tuple[str, str]]] = defaultdict(list)
        for _, one, other, source, target in ordered:
            texts[source, target].append((one, other))
            texts[target, source].append((other, one))
        self._directions = {way: _entries(pairs) for way, pairs in texts.items()}

    def knows(self, one: str, other: str, source: str, target: str) -> bool:
        """Whether the table itself has ``other`` as a translation of ``one``."""
        found = self._directions.get((source, target), {}).get(normalise(one), ())
        return normalise(other) in map(normalise, found)

    def translate(self, texts: Sequence[str], source: str, target: str) -> list[tuple[str, ...]]:
        """Return what the table says of each text: nothing in a direction that it lacks.

        Raises :class:`DataError` where it has no translation at all.
        """
        entries = self._directions.get((source, target), {})
        if not any(self._directions.values()):
            raise DataError(
                f"llm.augmentation.translator is table, but the market has no translations from "
                f"{source} to {target}; deliver some, or choose another translator"
            )
        longest = max(map(len, entries), default=0)
        return [_translated(normalise(text), entries, longest) for text in texts]


def _levels(row: Row) -> list[Row]:
    """Return the levels of a category path one by one, where both texts have as many."""
    kind, text, translation, *locales = row
    levels, others = text.split(LEVEL_SEPARATOR), translation.split(LEVEL_SEPARATOR)
    if kind != "category" or len(levels) != len(others):
        return []
    source, target = locales
    return [(kind, *pair, source, target) for pair in zip(levels, others, strict=True)]


def _entries(rows: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = defaultdict(list)
    for text, translation in rows:
        if normalise(text) and normalise(translation):
            found[normalise(text)].append(translation)
    return dict(found)


def _translated(text: str, entries: dict[str, list[str]], longest: int) -> tuple[str, ...]:
    if text in entries:
        return cleaned(entries[text])
    pieces = _covered(text, entries, longest)
    return () if pieces is None else cleaned([_joined(pieces)])


def _covered(
    text: str, entries: dict[str, list[str]], longest: int
) -> list[tuple[bool, str]] | None:
    """Return the translations of pieces that cover ``text``, each with whether a space is before.

    From the end to the beginning: ``ways[i]`` covers text[i:], by the longest first piece.
    """
    numbers = {m.start(): m.end() for m in NUMBER.finditer(text)}
    ways: list[list[tuple[bool, str]] | None] = [None] * len(text) + [[]]
    for i in reversed(range(len(text))):
        if text[i] == " ":
            continue
        for piece, translation in _pieces(text, i, entries, longest, numbers):
            end = i + len(piece)
            spaced = text[end : end + 1] == " "
            rest = ways[end + spaced]
            if rest is not None:
                space = i > 0 and text[i - 1] == " "
                ways[i] = [(space, translation), *rest]
                break
    return ways[0] if text else None


def _pieces(
    text: str, i: int, entries: dict[str, list[str]], longest: int, numbers: dict[int, int]
) -> Iterable[tuple[str, str]]:
    """Yield the pieces of ``text`` that may begin at ``i``, the longest first."""
    for end in range(min(len(text), i + longest), i, -1):
        piece = text[i:end]
        if piece in entries and _may_part(text, i) and _may_part(text, end):
            yield piece, entries[piece][0]
        elif numbers.get(i) == end and _may_part(text, end):
            yield piece, piece
    end = numbers.get(i, 0)
    if end > i + longest and _may_part(text, end):
        yield text[i:end], text[i:end]


def _may_part(text: str, at: int) -> bool:
    """Whether a piece may end, and another begin, between two letters."""
    if at in (0, len(text)) or " " in (text[at - 1], text[at]):
        return True
    return runs_together(text[at - 1]) or runs_together(text[at])


def runs_together(letter: str) -> bool:
    """Whether a letter is of a script without spaces between words: Han or kana."""
    return (
        "\u2e80" <= letter <= "\u312f" or "\u31a0" <= letter <= "\u9fff" or letter >= "\U00020000"
    )


def _joined(pieces: list[tuple[bool, str]]) -> str:
    """Join translations: with a space where there was one, and between words that need one."""
    text = ""
    for spaced, piece in pieces:
        apart = spaced or not (text and runs_together(text[-1]) and runs_together(piece[0]))
        text += (" " if text and apart else "") + piece
    return text
