"""A snapshot's tables as the towers read them, for training, thresholds and scoring."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import polars as pl

from csrm_tasks.dataset.splits import held_out_queries
from csrm_tasks.dataset.tables import table
from csrm_tasks.records import SCORED, read_table
from csrm_tasks.towers.examples import (
    Examples,
    dev_pairs,
    hard_examples,
    soft_examples,
    with_texts,
)
from csrm_tasks.towers.serving.texts import with_product_text


@dataclass(frozen=True)
class TowerTables:
    """Tables of one snapshot, each read when it is first asked for."""

    snapshot: Path
    fields: Sequence[str]  # what the product tower reads after the title (A27)

    @cached_property
    def queries(self) -> pl.DataFrame:
        """Return the queries."""
        return table(self.snapshot, "queries")

    @cached_property
    def products(self) -> pl.DataFrame:
        """Return the products, with what the product tower reads as their title."""
        products = table(self.snapshot, "products")
        return with_product_text(products, self.fields)

    @cached_property
    def pairs(self) -> pl.DataFrame:
        """Return the judged pairs."""
        return table(self.snapshot, "pairs")

    def soft(self, scored: Path, seen: bool = False, among: pl.DataFrame | None = None) -> Examples:
        """Return the pairs that the teacher has scored, with its probabilities (A29).

        ``seen``: also those of gold queries, for a control. ``among``: only pairs of this frame
        (query_id, product_id, locale).
        """
        teacher = read_table(scored, SCORED)
        if among is not None:
            teacher = teacher.join(among, on=["query_id", "product_id", "locale"], how="semi")
        return soft_examples(teacher, self.queries, self.products, self.pairs, seen)

    def barred(self, seen: bool = False) -> set[str]:
        """Return the normalised texts that the towers learn nothing of (A10)."""
        held_out = held_out_queries(self.queries, self.pairs, seen)
        return set(self.queries.join(held_out, on="query_id", how="semi")["norm"])

    def hard(self) -> Examples:
        """Return the pairs that people have judged, with their grades (A32)."""
        return hard_examples(self.pairs, self.queries, self.products)

    def dev(self, locale: str | None) -> pl.DataFrame:
        """Return judged dev pairs with their texts: of ``locale`` (A33), or all of them."""
        if locale is None:
            return self.judged("dev")
        return self.texts(dev_pairs(self.pairs, locale))

    def judged(self, split: str) -> pl.DataFrame:
        """Return the judged pairs of a split, of all locales, with their texts."""
        return self.texts(self.pairs.filter(pl.col("split") == split))

    def texts(self, pairs: pl.DataFrame) -> pl.DataFrame:
        """Add ``query`` and ``title`` to ``pairs``; one whose product is gone is left out."""
        return with_texts(pairs, self.queries, self.products)
