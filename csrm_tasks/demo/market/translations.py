"""Translation pairs of the four kinds (A7): every category and brand, some titles and queries.

A title is written twice with the same choices, as a translator would; nicknames are of one
language and are never translated.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from csrm_tasks.demo.market import compose
from csrm_tasks.demo.market.compose import CHOICES
from csrm_tasks.demo.market.labels import default_queries
from csrm_tasks.demo.market.lexicon import LANG_OF, Lang, Lexicon, Words
from csrm_tasks.demo.market.queries import Query, make_queries
from csrm_tasks.demo.market.world import SOURCE, TARGET, World, draw_values, stream

TITLES, QUERIES = 1500, 400  # at the default size


class Translation(NamedTuple):
    """One pair of texts."""

    kind: str
    source_text: str
    target_text: str


class Direction(NamedTuple):
    """From which locale into which."""

    origin: str
    into: str

    @property
    def langs(self) -> tuple[Lang, Lang]:
        """The two languages."""
        return LANG_OF[self.origin], LANG_OF[self.into]

    def stream(self, world: World, name: str) -> np.random.Generator:
        """Return a generator for one kind; that of the first two languages is named by it alone."""
        parts = () if self == DEFAULT else self
        return stream(world.seed, name, *parts)


DEFAULT = Direction(SOURCE, TARGET)


def make_translations(world: World, direction: Direction = DEFAULT) -> list[Translation]:
    """Return all pairs of a direction, without repetition, in a fixed order."""
    pairs = [
        *_named("category", _categories(world.lexicon), direction),
        *_named("brand", (b.words for b in world.lexicon.brands), direction),
        *_titles(world, direction, round(TITLES * world.size)),
        *_queries(world, direction, round(QUERIES * world.size)),
    ]
    return list(dict.fromkeys(pairs))


def _named(kind: str, words: Iterable[Words], direction: Direction) -> Iterator[Translation]:
    one, other = direction.langs
    return (Translation(kind, w.of(one), w.of(other)) for w in words)


def _categories(lexicon: Lexicon) -> Iterator[Words]:
    """Full paths, and the leaf's name alone."""
    return (words for group in lexicon.groups for words in (group.path, group.words))


def _titles(world: World, direction: Direction, n: int) -> list[Translation]:
    """Titles of products of the origin's types and brands, written in both languages."""
    rng, shop = direction.stream(world, "titles"), world.catalogue(direction.origin).products
    rows = rng.integers(0, len(shop), n).tolist()
    choices, extra = rng.random((n, CHOICES)).tolist(), rng.random((n, 3)).tolist()
    pairs = []
    for row, u, e in zip(rows, choices, extra, strict=True):
        known = shop[row].spec
        spec = known._replace(values=draw_values(world.lexicon, known.type, e))
        u[0] = max(u[0], compose.SYNONYM)  # synonyms are not pairwise
        one, other = (compose.title(world.lexicon, spec, x, u) for x in direction.langs)
        pairs.append(Translation("title", one, other))
    return pairs


def query_translations(world: World, direction: Direction) -> list[Translation]:
    """Return every query of the origin that names a type, an attribute or a brand, translated."""
    return _queries(world, direction, None)


def _queries(world: World, direction: Direction, n: int | None) -> list[Translation]:
    """Queries that name a type, an attribute or a brand, rewritten in the other language."""
    origin, into = direction.origin, direction.langs[1]
    made = make_queries(world, origin, default_queries(world)[origin]).queries
    plain = [q for q in made if q.kind in ("type", "attribute", "brand")]
    chosen = direction.stream(world, "query pairs").permutation(len(plain))[:n]
    return [
        Translation("query", plain[i].text, _rewritten(world.lexicon, plain[i], into))
        for i in chosen
    ]


def _rewritten(lexicon: Lexicon, query: Query, lang: Lang) -> str:
    assert query.type is not None, "brand-only queries are not translated"
    words = [*(lexicon.values[v].words for v in query.values), lexicon.types[query.type].words]
    name = ("" if lang == "zh" else " ").join(w.of(lang) for w in words)
    if query.brand is None:
        return name
    brand = lexicon.brands[query.brand].words
    latin = query.text.startswith(brand.en.lower())
    return f"{brand.en.lower() if latin else brand.of(lang)} {name}"
