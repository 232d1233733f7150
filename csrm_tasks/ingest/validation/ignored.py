"""What a log holds beside searches and what we sum up of them: counted, and neither kept nor wrong.

Rows of another application, events of an action that is none of ours, and searches without a text
(browsing). What was done after such a search is ignored too, so its identifier is remembered: it
goes to the lake as a search without a text.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from csrm_tasks.ingest.contract.contracts import OWN, Contract
from csrm_tasks.ingest.reading.records import FAULT
from csrm_tasks.sections import Ingest

FOLLOWS = "of an ignored search"
NAMED = 20  # different names that are counted apart; the rest is summed up
OTHERS = "…"
SHOWN = 60  # characters of a name
_PLACEHOLDER = "-"  # a search must have a text to be judged


@dataclass
class Notes:
    """Counts that a delivery's receipt tells: topic → name → rows."""

    counts: dict[str, Counter[str]] = field(default_factory=dict)

    def count(self, topic: str, name: str, rows: int) -> None:
        """Add to a count."""
        if rows:
            self.counts.setdefault(topic, Counter())[name] += rows

    def add(self, other: Mapping[str, Mapping[str, int]]) -> None:
        """Add what :meth:`as_json` gave."""
        for topic, counts in other.items():
            self.counts.setdefault(topic, Counter()).update(counts)

    def unread(self, names: pl.Series) -> None:
        """Count the columns that readers named as unreadable (joined by commas, or null)."""
        if names.null_count() < len(names):
            counted = names.drop_nulls().str.split(",").list.explode().value_counts()
            for name, rows in counted.iter_rows():
                self.count("unreadable", name, rows)

    def as_json(self) -> dict[str, dict[str, int]]:
        """Return the counts, most first; only so many names, for they come from outside."""
        return {topic: _most(counts) for topic, counts in sorted(self.counts.items())}


def _most(counts: Counter[str]) -> dict[str, int]:
    ranked = sorted(counts.items(), key=lambda item: (item[0] == OTHERS, -item[1], item[0]))
    found = dict(ranked[:NAMED])
    if rest := sum(rows for _, rows in ranked[NAMED:]):
        found[OTHERS] = found.get(OTHERS, 0) + rest
    return found


def followed(notes: Mapping[str, Mapping[str, int]] | None, more: int) -> dict[str, Any] | None:
    """Return a receipt's notes with so many more (or fewer) events of ignored searches."""
    found = Notes()
    found.add(notes or {})
    found.count("ignored", FOLLOWS, more)
    counts = found.counts.get("ignored", Counter())
    if counts.get(FOLLOWS) == 0:
        del counts[FOLLOWS]
    return {topic: names for topic, names in found.as_json().items() if names} or None


def apart(
    frame: pl.DataFrame, contract: Contract, terms: Ingest, notes: Notes
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Split trimmed rows into those that are judged and those that are ignored, with their why."""
    if contract.kind not in ("ubi_queries", "ubi_events"):
        return frame, frame.clear()
    tests = _tests(contract, terms)
    found = frame.select(pl.any_horizontal(t.fill_null(False) for t in tests.values()).alias("o"))
    other = found["o"]
    if not other.any():
        return frame, frame.clear()
    besides = frame.filter(other)
    whys = [pl.when(test).then(_named(name)) for name, test in tests.items()]
    why = besides.select(pl.coalesce(whys).alias("why"))["why"]
    for name, rows in why.value_counts(sort=True).iter_rows():
        notes.count("ignored", name, rows)
    return frame.filter(~other), besides


def _tests(contract: Contract, terms: Ingest) -> dict[str, pl.Expr]:
    """Return by column how to tell that a row is about something else."""
    found: dict[str, pl.Expr] = {}
    if terms.applications:  # null: it does not say
        found["application"] = ~pl.col("application").is_in([*terms.applications, OWN])
    if contract.kind == "ubi_events":
        action = next(c for c in contract.columns if c.name == "action_name")
        name = pl.col("action_name")
        other = ~name.str.to_lowercase().is_in(list(action.vocabulary or ()))
        found["action_name"] = other & ~name.str.contains("\0", literal=True)  # a broken row
    else:
        silent = pl.col("user_query").is_null() & pl.col("query_id").is_not_null()
        found["user_query"] = silent & pl.col(FAULT).is_null()
    return found


def _named(column: str) -> pl.Expr:
    if column == "user_query":
        return pl.lit("without user_query")
    shown = (
        pl.col(column).str.slice(0, SHOWN).str.replace_all(r"\p{C}", "\N{REPLACEMENT CHARACTER}")
    )
    return pl.format(f"{column} {{}}", shown)


def marked(besides: pl.DataFrame, contract: Contract) -> pl.DataFrame:
    """Return ignored searches as rows that are judged for what else they say."""
    if contract.kind != "ubi_queries":
        return besides.clear()
    hits = pl.lit(None, dtype=pl.List(pl.String)).alias("query_response_hit_ids")
    return besides.with_columns(pl.lit(_PLACEHOLDER).alias("user_query"), hits)


def without_text(clean: pl.DataFrame, besides: pl.DataFrame) -> pl.DataFrame:
    """Take the placeholders out of clean searches."""
    if besides.is_empty() or "user_query" not in clean.columns:
        return clean
    ignored = pl.col("row").is_in(besides["row"].implode())
    text = pl.when(ignored).then(pl.lit("")).otherwise("user_query")
    return clean.with_columns(text.alias("user_query"))
