"""Texts in a pivot language, from the market's translation table (A52).

A query or title that is not in the pivot language is looked up by its language and its normalised
text; what the table lacks has no translation, in training as in scoring. Of several translations of
a text the first in order is taken, always. Which language a model reads is part of what it is
(:class:`csrm_tasks.llm.network.identity.LlmCard`): its scorer reads texts likewise.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import polars as pl

from csrm_tasks.dataset.tables import table
from csrm_tasks.text import normalise

Translated = dict[tuple[str, str, str], str]  # (kind, locale, normalised text) → in the pivot's


@dataclass(frozen=True)
class Translations:
    """What the table knows of queries and titles of other languages, each text once."""

    pivot: str  # locale
    known: Translated

    def of(self, kind: str, locale: str, text: str) -> str:
        """Return the text in the pivot language; "" where it is in it, or nobody translated it."""
        if locale == self.pivot:
            return ""
        return self.known.get((kind, locale, normalise(text)), "")


def load_translated(snapshot: Path, pivot: str) -> Translations:
    """Read the queries' and titles' translations into the pivot language, of either direction."""
    rows = table(snapshot, "translations").filter(pl.col("kind").is_in(["query", "title"]))
    into = rows.filter(target_locale=pivot)
    out_of = rows.filter(source_locale=pivot)
    texts = pl.concat([
        into.select("kind", locale="source_locale", text="source_text", pivot="target_text"),
        out_of.select("kind", locale="target_locale", text="target_text", pivot="source_text"),
    ])  # fmt: skip
    known: Translated = {}
    for kind, locale, text, translation in texts.unique().sort(texts.columns).iter_rows():
        known.setdefault((kind, locale, normalise(text)), translation)
    return Translations(pivot, known)
