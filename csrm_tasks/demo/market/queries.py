"""What shoppers type: queries of seven kinds, each with what it truly asks for.

========= ===== ==================================================================
kind      share example (zh)
========= ===== ==================================================================
type      .14   湯麵
attribute .20   辣味湯麵
brand     .20   韓光燦 湯麵, hanbit 湯麵
brandonly .05   hanbit
nickname  .20   安城, 安城 辣味
misspelt  .10   辣湯味麵: a character dropped or swapped, in Korean also a jamo
synonym   .11   速食麵, 辣味速食麵
========= ===== ==================================================================

The shares are of *distinct* queries; popularity is Zipf (exponent 0.9), independent of the kind,
except that plain types and nicknames, which are what most shoppers say, sit nearer to the head. A
kind that a language has too little of (Korean nicknames) leaves its place to brand queries.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from csrm_tasks.demo.market.compose import pick
from csrm_tasks.demo.market.lexicon import LANG_OF, Lang, Lexicon
from csrm_tasks.demo.market.typos import misspell
from csrm_tasks.demo.market.world import Catalogue, World, stream
from csrm_tasks.text import normalise

SHARES = {
    "type": 0.14,
    "attribute": 0.20,
    "brand": 0.20,
    "brandonly": 0.05,
    "nickname": 0.20,
    "misspelt": 0.10,
    "synonym": 0.11,
}
HEAD = {"type": 3.0, "nickname": 3.0}  # how much sooner a kind comes in popularity


@dataclass(frozen=True, slots=True)
class Query:
    """A query and its meaning, by positions in the lexicon."""

    text: str
    kind: str
    type: int | None  # None: brand only
    brand: int | None = None
    values: tuple[int, ...] = ()
    nickname: int | None = None


@dataclass(frozen=True)
class QuerySet:
    """Distinct queries of one locale and the probability that a search is for each."""

    locale: str
    queries: tuple[Query, ...]
    popularity: NDArray[np.float64]  # (Q,), sums to 1


def make_queries(world: World, locale: str, n: int) -> QuerySet:
    """Return about ``n`` distinct queries; no two have the same normalised text."""
    catalogue = world.catalogue(locale)
    rng = stream(world.seed, "queries", locale)
    kinds = _sources(world.lexicon, catalogue, rng)
    found: dict[str, Query] = {}
    for kind, share in SHARES.items():
        _fill(found, kinds[kind], round(n * share))
    _fill(found, kinds["brand"], n - len(found))  # what a scarce kind left free
    queries = tuple(found.values())
    return QuerySet(locale, queries, _popularity(queries, rng))


def _fill(found: dict[str, Query], make: Callable[[], Query | None], wanted: int) -> None:
    """Draw until ``wanted`` new ones are found or the kind is used up (many draws in vain)."""
    before, misses = len(found), 0
    while len(found) - before < wanted and misses < 400:
        query = make()
        key = normalise(query.text) if query else ""
        misses += 1
        if query and key not in found:
            found[key] = query
            misses = 0


def _popularity(queries: tuple[Query, ...], rng: np.random.Generator) -> NDArray[np.float64]:
    late = rng.exponential(size=len(queries)) / [HEAD.get(q.kind, 1.0) for q in queries]
    rank = np.empty(len(queries))
    rank[np.argsort(late)] = np.arange(len(queries))
    weight = 1.0 / (rank + 5.0) ** 0.9
    popularity: NDArray[np.float64] = weight / weight.sum()
    return popularity


def _sources(
    lexicon: Lexicon, catalogue: Catalogue, rng: np.random.Generator
) -> dict[str, Callable[[], Query | None]]:
    """For each kind a function that draws one query about a product that the shop sells."""
    writer = QueryWriter(lexicon, LANG_OF[catalogue.locale], catalogue, _uniforms(rng))
    return {
        "type": writer.type,
        "attribute": writer.attribute,
        "brand": writer.brand,
        "brandonly": writer.brand_only,
        "nickname": writer.nickname,
        "misspelt": writer.misspelt,
        "synonym": writer.synonym,
    }


def _uniforms(rng: np.random.Generator) -> Iterator[float]:
    while True:
        yield from rng.random(4096).tolist()


class QueryWriter:
    """Draws queries of each kind from one stream of uniform numbers."""

    def __init__(
        self, lexicon: Lexicon, lang: Lang, catalogue: Catalogue, uniforms: Iterator[float]
    ) -> None:
        self.lexicon, self.lang, self.catalogue, self.u = lexicon, lang, catalogue, uniforms
        self.nicknames = [i for i, k in enumerate(lexicon.nicknames) if k.lang == lang]
        self._values_of = {i: self._sold_values(i) for i in self.nicknames}

    def _sold_values(self, nickname: int) -> list[int]:
        """The values that products of the nickname's brand and type come in."""
        known, shop = self.lexicon.nicknames[nickname], self.catalogue
        rows = np.flatnonzero((shop.types == known.type) & (shop.brands == known.brand))
        return sorted({v for row in rows for v in shop.products[row].spec.values})

    def _name(self, type_: int) -> str:
        return self.lexicon.types[type_].words.of(self.lang)

    def _value(self, value: int) -> str:
        return self.lexicon.values[value].words.of(self.lang)

    def _joined(self, *parts: str) -> str:
        """Shoppers put spaces between words; Chinese ones mostly do not."""
        space = self.lang != "zh" or next(self.u) < 0.3
        return (" " if space else "").join(parts)

    def type(self) -> Query:
        """A type's own name."""
        type_ = int(next(self.u) * len(self.lexicon.types))
        return Query(self._name(type_), "type", type_)

    def attribute(self) -> Query | None:
        """A value and a type, of a product that exists."""
        spec = pick(self.catalogue.products, next(self.u)).spec
        if not spec.values:
            return None
        value = pick(spec.values, next(self.u))
        text = self._joined(self._value(value), self._name(spec.type))
        return Query(text, "attribute", spec.type, values=(value,))

    def brand(self) -> Query:
        """A brand in either spelling and a type, of a product that exists."""
        spec = pick(self.catalogue.products, next(self.u)).spec
        words = self.lexicon.brands[spec.brand].words
        brand = words.en.lower() if next(self.u) < 0.4 else words.of(self.lang)
        text = f"{brand} {self._name(spec.type)}"
        return Query(text, "brand", spec.type, brand=spec.brand)

    def brand_only(self) -> Query:
        """A brand in either spelling."""
        brand = int(next(self.u) * len(self.lexicon.brands))
        words = self.lexicon.brands[brand].words
        text = words.en.lower() if next(self.u) < 0.4 else words.of(self.lang)
        return Query(text, "brandonly", None, brand=brand)

    def nickname(self) -> Query | None:
        """A nickname, alone or with a value its products come in."""
        if not self.nicknames:
            return None
        index = pick(self.nicknames, next(self.u))
        nickname = self.lexicon.nicknames[index]
        seen = self._values_of[index]
        text = nickname.text
        values: tuple[int, ...] = ()
        if seen and next(self.u) < 0.6:
            values = (pick(seen, next(self.u)),)
            text = f"{text} {self._value(values[0])}"
        return Query(text, "nickname", nickname.type, nickname.brand, values, index)

    def misspelt(self) -> Query | None:
        """A type, attribute or brand query with one slip."""
        draw = (self.type, self.attribute, self.brand)[int(next(self.u) * 3)]
        query = draw()
        text = misspell(query.text, self.lang, next(self.u), next(self.u)) if query else ""
        if query is None or text == query.text:
            return None
        return Query(text, "misspelt", query.type, query.brand, query.values)

    def synonym(self) -> Query | None:
        """A type by another name, sometimes with a value."""
        spec = pick(self.catalogue.products, next(self.u)).spec
        synonyms = self.lexicon.types[spec.type].synonyms(self.lang)
        if not synonyms:
            return None
        text, values = pick(synonyms, next(self.u)), spec.values[:1]
        if not values or next(self.u) < 0.4:
            return Query(text, "synonym", spec.type)
        text = self._joined(self._value(values[0]), text)
        return Query(text, "synonym", spec.type, values=values)
