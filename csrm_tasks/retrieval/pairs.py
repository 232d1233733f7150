"""What the EBR learns from: weighted query-title pairs of each locale, by text and not by id.

Two products with one title, or two queries with one normalised text, are one row: a copy of the
positive can then never stand among the negatives.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from csrm_tasks.dataset.text import normalise
from csrm_tasks.errors import DataError

Rows = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class LocalePairs:
    """The pairs of one locale, sorted by title; rows point into :class:`TrainingPairs`' texts."""

    locale: str
    query: Rows  # (n,)
    title: Rows  # (n,)
    weight: npt.NDArray[np.float32]  # (n,) CVR or behaviour weight, in [0, 1]
    catalogue: Rows  # every distinct title row of the locale, sorted: the pool's source
    known: Rows  # sorted keys query · titles + title of all pairs

    def around(self, pairs: Rows, most: int, rng: np.random.Generator) -> Rows:
        """Return all pairs that share a title with ``pairs``, at random ``most`` of each title."""
        titles = np.unique(self.title[pairs])
        start = np.searchsorted(self.title, titles, "left")
        count = np.searchsorted(self.title, titles, "right") - start
        before = np.repeat(np.cumsum(count) - count, count)  # pairs of earlier titles
        place = np.arange(count.sum()) - before  # 0.. within its title
        found = np.repeat(start, count) + place
        shuffled = found[np.lexsort((rng.random(len(found)), self.title[found]))]
        kept: Rows = shuffled[place < most]
        return kept

    def is_pair(self, query: Rows, title: Rows, titles: int) -> Mask:
        """Return (B, P) bool: is title column p a known pair of query row b?"""
        keys = query[:, None] * titles + title[None, :]
        at = np.minimum(np.searchsorted(self.known, keys), len(self.known) - 1)
        found: Mask = self.known[at] == keys
        return found


@dataclass(frozen=True)
class TrainingPairs:
    """Distinct texts and the pairs between them."""

    queries: list[str]
    titles: list[str]
    locales: tuple[LocalePairs, ...]

    @property
    def count(self) -> int:
        """Return the number of pairs."""
        return sum(len(part.query) for part in self.locales)


def training_pairs(
    queries: pl.DataFrame,
    products: pl.DataFrame,
    scored: pl.DataFrame,
    behaviour: pl.DataFrame | None,
) -> TrainingPairs:
    """Join scored pseudo pairs (p1 = CVR, A22) and, for RQA*, local behaviour (A23).

    A pair known from both takes the larger of CVR and behaviour weight: a click that happened is
    not undone by a ranker's doubt. Pairs of a query or product that the snapshot lacks are left
    out. Raises :class:`DataError` when nothing is left.
    """
    evidence = [scored.select("query_id", "product_id", weight=pl.col("p1").cast(pl.Float64))]
    if behaviour is not None:
        acted = pl.col("clicks") + pl.col("carts") + pl.col("purchases") > 0
        evidence.append(behaviour.filter(acted).select("query_id", "product_id", "weight"))
    query_rows, query_texts = _distinct(queries, "query_id", "norm")
    title_rows, title_texts = _distinct(products, "product_id", "title")
    joined = (
        pl.concat(evidence)
        .join(query_rows.select("query_id", "locale", query="row"), on="query_id")
        .join(title_rows.select("product_id", "locale", title="row"), on=["product_id", "locale"])
        .group_by("locale", "query", "title")
        .agg(pl.col("weight").max())
        .sort("locale", "title", "query")
    )
    if joined.is_empty():
        raise DataError("no scored pair belongs to this snapshot's queries and products")
    parts = tuple(
        _locale(str(locale), group, title_rows, len(title_texts))
        for (locale,), group in joined.group_by(["locale"], maintain_order=True)
    )
    return TrainingPairs(query_texts, title_texts, parts)


def _distinct(frame: pl.DataFrame, key: str, text: str) -> tuple[pl.DataFrame, list[str]]:
    """Number the distinct (locale, normalised text)s; returns key, locale, row and the texts."""
    texts: dict[tuple[str, str], int] = {}
    pairs = zip(frame["locale"], map(normalise, frame[text]), strict=True)
    rows = [texts.setdefault(pair, len(texts)) for pair in pairs]
    numbered = frame.select(key, "locale").with_columns(pl.Series("row", rows, pl.Int64))
    return numbered, [t for _, t in texts]


def _locale(locale: str, group: pl.DataFrame, title_rows: pl.DataFrame, titles: int) -> LocalePairs:
    query, title = group["query"].to_numpy(), group["title"].to_numpy()
    own = title_rows.filter(pl.col("locale") == locale)["row"]
    return LocalePairs(
        locale,
        query,
        title,
        group["weight"].to_numpy().astype(np.float32),
        own.unique().sort().to_numpy(),
        np.sort(query * titles + title),
    )
