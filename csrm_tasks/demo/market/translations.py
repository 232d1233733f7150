"""Translation pairs of the four kinds (A7): every category and brand, some titles and queries.

A title is written twice with the same choices, as a translator would; nicknames are of one
language and are never translated.
"""

from __future__ import annotations

from typing import NamedTuple

from csrm_tasks.demo.market import compose
from csrm_tasks.demo.market.compose import CHOICES
from csrm_tasks.demo.market.lexicon import Lexicon
from csrm_tasks.demo.market.queries import Query, make_queries
from csrm_tasks.demo.market.world import SOURCE, World, draw_values, stream

TITLES, QUERIES = 1500, 400  # at the default size


class Translation(NamedTuple):
    """One pair; source is Korean, target Traditional Chinese."""

    kind: str
    source_text: str
    target_text: str


def make_translations(world: World) -> list[Translation]:
    """Return all pairs, without repetition, in a fixed order."""
    pairs = [
        *_categories(world.lexicon),
        *(Translation("brand", b.words.ko, b.words.zh) for b in world.lexicon.brands),
        *_titles(world, round(TITLES * world.size)),
        *_queries(world, round(QUERIES * world.size)),
    ]
    return list(dict.fromkeys(pairs))


def _categories(lexicon: Lexicon) -> list[Translation]:
    """Full paths, and the leaf's name alone."""
    return [
        Translation("category", words.ko, words.zh)
        for group in lexicon.groups
        for words in (group.path, group.words)
    ]


def _titles(world: World, n: int) -> list[Translation]:
    """Titles of products of the source catalogue's types and brands, written in both languages."""
    rng = stream(world.seed, "titles")
    rows = rng.integers(0, len(world.source.products), n).tolist()
    choices, extra = rng.random((n, CHOICES)).tolist(), rng.random((n, 3)).tolist()
    pairs = []
    for row, u, e in zip(rows, choices, extra, strict=True):
        known = world.source.products[row].spec
        spec = known._replace(values=draw_values(world.lexicon, known.type, e))
        u[0] = max(u[0], compose.SYNONYM)  # synonyms are not pairwise
        ko, zh = (compose.title(world.lexicon, spec, lang, u) for lang in ("ko", "zh"))
        pairs.append(Translation("title", ko, zh))
    return pairs


def _queries(world: World, n: int) -> list[Translation]:
    """Source queries that name a type, an attribute or a brand, rewritten in Chinese."""
    made = make_queries(world, SOURCE, round(1800 * world.size)).queries
    plain = [q for q in made if q.kind in ("type", "attribute", "brand")]
    chosen = stream(world.seed, "query pairs").permutation(len(plain))[:n]
    return [
        Translation("query", plain[i].text, _in_chinese(world.lexicon, plain[i])) for i in chosen
    ]


def _in_chinese(lexicon: Lexicon, query: Query) -> str:
    assert query.type is not None, "brand-only queries are not translated"
    name = "".join(lexicon.values[v].words.zh for v in query.values)
    name += lexicon.types[query.type].words.zh
    if query.brand is None:
        return name
    words = lexicon.brands[query.brand].words
    latin = query.text.startswith(words.en.lower())
    return f"{words.en.lower() if latin else words.zh} {name}"
