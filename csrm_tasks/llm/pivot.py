"""Texts in a pivot language, from the market's translation table (A52).

A query or title that is not in the pivot language is looked up by its normalised text; what the
table lacks has no translation, in training as in scoring. Of several translations of a text the
first in order is taken, always. Which language a model reads is part of what it is
(:class:`csrm_tasks.llm.network.identity.LlmCard`): its scorer reads texts likewise.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from csrm_tasks.dataset.tables import table
from csrm_tasks.markets import MarketConfig
from csrm_tasks.text import normalise

Side = Literal["source", "target"]
Translated = dict[tuple[str, str], str]  # (kind, normalised text) → in the pivot language


@dataclass(frozen=True)
class Pivot:
    """A pivot language, and on which side of the translation table it stands."""

    locale: str
    side: Side


def pivot_of(market: MarketConfig) -> Pivot | None:
    """Return the pivot language that the prompts of a market hold; None: none."""
    locale = market.llm.pivot
    if locale is None:
        return None
    return Pivot(locale, "source" if locale == market.source_locale else "target")


def read_pivot(kept: tuple[str, ...] | list[str] | None) -> Pivot | None:
    """Return the pivot that a model's card holds, as (locale, side)."""
    if kept is None:
        return None
    locale, side = kept
    return Pivot(locale, "source" if side == "source" else "target")


@dataclass(frozen=True)
class Translations:
    """What the table knows of queries and titles in the other language, each text once."""

    pivot: Pivot
    known: Translated

    def of(self, kind: str, locale: str, text: str) -> str:
        """Return the text in the pivot language; "" where it is in it, or nobody translated it."""
        return "" if locale == self.pivot.locale else self.known.get((kind, normalise(text)), "")


def load_translated(snapshot: Path, pivot: Pivot) -> Translations:
    """Read the queries' and titles' translations into the pivot language."""
    other = "target" if pivot.side == "source" else "source"
    rows = table(snapshot, "translations").select("kind", f"{other}_text", f"{pivot.side}_text")
    known: Translated = {}
    for kind, text, translation in rows.unique().sort(rows.columns).iter_rows():
        if kind in ("query", "title"):
            known.setdefault((kind, normalise(text)), translation)
    return Translations(pivot, known)
