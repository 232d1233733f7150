"""A plain lexical search over one catalogue, by character bigrams, and the pools of a result page.

It stands for the shop's old search engine: it ranks what shoppers see, and it misleads as such
engines do. It is not the product's BM25 (:mod:`csrm_tasks.retrieval`).
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np
from numpy.typing import NDArray

from csrm_tasks.demo.market.compose import Spec
from csrm_tasks.demo.market.lexicon import Lexicon
from csrm_tasks.demo.market.queries import Query
from csrm_tasks.demo.market.world import Catalogue
from csrm_tasks.records import Grade
from csrm_tasks.text import normalise

Rows = NDArray[np.int64]  # positions in a catalogue


def bigrams(text: str) -> set[str]:
    """Return the character bigrams inside words; a word of one letter counts as itself."""
    words = normalise(text).split()
    return {w[i : i + 2] for w in words for i in range(max(1, len(w) - 1))}


class LexicalIndex:
    """Bigram posting lists with inverse document frequencies."""

    def __init__(self, catalogue: Catalogue) -> None:
        lists: dict[str, list[int]] = defaultdict(list)
        for row, product in enumerate(catalogue.products):
            for bigram in bigrams(product.title):
                lists[bigram].append(row)
        self.n = len(catalogue.products)
        self.postings = {b: np.array(rows, dtype=np.int64) for b, rows in lists.items()}

    def top(self, text: str, k: int) -> tuple[Rows, NDArray[np.float64]]:
        """Return at most ``k`` rows that share a bigram with ``text``, best first, and scores."""
        hits = [self.postings[b] for b in sorted(bigrams(text)) if b in self.postings]
        if not hits:
            return np.empty(0, dtype=np.int64), np.empty(0)
        weights = [np.full(len(h), np.log1p(self.n / len(h))) for h in hits]
        rows, where = np.unique(np.concatenate(hits), return_inverse=True)
        scores = np.bincount(where, np.concatenate(weights)).astype(np.float64)
        best = np.argsort(-scores, kind="stable")[:k]
        return rows[best], scores[best]


class Shelves:
    """The products of one catalogue by type, by group and by brand."""

    def __init__(self, lexicon: Lexicon, catalogue: Catalogue) -> None:
        self.lexicon, self.catalogue = lexicon, catalogue
        self.groups = np.array([t.group for t in lexicon.types], dtype=np.int64)[catalogue.types]
        self.by_group = _by(self.groups, len(lexicon.groups))
        self.by_brand = _by(catalogue.brands, len(lexicon.brands))

    def spec(self, row: int) -> Spec:
        """Return what the product at ``row`` is."""
        return self.catalogue.products[row].spec

    def graded(self, query: Query) -> dict[Grade, Rows]:
        """Return the rows that are exact and those that are substitutes; all others are neither."""
        rows = self._group(query)
        if query.type is None:
            rows = np.union1d(rows, self._brand(query))
        grades = self.grades(query, rows)
        return {g: rows[grades == g] for g in (Grade.EXACT, Grade.SUBSTITUTE)}

    def grades(self, query: Query, rows: Rows) -> Rows:
        """Return the true grade (:mod:`csrm_tasks.demo.market.grades`) of each of ``rows``."""
        shop, lexicon = self.catalogue, self.lexicon
        if query.type is None:
            exact = shop.brands[rows] == query.brand
            group = lexicon.brands[query.brand or 0].groups[0]
        else:
            exact = shop.types[rows] == query.type
            if query.brand is not None:
                exact &= shop.brands[rows] == query.brand
            for value in query.values:
                exact &= (shop.values[rows] == value).any(axis=1)
            group = lexicon.types[query.type].group
        near = self.groups[rows] == group
        return np.where(exact, Grade.EXACT, np.where(near, Grade.SUBSTITUTE, Grade.IRRELEVANT))

    def _group(self, query: Query) -> Rows:
        if query.type is not None:
            return self.by_group[self.lexicon.types[query.type].group]
        return self.by_group[self.lexicon.brands[query.brand or 0].groups[0]]

    def _brand(self, query: Query) -> Rows:
        return self.by_brand[query.brand] if query.brand is not None else np.empty(0, np.int64)

    def pools(self, query: Query, index: LexicalIndex) -> dict[str, Rows]:
        """Return the pools that a page of candidates is drawn from.

        exact; type (right type, a constraint unmet); group (another type of the group); lexical
        (shares letters, of another group: what misleads); brand (same maker, of another group).
        """
        graded = self.graded(query)
        substitutes = graded[Grade.SUBSTITUTE]
        same = self.catalogue.types[substitutes] == (-1 if query.type is None else query.type)
        relevant = np.concatenate([graded[Grade.EXACT], substitutes])
        return {
            "exact": graded[Grade.EXACT],
            "type": substitutes[same],
            "group": substitutes[~same],
            "lexical": np.setdiff1d(index.top(query.text, 40)[0], relevant, assume_unique=True),
            "brand": np.setdiff1d(self._brand(query), relevant),
        }


def _by(keys: Rows, n: int) -> list[Rows]:
    order = np.argsort(keys, kind="stable")
    return np.split(order, np.searchsorted(keys[order], np.arange(1, n)))
