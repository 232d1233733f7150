"""Questions of the tasks with their true answers: which products and categories are asked about.

70 % of the pairs are right ones (:data:`RIGHT`), as in paper 2's competition. A wrong product is
*hard* (of the right type with another brand or value, of the same group, of the same maker) or
*easy* (any product that is none of these); a wrong category is hard where it lies beside the right
one. People who label for training mostly meet easy ones, and whoever measures wants to know about
hard ones.

As there, what is asked about is in English whatever the query's language: titles, brands, paths.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from csrm_tasks.blobs import text_digest
from csrm_tasks.demo.market import compose
from csrm_tasks.demo.market.labels import default_queries
from csrm_tasks.demo.market.lexicon import Lexicon
from csrm_tasks.demo.market.queries import Query, make_queries
from csrm_tasks.demo.market.search import LexicalIndex, Shelves
from csrm_tasks.demo.market.world import World, stream
from csrm_tasks.text import LEVEL_SEPARATOR, normalise, query_id

RIGHT = 0.7  # share of the pairs whose answer is yes
RIGHT_ITEMS = 4  # of a query at most
HARD_LEARNT, HARD_JUDGED = 0.1, 0.6  # share of the wrong answers that are hard, where there are any
HARD_POOLS = ("type", "group", "brand")


class Asked(NamedTuple):
    """One question and the truth."""

    task: str
    query_id: str
    query: str
    norm: str
    product_id: str  # of qc the digest of the path
    item: str
    yes: bool
    hard: bool  # a wrong one that is near


class Questions:
    """Draws the questions of one locale's queries; a query's own depend on seed and text alone."""

    def __init__(self, world: World, locale: str) -> None:
        self.world, self.locale = world, locale
        self._shop = world.catalogue(locale)
        self._shelves = Shelves(world.lexicon, self._shop)
        self._index = LexicalIndex(self._shop)
        made = make_queries(world, locale, default_queries(world)[locale]).queries
        self.queries = {query_id(locale, q.text): q for q in made}
        self.titles = english_titles(world, locale)

    def of(self, identifier: str, hard_share: float) -> Iterator[Asked]:
        """Yield a query's questions: products, then categories; wrong ones are hard or easy."""
        query = self.queries[identifier]
        rng = stream(self.world.seed, "curation", self.locale, query.text)
        for row, yes, hard in self._rows(query, hard_share, rng):
            product = self._shop.products[row]
            title = self.titles[product.product_id]
            yield self._asked("qi", identifier, product.product_id, title, yes, hard)
        for path, yes, hard in _paths(self.world.lexicon, query, hard_share, rng):
            name = text_digest("category", path)
            yield self._asked("qc", identifier, name, path, yes, hard)

    def _asked(
        self, task: str, identifier: str, product: str, item: str, yes: bool, hard: bool
    ) -> Asked:
        text = self.queries[identifier].text
        return Asked(task, identifier, text, normalise(text), product, item, yes, hard)

    def _rows(
        self, query: Query, hard: float, rng: np.random.Generator
    ) -> Iterator[tuple[int, bool, bool]]:
        pools = self._shelves.pools(query, self._index)
        exact = rng.permutation(pools["exact"])[:RIGHT_ITEMS].tolist()
        near = [rng.permutation(pools[name]).tolist() for name in HARD_POOLS]
        related = {int(r) for pool in pools.values() for r in pool}
        drawn = rng.integers(0, len(self._shop.products), 200).tolist()
        far = list(dict.fromkeys(r for r in drawn if r not in related))
        yield from ((int(row), True, False) for row in exact)
        for _ in range(_wrong(len(exact), rng)):
            full = [pool for pool in near if pool]
            if full and rng.random() < hard:
                yield full[int(rng.integers(len(full)))].pop(), False, True
            elif far:
                yield far.pop(), False, False


def english_titles(world: World, locale: str) -> dict[str, str]:
    """Return the English title of every product of ``locale``, by product_id."""
    shop = world.catalogue(locale).products
    choices = stream(world.seed, "english", locale).random((len(shop), compose.CHOICES)).tolist()
    return {
        product.product_id: compose.title(world.lexicon, product.spec, "en", u)
        for product, u in zip(shop, choices, strict=True)
    }


def _wrong(right: int, rng: np.random.Generator) -> int:
    """Return how many wrong pairs go with ``right`` right ones: by chance up or down."""
    return int(right * (1 - RIGHT) / RIGHT + rng.random())


def _paths(
    lexicon: Lexicon, query: Query, hard: float, rng: np.random.Generator
) -> Iterator[tuple[str, bool, bool]]:
    """Yield paths, of leaves and of their tops, with whether they are right and whether hard."""
    if query.type is None:
        groups = lexicon.brands[query.brand or 0].groups  # of which the first is asked about
    else:
        groups = (lexicon.types[query.type].group,)
    own = _levels(lexicon, groups[0])
    right = {name for g in groups for name in _levels(lexicon, g)}
    others = sorted({n for g in range(len(lexicon.groups)) for n in _levels(lexicon, g)} - right)
    near = [name for name in others if name.split(LEVEL_SEPARATOR)[0] == own[1]]
    far = [name for name in others if name not in near]
    yield from ((path, True, False) for path in own)
    for _ in range(_wrong(len(own), rng)):
        pool = near if near and rng.random() < hard else far
        yield pool.pop(int(rng.integers(len(pool)))), False, pool is near


def _levels(lexicon: Lexicon, group: int) -> tuple[str, str]:
    """Return the path of a leaf, and its top level alone."""
    path = lexicon.groups[group].path.en
    return path, path.split(LEVEL_SEPARATOR)[0]
