"""What the EBR learns from: weighted query-title pairs of each locale, by text and not by id.

Two products with one title, or two queries with one normalised text, are one row: a copy of the
positive can then never stand among the negatives.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import polars as pl

from csrm_tasks.errors import DataError
from csrm_tasks.text import normalise

Rows = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
Scores = npt.NDArray[np.float32]


@dataclass(frozen=True)
class LocalePairs:
    """The pairs of one locale, sorted by title; rows point into :class:`TrainingPairs`' texts."""

    locale: str
    query: Rows  # (n,)
    title: Rows  # (n,)
    weight: Scores  # (n,) CVR or behaviour weight, in [0, 1]
    catalogue: Rows  # every distinct title row of the locale, sorted: the pool's source
    known: Rows  # sorted keys query · titles + title of all pairs

    def around(self, pairs: Rows, most: int, rng: np.random.Generator) -> Rows:
        """Return all pairs that share a title with ``pairs``, at random ``most`` of each title."""
        return _some_of_each(self.title, self.title[pairs], most, rng)

    def lists(self, pairs: Rows, most: int, rng: np.random.Generator) -> Rows:
        """Return all pairs that share a query with ``pairs``, at random ``most`` of each query."""
        order = self._by_query
        return order[_some_of_each(self._query_sorted, self.query[pairs], most, rng)]

    def teacher(self, query: Rows, title: Rows, titles: int) -> Scores:
        """Return (Q, P): the weight of query row q with title row p, NaN where it is no pair."""
        keys = query[:, None] * titles + title[None, :]
        at = np.minimum(np.searchsorted(self.known, keys), len(self.known) - 1)
        weight = self._weight_by_query[at]
        weights: Scores = np.where(self.known[at] == keys, weight, np.float32("nan"))
        return weights

    def titles_of(self, query: int) -> Rows:
        """Return the title rows of all pairs of query row ``query``."""
        start, end = np.searchsorted(self._query_sorted, [query, query + 1])
        titles: Rows = self.title[self._by_query[start:end]]
        return titles

    @cached_property
    def _query_sorted(self) -> Rows:
        queries: Rows = self.query[self._by_query]
        return queries

    @cached_property
    def _by_query(self) -> Rows:
        """The pairs in the order of ``known``: by query, then title."""
        order: Rows = np.lexsort((self.title, self.query))
        return order

    @cached_property
    def _weight_by_query(self) -> Scores:
        weights: Scores = self.weight[self._by_query]
        return weights


def _some_of_each(keys: Rows, wanted: Rows, most: int, rng: np.random.Generator) -> Rows:
    """Return the places of ``wanted`` in the sorted ``keys``, at random ``most`` of each key."""
    wanted = np.unique(wanted)
    start = np.searchsorted(keys, wanted, "left")
    count = np.searchsorted(keys, wanted, "right") - start
    before = np.repeat(np.cumsum(count) - count, count)  # places of earlier keys
    place = np.arange(count.sum()) - before  # 0.. within its key
    rows = np.repeat(start, count) + place
    shuffled = rows[np.lexsort((rng.random(len(rows)), keys[rows]))]
    kept: Rows = shuffled[place < most]
    return kept


@dataclass(frozen=True)
class TrainingPairs:
    """Distinct texts and the pairs between them."""

    queries: list[str]
    titles: list[str]
    locales: tuple[LocalePairs, ...]
    mined: Rows | None = None  # (queries, n) hard negatives of each, -1 where there are fewer

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
