"""Translating queries, and deciding which translations may be learnt (A37)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from csrm_tasks.curation.translation.asked import Barred
from csrm_tasks.curation.translation.checks import Brands, likeness, numbers
from csrm_tasks.curation.translation.table import Table
from csrm_tasks.curation.translation.translators import Remembered
from csrm_tasks.records import Schema
from csrm_tasks.text import normalise

# Why a translation is dropped; "" where it is kept.
NOTHING = "nothing"  # the translator returned none
UNCHANGED = "unchanged"  # it is the query itself
NUMBER = "number"  # a number or its unit is lost, or there is another one
BRAND = "brand"  # the query's brand is lost
HELD_OUT = "held_out"  # it is a dev or gold query (A10)
ROUND_TRIP = "round_trip"  # translated back it is another query

DECIDED: Schema = {  # what became of each query that was asked, with the checks' values
    "query_id": pl.String,
    "locale": pl.String,
    "query": pl.String,
    "to_locale": pl.String,
    "text": pl.String,  # the translation, or the best of those that were dropped; "" when none
    "reason": pl.String,  # "" where it is kept
    "translator": pl.String,
    "numbers": pl.String,  # of the query, joined by spaces
    "brand": pl.String,  # that the translation names by the dictionary of to_locale, "" when none
    "back": pl.String,  # the text translated back, "" when it was not asked or gave none
    "likeness": pl.Float32,  # of query and back; 1 where the market's table says they are one
}


@dataclass(frozen=True)
class Judges:
    """What decides on a translation."""

    brands: Brands
    barred: Barred
    table: Table  # says which texts are translations of each other
    round_trip: float  # least likeness


@dataclass(frozen=True)
class Translators:
    """Who translates, there and back; often the same."""

    there: Remembered
    back: Remembered

    def memory(self) -> pl.DataFrame:
        """Return what both have answered, as MEMORY."""
        if self.there is self.back:
            return self.there.used()
        return pl.concat([self.there.used(), self.back.used()])

    @property
    def asked(self) -> int:
        """How many answers were not known before."""
        return self.there.asked + (0 if self.there is self.back else self.back.asked)


def translated(asked: pl.DataFrame, who: Translators, judges: Judges) -> pl.DataFrame:
    """Return DECIDED, a row for each of ``asked`` (ASKED), in its order."""
    parts = [pl.DataFrame(schema=DECIDED)]
    for (source, target), own in asked.group_by("locale", "to_locale", maintain_order=True):
        parts.append(_direction(own, str(source), str(target), who, judges))
    keys = ["query_id", "to_locale"]
    return (
        asked.select(keys)
        .join(pl.concat(parts), on=keys, maintain_order="left")
        .select(list(DECIDED))
    )


def _direction(
    own: pl.DataFrame, source: str, target: str, who: Translators, judges: Judges
) -> pl.DataFrame:
    """Translate queries from one language into another."""
    queries: list[str] = own["query"].to_list()
    found = who.there.translate(queries, source, target)
    chosen = _chosen(own, found, judges)
    texts, reasons = [text for text, _ in chosen], [reason for _, reason in chosen]
    left = [i for i, reason in enumerate(reasons) if not reason]
    returned = who.back.translate([texts[i] for i in left], target, source) if left else []
    backs, alike = [""] * len(texts), [0.0] * len(texts)
    for i, candidates in zip(left, returned, strict=True):
        backs[i], alike[i] = _back(queries[i], texts[i], candidates, (source, target), judges.table)
        if alike[i] < judges.round_trip:
            reasons[i] = ROUND_TRIP
    return own.select("query_id", "locale", "query", "to_locale").with_columns(
        pl.Series("text", texts, pl.String), pl.Series("reason", reasons, pl.String),
        pl.lit(who.there.identity).alias("translator"),
        pl.Series("numbers", [" ".join(numbers(q)) for q in queries], pl.String),
        pl.Series("brand", judges.brands.named(target, texts), pl.String),
        pl.Series("back", backs, pl.String), pl.Series("likeness", alike, pl.Float32),
    ).select(pl.col(c).cast(t) for c, t in DECIDED.items())  # fmt: skip


def _chosen(
    own: pl.DataFrame, found: Sequence[tuple[str, ...]], judges: Judges
) -> list[tuple[str, str]]:
    """Return of each query the first translation that keeps all, with ""; else the first, and why.

    So a beam that holds numbers and brand is preferred to a likelier one that does not.
    """
    rows = [
        (at, query, brand, text)
        for at, (query, brand) in enumerate(own.select("query", "brand").iter_rows())
        for text in found[at]
    ]
    held = judges.barred.hold([text for *_, text in rows])
    kept = _brand_kept([(brand, text) for _, _, brand, text in rows], judges.brands)
    chosen: dict[int, tuple[str, str]] = {}
    for (at, query, _, text), is_held, has_brand in zip(rows, held, kept, strict=True):
        why = _lost(query, text, has_brand) or (HELD_OUT if is_held else "")
        if at not in chosen or (chosen[at][1] and not why):
            chosen[at] = (text, why)
    return [chosen.get(at, ("", NOTHING)) for at in range(len(own))]


def _lost(query: str, text: str, has_brand: bool) -> str:
    if normalise(text) == normalise(query):
        return UNCHANGED
    if numbers(text) != numbers(query):
        return NUMBER
    return "" if has_brand else BRAND


def _brand_kept(rows: Sequence[tuple[str, str]], brands: Brands) -> list[bool]:
    """Say of each (brand, text) whether the text names the brand; one dictionary for each brand."""
    kept = [True] * len(rows)
    for brand in {brand for brand, _ in rows}:
        places = [i for i, (own, _) in enumerate(rows) if own == brand]
        answers = brands.keeps(brand, [rows[i][1] for i in places])
        for i, answer in zip(places, answers, strict=True):
            kept[i] = answer
    return kept


def _back(
    query: str, text: str, candidates: Sequence[str], direction: tuple[str, str], table: Table
) -> tuple[str, float]:
    """Return the translation back that is most like the query, and how like it is."""
    if table.knows(query, text, *direction):
        return query, 1.0
    alike = [(likeness(query, back), back) for back in candidates]
    best = max(alike, key=lambda one: one[0], default=(0.0, ""))
    return best[1], best[0]
