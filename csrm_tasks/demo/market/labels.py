"""Judged pairs: which products are shown to raters for a query, and what the raters say.

A query's page is drawn as a search page is made up: right products, right type with a wrong brand
or value, other types of the group, products that share letters, the same brand's other products,
and a random one. Gold queries are judged by all experts on every pair; every other pair by one
rater. All pairs of a nickname are either gold or not, so that no gold nickname is explained by a
target label.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from csrm_tasks.demo.market.queries import Query, QuerySet
from csrm_tasks.demo.market.raters import EXPERTS, SOURCE_CROWD, TARGET_CROWD, Crowd, rate
from csrm_tasks.demo.market.search import LexicalIndex, Rows, Shelves
from csrm_tasks.demo.market.world import SOURCE, TARGET, World, stream

# Share of a page that comes from each pool. What an empty pool lacks is taken from the next one
# here: for want of a right product a page shows wrong ones. Pairs that share no letter are made up
# of substitutes and irrelevant ones in like parts, so that letters alone do not tell them apart.
PAGE = {
    "exact": 0.42,
    "lexical": 0.14,
    "brand": 0.05,
    "random": 0.06,
    "type": 0.13,
    "group": 0.20,
}
SOURCE_PAGE, TARGET_PAGE, GOLD_PAGE = 8, 6, 10  # pairs per query
GOLD_QUERIES = 300  # at the default size


@dataclass(frozen=True)
class Judgements:
    """Labels of one locale, one row per rater and pair, arrays (N,)."""

    locale: str
    query: Rows  # position in the query set
    product: Rows  # position in the catalogue
    truth: Rows
    grade: Rows
    rater: tuple[str, ...]
    gold: NDArray[np.bool_]


def draw_page(pools: dict[str, Rows], n: int, size: int, rng: np.random.Generator) -> list[int]:
    """Return at most ``n`` different rows (of ``size``), drawn as :data:`PAGE` says."""
    order = list(PAGE)
    left = {name: rng.permutation(pools.get(name, ())).tolist() for name in order}
    left["random"] = rng.integers(0, size, 4 * n).tolist()
    wanted = rng.choice(len(order), size=n, p=list(PAGE.values()))
    page: dict[int, None] = {}
    for start in wanted.tolist():
        turned = (left[order[(start + i) % len(order)]] for i in range(len(order)))
        pool = next(p for p in turned if p)
        page.setdefault(int(pool.pop()))
    return list(page)


def source_labels(world: World, queries: QuerySet) -> Judgements:
    """Judge a page of every query of a source, one rater a pair; each source has its own crowd."""
    name, crowd = "source", SOURCE_CROWD
    if queries.locale != SOURCE:
        name, crowd = f"source {queries.locale}", replace(crowd, name=f"{queries.locale[:2]}-r")
    return _judge(world, queries, range(len(queries.queries)), SOURCE_PAGE, crowd, name)


def gold_labels(world: World, queries: QuerySet) -> Judgements:
    """Judge queries of a language that is only judged in, as many as are gold in the target's."""
    order = stream(world.seed, "gold", queries.locale).permutation(len(queries.queries))
    chosen = order[: round(GOLD_QUERIES * world.size)].tolist()
    return _judge(world, queries, chosen, GOLD_PAGE, EXPERTS, f"gold {queries.locale}")


def target_labels(world: World, queries: QuerySet) -> tuple[Judgements, Judgements]:
    """Judge training and gold queries of the target locale; returns (train, gold)."""
    gold, train = split_gold(world, queries)
    return (
        _judge(world, queries, train, TARGET_PAGE, TARGET_CROWD, "target"),
        _judge(world, queries, gold, GOLD_PAGE, EXPERTS, "gold"),
    )


def split_gold(world: World, queries: QuerySet) -> tuple[list[int], list[int]]:
    """Return positions of gold queries and of training queries: 300 of each at the default size.

    Queries are taken at random; a nickname belongs to one side, whatever is asked with it.
    """
    rng = stream(world.seed, "split")
    order = rng.permutation(len(queries.queries)).tolist()
    side = rng.random(len(world.lexicon.nicknames)) < 0.5
    n = round(GOLD_QUERIES * world.size)
    gold: list[int] = []
    train: list[int] = []
    for i in order:
        nickname = queries.queries[i].nickname
        wants_gold = side[nickname] if nickname is not None else len(gold) <= len(train)
        chosen = gold if wants_gold else train
        if len(chosen) < n:
            chosen.append(i)
    return gold, train


def _judge(
    world: World, queries: QuerySet, chosen: range | list[int], n: int, crowd: Crowd, name: str
) -> Judgements:
    rng = stream(world.seed, "labels", name)
    shop = world.catalogue(queries.locale)
    shelves, index = Shelves(world.lexicon, shop), LexicalIndex(shop)
    pairs: list[tuple[int, int, int]] = []
    for q in chosen:
        query: Query = queries.queries[q]
        page = draw_page(shelves.pools(query, index), n, len(shop.products), rng)
        truth = shelves.grades(query, np.array(page, dtype=np.int64))
        pairs += zip([q] * len(page), page, truth.tolist(), strict=True)
    table = np.array(pairs, dtype=np.int64).reshape(-1, 3)
    gold = crowd is EXPERTS
    if gold:
        table = np.repeat(table, crowd.raters, axis=0)
        rater = np.tile(np.arange(crowd.raters), len(pairs))
    else:
        rater = rng.integers(0, crowd.raters, len(pairs))
    said = rate(table[:, 2], crowd.errors(rng)[rater], rng)
    names = tuple(f"{crowd.name}{r:02d}" for r in rater.tolist())
    shown = np.full(len(table), gold)
    return Judgements(queries.locale, table[:, 0], table[:, 1], table[:, 2], said, names, shown)


def default_queries(world: World) -> dict[str, int]:
    """Return how many distinct queries each locale has at the world's size."""
    counts = {SOURCE: round(1800 * world.size), TARGET: round(1000 * world.size)}
    return counts | dict.fromkeys(world.others, counts[TARGET])
