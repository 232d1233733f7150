"""What stage 0 reads of a snapshot: titles, queries and translations, and never a grade.

Left out are the queries of dev and gold, in either language and as translations too: their words
are no labels, but so nothing can be said against the figures that are measured on them. Some
titles of each language are held out, by their digest, to tell what was learnt.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from csrm_tasks.blobs import text_digest
from csrm_tasks.dataset.tables import table
from csrm_tasks.errors import DataError
from csrm_tasks.llm.data import DIRECTED, TranslationRows, load_translations
from csrm_tasks.llm.prompt.prompts import (
    WHOLE_PRODUCT,
    ProductFields,
    ProductForm,
    product_segments,
    query_text,
)
from csrm_tasks.llm.task_data import load_task_pairs
from csrm_tasks.text import normalise, query_id

HELD_OUT = 20  # of so many titles of a language one …
MOST_HELD_OUT = 200  # … and at most so many
SHOWN = ["locale", "title", "brand", "category"]


@dataclass(frozen=True)
class Text:
    """One short text as the prompts' segments, so that its tokens are those of a prompt."""

    kind: str  # locale and title or query
    segments: tuple[str, ...]


@dataclass(frozen=True)
class Corpus:
    """Distinct texts of a market."""

    texts: Sequence[Text]
    translations: Sequence[TranslationRows]  # as delivered, and the other way round
    held_out: dict[str, list[Text]]  # titles by locale


def load_corpus(
    snapshot: Path, form: ProductForm = WHOLE_PRODUCT, without: Collection[str] = ()
) -> Corpus:
    """Read the texts, products as ``form`` has them; titles in ``without`` are left alone.

    Those are languages that are only judged in. Raises :class:`DataError` without products.
    """
    products = table(snapshot, "products").filter(~pl.col("locale").is_in(without))
    products = products.select(SHOWN).unique().sort(SHOWN)
    held_out = {
        str(locale): _held_out(str(locale), own["title"])
        for (locale,), own in products.group_by("locale", maintain_order=True)
    }
    kept = [
        Text(f"{locale} title", product_segments(ProductFields(title, brand, category), form))
        for locale, title, brand, category in products.iter_rows()
        if title not in held_out[locale]
    ]
    held, norms = _held_queries(snapshot)
    known = pl.col("query_id").is_in(held) | pl.col("norm").is_in(norms)
    queries = table(snapshot, "queries").filter(~known)
    asked = queries.select("locale", "query").unique().sort("locale", "query").iter_rows()
    kept += [Text(f"{locale} query", (query_text(query),)) for locale, query in asked]
    if not (kept and held_out):
        raise DataError(
            "the snapshot has no titles to pre-train on; ingest a catalogue first, or set "
            "llm.pretraining.steps to 0"
        )
    return Corpus(
        kept,
        _both_directions(snapshot, {*held, *norms}, held_out),
        {
            locale: [_title(locale, title) for title in titles]
            for locale, titles in held_out.items()
        },
    )


def _title(locale: str, title: str) -> Text:
    return Text(f"{locale} title", product_segments(ProductFields(title)))


def _held_out(locale: str, titles: pl.Series) -> list[str]:
    """Return the titles of least digest: the same ones however many others there are, mostly."""
    by_digest = sorted(titles.unique(), key=lambda t: text_digest("held-out", locale, t))
    return by_digest[: max(1, min(MOST_HELD_OUT, len(by_digest) // HELD_OUT))]


def _held_queries(snapshot: Path) -> tuple[list[str], list[str]]:
    """Return the queries that models are judged by, in any task: dev and gold (A10).

    Their identifiers, and their normalised texts: typed alike in another language it is the same.
    """
    judged = (table(snapshot, "pairs"), load_task_pairs(snapshot))
    pairs = pl.concat(p.select("query_id", "split") for p in judged)
    held = pairs.filter(pl.col("split") != "train")
    asked = table(snapshot, "queries").join(held, on="query_id", how="semi")
    return held["query_id"].unique().sort().to_list(), asked["norm"].unique().sort().to_list()


def _both_directions(
    snapshot: Path, judged: set[str], held_out: dict[str, list[str]]
) -> list[TranslationRows]:
    titles = {(locale, title) for locale, some in held_out.items() for title in some}

    def trains(kind: str, text: str, other: str, *locales: str) -> bool:
        both = [*zip(locales, (text, other), strict=True)]
        of_judged = ({query_id(*one), normalise(one[1])} & judged for one in both)
        if kind == "query" and any(of_judged):
            return False
        return not any(one in titles for one in both)

    rows = load_translations(snapshot, "train").select(DIRECTED)
    kept = [row for row in rows.unique().sort(pl.all()).iter_rows() if trains(*row)]
    if not kept:
        return []
    kinds, sources, targets, origins, into = zip(*kept, strict=True)
    return [
        TranslationRows(kinds, sources, targets, origins, into),
        TranslationRows(kinds, targets, sources, into, origins),
    ]
