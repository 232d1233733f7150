"""Semantic negatives: irrelevant pairs that nobody judged, for the relevance LLM (A38, A56).

Each train query gets up to ``per_query`` of three kinds, in the shares that the market sets:

- ``easy``: a random product of another category, which neither BM25 nor the EBR finds;
- ``ranked``: at ranks ``first`` to ``last`` of one channel, below what is often right;
- ``mined``: found by exactly one of three channels, BM25, EBR, and the categories of what people
  graded exact for the query.

A channel finds what it ranks above ``last``; the category channel finds every product of the
categories, of which a random ``last`` are candidates. No product qualifies that was judged for the
query's text or clicked for it, in whichever locale, that has or nearly has the title of such a one
that was right, or whose cosine is above 95 % of that of the query's best exact product. A dev or
gold query gets none, nor one of the same text in another locale (A10).

What is drawn depends on the seed and the query alone, not on other queries or the order of rows.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields

import numpy as np
import polars as pl

from csrm_tasks.blobs import text_digest
from csrm_tasks.dataset.splits import held_out_queries, uniform
from csrm_tasks.errors import ConfigError
from csrm_tasks.lexical.analyser import tokens
from csrm_tasks.records import NEGATIVES
from csrm_tasks.retrieval.near import Near
from csrm_tasks.retrieval.rqa import NEAR, jaccard
from csrm_tasks.sections import Negatives
from csrm_tasks.text import normalise, pair_id

POSITIVE = 0.95  # of the best exact product's cosine: what is nearer may be right (A38)
TRIES = 50  # random products looked at for an easy negative
Candidate = tuple[str, int | None, str]  # channel, rank, product id
Search = Callable[[Sequence[str], int], list[list[str]]]  # normalised queries, k → ids, best first


@dataclass
class Counts:
    """What became of the queries and of the candidates that were looked at."""

    queries: int = 0  # that got some or should have
    held_out: int = 0  # train queries whose text is a dev or gold one
    short: int = 0  # queries that got fewer than asked for
    known: int = 0  # candidates that were judged or clicked
    copies: int = 0  # with the title, or nearly, of one that was right or is taken
    near: int = 0  # too near, by the cosine of the best exact product

    def __str__(self) -> str:
        """``queries 40, short 2, …``."""
        return ", ".join(f"{f.name} {getattr(self, f.name)}" for f in fields(self))


@dataclass
class Said:
    """What is known of one query's text, in all locales together."""

    products: set[str] = field(default_factory=set)  # judged or clicked
    titles: set[str] = field(default_factory=set)  # theirs, normalised
    right: list[frozenset[str]] = field(default_factory=list)  # words of what was not irrelevant


def askable(queries: pl.DataFrame, pairs: pl.DataFrame, counts: Counts) -> pl.DataFrame:
    """Return the train queries that may get negatives, sorted by query_id (A10)."""
    train = queries.join(pairs.filter(split="train"), on="query_id", how="semi").sort("query_id")
    held_out = held_out_queries(queries, pairs)
    asked = train.join(held_out, on="query_id", how="anti", maintain_order="left")
    counts.held_out += train.height - asked.height
    return asked


def said_of(
    queries: pl.DataFrame, products: pl.DataFrame, pairs: pl.DataFrame, clicked: pl.DataFrame
) -> dict[str, Said]:
    """Return what people said and did of each normalised text.

    ``pairs``: the judged ones; ``clicked``: query_id, product_id, locale. A click counts as right.
    """
    keys = ["query_id", "product_id", "locale"]
    known = pl.concat([
        pairs.select(*keys, right=pl.col("grade") > 0), clicked.select(*keys, right=pl.lit(True))
    ])  # fmt: skip
    known = known.join(queries.select("query_id", "norm"), on="query_id")
    known = known.join(products, on=["product_id", "locale"], how="left")
    found: dict[str, Said] = defaultdict(Said)
    for norm, product, title, right in known.select(
        "norm", "product_id", "title", "right"
    ).iter_rows():
        said = found[norm]
        said.products.add(product)
        if title is not None:  # else the product is gone
            said.titles.add(normalise(title))
            if right:
                said.right.append(frozenset(tokens(title)))
    return found


class LocaleNegatives:
    """Draws the negatives of one locale's queries."""

    def __init__(
        self,
        tables: Mapping[str, pl.DataFrame],
        said: Mapping[str, Said],
        bm25: Search,
        near: Near,
        config: Negatives,
        seed: int,
    ) -> None:
        """``tables``: the locale's askable queries (the order of ``near``), products and pairs."""
        self._queries, self._said, self._near = tables["queries"], said, near
        self._config, self._seed = config, seed
        products = tables["products"].sort("product_id")
        self._ids: list[str] = products["product_id"].to_list()
        self._titles = dict(products.select("product_id", "title").iter_rows())
        self._category = dict(products.select("product_id", "category").iter_rows())
        self._members: dict[str, list[str]] = defaultdict(list)
        for product, category in self._category.items():
            self._members[category].append(product)
        self._judged = judged_products(tables["pairs"])
        norms = self._queries["norm"].to_list()
        self._hits = {"bm25": bm25(norms, config.last), "ebr": near.hits(config.last)}

    def draw(self, counts: Counts) -> Iterator[tuple[str, str, str, str, int | None]]:
        """Yield query_id, product_id, kind, channel and rank of every negative."""
        rows = self._queries.select("query_id", "norm").iter_rows()
        for place, (query, norm) in enumerate(rows):
            one = _One(self, place, query, self._said.get(norm, Said()), counts)
            taken = one.negatives(self._config, self._seed)
            counts.queries += 1
            counts.short += len(taken) < self._config.per_query
            for kind, (channel, rank, product) in taken:
                yield query, product, kind, channel, rank


def judged_products(pairs: pl.DataFrame) -> dict[str, dict[int, list[str]]]:
    """Return by query and grade the products that people judged."""
    found: dict[str, dict[int, list[str]]] = defaultdict(lambda: defaultdict(list))
    columns = pairs.select("query_id", "grade", "product_id").sort(pl.all())
    for query, grade, product in columns.iter_rows():
        found[query][grade].append(product)
    return found


class _One:
    """One query's candidates and what is taken of them."""

    def __init__(
        self, world: LocaleNegatives, place: int, query: str, said: Said, counts: Counts
    ) -> None:
        self._world, self._place, self._query = world, place, query
        self._said, self._counts = said, counts
        judged = world._judged.get(query, {})
        exact, partly = judged.get(2, []), judged.get(1, [])
        self._own = {c for p in exact if (c := world._category.get(p))}
        self._related = self._own | {c for p in partly if (c := world._category.get(p))}
        cosines = [c for p in exact if (c := world._near.cosine(place, p)) == c]
        self._limit = POSITIVE * max(cosines) if cosines else float("inf")
        self._found = {name: hits[place] for name, hits in world._hits.items()}
        self._taken: set[str] = set()
        self._taken_titles: list[frozenset[str]] = []

    def negatives(self, config: Negatives, seed: int) -> list[tuple[str, Candidate]]:
        """Return kind and candidate of each; a kind that runs out leaves its places empty."""
        streams = {
            kind: make(config, self._rng(seed, kind))
            for kind, make in (
                ("easy", self._easy), ("ranked", self._ranked), ("mined", self._mined)
            )
        }  # fmt: skip
        taken: list[tuple[str, Candidate]] = []
        for kind in kinds(config, uniform(seed, "negatives", self._query)):
            found = next((c for c in streams[kind] if self._take(c[2])), None)
            if found is not None:
                taken.append((kind, found))
        return taken

    def _rng(self, seed: int, kind: str) -> np.random.Generator:
        return np.random.default_rng(int(text_digest(str(seed), kind, self._query), 16))

    def _easy(self, config: Negatives, rng: np.random.Generator) -> Iterator[Candidate]:
        ids, found = self._world._ids, set().union(*self._found.values())
        for row in rng.integers(len(ids), size=TRIES * max(1, config.per_query)).tolist():
            category = self._world._category[ids[row]]
            if category and category not in self._related and ids[row] not in found:
                yield "random", None, ids[row]

    def _ranked(self, config: Negatives, rng: np.random.Generator) -> Iterator[Candidate]:
        hits = self._found[config.channel]
        ranks = np.arange(config.first, max(config.first, len(hits)))
        yield from ((config.channel, r, hits[r]) for r in rng.permutation(ranks).tolist())

    def _mined(self, config: Negatives, rng: np.random.Generator) -> Iterator[Candidate]:
        alone = [
            (channel, rank, product)
            for channel, hits in self._channels(config, rng)
            for rank, product in enumerate(hits)
            if self._channels_that_find(product) == 1
        ]
        yield from (alone[i] for i in rng.permutation(len(alone)).tolist())

    def _channels(
        self, config: Negatives, rng: np.random.Generator
    ) -> Iterator[tuple[str, list[str]]]:
        yield from self._found.items()
        members = [p for c in sorted(self._own) for p in self._world._members[c]]
        most = min(config.last, len(members))
        yield "category", [members[i] for i in rng.choice(len(members), most, replace=False)]

    def _channels_that_find(self, product: str) -> int:
        ranked = sum(product in hits for hits in self._found.values())
        return ranked + (self._world._category.get(product) in self._own)

    def _take(self, product: str) -> bool:
        """Take a product if it may be a negative; else count why not."""
        title = self._world._titles.get(product)
        if title is None or product in self._taken:  # gone, or there already
            return False
        words = frozenset(tokens(title))
        if product in self._said.products:
            self._counts.known += 1
        elif normalise(title) in self._said.titles or any(
            jaccard(words, other) >= NEAR for other in (*self._said.right, *self._taken_titles)
        ):
            self._counts.copies += 1
        elif self._world._near.cosine(self._place, product) > self._limit:
            self._counts.near += 1
        else:
            self._taken.add(product)
            self._taken_titles.append(words)
            return True
        return False


def kinds(config: Negatives, offset: float) -> list[str]:
    """Return the kind of each of a query's negatives: systematic sampling, ``offset`` in [0, 1).

    A query gets each kind's share within one, and all queries together get the shares.
    """
    places = (np.arange(config.per_query) + offset) / max(1, config.per_query)
    names = ("easy", "ranked", "mined")
    shares = [config.easy, config.ranked, config.mined]
    # the last kind that has a share takes what rounding leaves
    edges = np.cumsum(shares)[: max(i for i, share in enumerate(shares) if share > 0)]
    return [names[i] for i in np.searchsorted(edges, places, side="right")]


def as_table(rows: Sequence[tuple[str, str, str, str, int | None]], locale: str) -> pl.DataFrame:
    """Return what :meth:`LocaleNegatives.draw` yields as NEGATIVES, not asked of a model."""
    full = [
        (pair_id(query, product), query, product, locale, kind, channel, rank, None)
        for query, product, kind, channel, rank in rows
    ]
    return pl.DataFrame(full, NEGATIVES, orient="row")


def refuse_swamped(negatives: pl.DataFrame, train: pl.DataFrame, weight: float) -> None:
    """Raise :class:`ConfigError` where a locale's negatives outweigh its judged train pairs.

    Up to there no class and no language falls below half of the share that it has of judged pairs.
    """
    judged = dict(train.group_by("locale").len().iter_rows())
    for locale, added in sorted(negatives.group_by("locale").len().iter_rows()):
        if weight * added > judged.get(locale, 0):
            raise ConfigError(
                f"llm.negatives: {added} negatives of weight {weight:g} would swamp the "
                f"{judged.get(locale, 0)} judged train pairs of {locale} (their other grades, and "
                "other languages, would fall below half of their share); lower "
                "llm.negatives.per_query or llm.negatives.weight"
            )
