"""Titles of the positive's own class are no negatives, where the class holds no substitutes (A56).

Compass-Embedding v4 masks every in-batch negative of the positive's class as a likely false one. In
a shop a leaf category usually holds what answers a query beside what merely stands in for it, and
substitutes are just what a retriever must learn to keep apart. So a class is masked only where
people's labels say that it excludes them: of the judged train pairs of queries with an exact
product in the class, nearly all others of the class are exact as well. A title that was judged to
be something else for the very query stays a negative all the same.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, fields

import numpy as np
import polars as pl

from csrm_tasks.records import Grade
from csrm_tasks.retrieval.pairs import LocalePairs, Mask, Rows, TrainingPairs
from csrm_tasks.sections import SameClass
from csrm_tasks.text import normalised

log = logging.getLogger("csrm")

NONE = -1


@dataclass
class Counts:
    """Classes that have titles, those with evidence enough, those masked; and their titles."""

    classes: int = 0
    known: int = 0
    masked: int = 0
    titles: int = 0

    def __str__(self) -> str:
        """``classes 40, known 12, …``."""
        return ", ".join(f"{f.name} {getattr(self, f.name)}" for f in fields(self))


@dataclass(frozen=True)
class TitleClasses:
    """The classes whose titles may be masked; rows point into the training's texts."""

    of: Rows  # (titles,) the class of each title row, -1: none that may be
    spared: Rows  # sorted keys query · titles + title of judged pairs that are not exact

    def masked(self, queries: Rows, titles: Rows, query_of: Rows, title_of: Rows) -> Mask:
        """Return (B, P): is this title no negative of this pair, for its class's sake?

        ``queries`` (Q,) and ``titles`` (P,) rows of a step, ``query_of`` and ``title_of`` (B,)
        places of each pair in them. The pair's own title is not masked.
        """
        classes = self.of[titles]  # (P,)
        own = classes[title_of][:, None]  # (B, 1)
        keys = queries[:, None] * len(self.of) + titles[None, :]  # (Q, P)
        same: Mask = (
            (classes[None, :] == own) & (own != NONE) & ~np.isin(keys, self.spared)[query_of]
        )
        same[np.arange(len(title_of)), title_of] = False
        return same


def title_classes(
    data: TrainingPairs, products: pl.DataFrame, queries: pl.DataFrame, train: pl.DataFrame,
    config: SameClass,
) -> tuple[TitleClasses, Counts]:  # fmt: skip
    """Return what may be masked, and statistics; the same on every call.

    ``products`` and ``queries`` are the snapshot's, ``train`` its judged train pairs (never dev or
    gold). A class is a whole category path of a locale; a title whose products are in several, or
    in none, has no class.
    """
    counts = Counts()
    of: Rows = np.full(len(data.titles), NONE, np.int64)
    spared: list[Rows] = [np.zeros(0, np.int64)]
    for part in data.locales:
        goods = _titled(data, part, products)
        judged = train.filter(locale=part.locale).join(goods, on="product_id")
        kept = _without_substitutes(judged, config, counts)
        single = goods.group_by("row").agg(pl.col("category").unique())
        single = single.filter(pl.col("category").list.len() == 1).explode("category")
        numbered = single.join(kept, on="category").sort("row")
        of[numbered["row"].to_numpy()] = numbered["class"].to_numpy()
        counts.classes += goods.filter(pl.col("category") != "")["category"].n_unique()
        counts.titles += len(numbered)
        spared.append(_spared(data, part, queries, judged))
    log.info("classes: %s", counts)
    return TitleClasses(of, np.unique(np.concatenate(spared))), counts


def _titled(data: TrainingPairs, part: LocalePairs, products: pl.DataFrame) -> pl.DataFrame:
    """Return product_id, category and title ``row`` of a locale's products."""
    row_of = {data.titles[row]: row for row in part.catalogue.tolist()}
    own = products.filter(locale=part.locale)
    rows = [row_of[text] for text in normalised(own["title"])]
    return own.select("product_id", "category", pl.Series("row", rows, pl.Int64))


def _without_substitutes(judged: pl.DataFrame, config: SameClass, counts: Counts) -> pl.DataFrame:
    """Return category and number (``class``) of those that exclude substitutes.

    ``judged``: query_id, grade and category of train pairs. Of each query with an exact product in
    a class one such is the positive; the others are the evidence.
    """
    exact = (pl.col("grade") == int(Grade.EXACT)).sum()
    by_query = judged.filter(pl.col("category") != "").group_by("query_id", "category")
    seen = by_query.agg(n=pl.len(), exact=exact).filter(pl.col("exact") > 0)
    told = seen.group_by("category").agg(
        others=(pl.col("n") - 1).sum(), exact=(pl.col("exact").cast(pl.Int64) - 1).sum()
    )
    known = told.filter(pl.col("others") >= config.pairs)
    kept = known.filter(pl.col("exact") >= config.exact * pl.col("others")).sort("category")
    first = counts.masked  # numbers go on from locale to locale
    counts.known, counts.masked = counts.known + len(known), first + len(kept)
    return kept.select("category", pl.int_range(first, first + len(kept)).alias("class"))


def _spared(
    data: TrainingPairs, part: LocalePairs, queries: pl.DataFrame, judged: pl.DataFrame
) -> Rows:
    """Return the keys of pairs that people judged to be something else than exact."""
    rows = {data.queries[row]: row for row in np.unique(part.query).tolist()}
    norms = queries.filter(locale=part.locale).select("query_id", "norm")
    other = judged.filter(pl.col("grade") != int(Grade.EXACT)).join(norms, on="query_id")
    keys = [
        rows[norm] * len(data.titles) + row
        for norm, row in other.select("norm", "row").iter_rows() if norm in rows
    ]  # fmt: skip
    return np.array(keys, np.int64)
