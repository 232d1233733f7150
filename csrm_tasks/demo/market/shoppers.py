"""Simulated shoppers: what the old search engine shows, and what is clicked, carted and bought.

The engine ranks by shared letters, popularity and a little of what earlier shoppers chose; for a
nickname, about which letters say nothing, it has learnt from them which products are meant. That
is the only place where a nickname that no title has can be understood.

A result at position r is looked at with probability r^-0.8 (position bias); what is looked at is
clicked, carted and bought with the probabilities of :data:`RESPONSE`, more of it the more popular
the product is. Half of the sessions get a better ranker (bucket B).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from csrm_tasks.demo.market.queries import Query, QuerySet
from csrm_tasks.demo.market.search import LexicalIndex, Rows, Shelves
from csrm_tasks.demo.market.world import World, stream
from csrm_tasks.records import Grade

POSITION_BIAS = 0.8
SHOWN = (10, 16)  # results on a page, at least and at most
# Grade 0, 1, 2: click when looked at, cart when clicked, purchase when carted.
RESPONSE = np.array([[0.04, 0.22, 0.60], [0.08, 0.20, 0.45], [0.30, 0.45, 0.60]])
ACTIONS = ("click", "add_to_cart", "purchase")
BUCKETS = {"A": 0.15, "B": 0.40}  # how much the ranker knows of what is relevant


class Search(NamedTuple):
    """One search with its page; ``done[k]`` are the positions (from 0) that action k reached."""

    session: int
    query: int  # position in the query set
    bucket: str
    second: float  # after the session's start
    rows: tuple[int, ...]  # positions in the catalogue, in the order shown
    done: tuple[tuple[int, ...], ...]  # for each of ACTIONS


@dataclass(frozen=True)
class Candidates:
    """What the engine finds for one query; arrays (C,)."""

    rows: Rows
    score: NDArray[np.float64]  # letters, popularity, experience
    relevance: NDArray[np.float64]  # 0, 0.5, 1
    response: NDArray[np.float64]  # (3, C), RESPONSE of each row, adjusted for popularity


class Engine:
    """The shop's old search engine over one catalogue; what it finds is kept by query."""

    def __init__(self, world: World, queries: QuerySet) -> None:
        self.queries = queries.queries
        self.shop = world.catalogue(queries.locale)
        self.shelves = Shelves(world.lexicon, self.shop)
        self.index = LexicalIndex(self.shop)
        self.attraction = np.clip(self.shop.popularity**0.3, 0.5, 1.5)
        self.rng = stream(world.seed, "engine", queries.locale)
        self.kept: dict[int, Candidates] = {}

    def find(self, query: int) -> Candidates:
        """Return the candidates of a query."""
        if query not in self.kept:
            self.kept[query] = self._find(self.queries[query])
        return self.kept[query]

    def _find(self, query: Query) -> Candidates:
        lexical, points = self.index.top(query.text, 24)
        graded = self.shelves.graded(query)
        known = self._experience(query, graded)
        rows = np.union1d(lexical, known)
        if not len(rows):  # an old engine shows bestsellers rather than nothing
            rows = np.argsort(-self.shop.popularity)[: SHOWN[0]]
        letters = np.zeros(len(rows))
        if len(lexical):
            letters[np.searchsorted(rows, lexical)] = points / points.max()
        grade = np.zeros(len(rows), dtype=np.int64)
        for value, members in graded.items():
            grade[np.isin(rows, members)] = value
        score = letters + 0.15 * np.log(self.shop.popularity[rows])
        response = RESPONSE[:, grade]
        response[0] = np.clip(response[0] * self.attraction[rows], 0.0, 0.95)
        return Candidates(rows, score + 0.8 * np.isin(rows, known), grade / 2.0, response)

    def _experience(self, query: Query, graded: dict[Grade, Rows]) -> Rows:
        """Products that earlier shoppers chose: most of a nickname's, few of any other query's."""
        often = (8, 3) if query.kind == "nickname" else (2, 1)
        found = [
            self.rng.permutation(graded[grade])[:n]
            for grade, n in zip((Grade.EXACT, Grade.SUBSTITUTE), often, strict=True)
        ]
        return np.concatenate(found)


def simulate(
    engine: Engine, queries: QuerySet, sessions: int, rng: np.random.Generator
) -> list[Search]:
    """Return the searches of ``sessions`` sessions, in the order in which the sessions start."""
    per_session = 1 + rng.poisson(0.3, sessions)
    owner = np.repeat(np.arange(sessions), per_session)
    asked = rng.choice(len(queries.queries), size=len(owner), p=queries.popularity)
    buckets = np.where(rng.random(sessions) < 0.5, "A", "B")
    seconds = rng.uniform(5, 600, len(owner))
    return [
        _search(engine, session, query, str(buckets[session]), second, rng)
        for session, query, second in zip(
            owner.tolist(), asked.tolist(), seconds.tolist(), strict=True
        )
    ]


def _search(
    engine: Engine, session: int, query: int, bucket: str, second: float, rng: np.random.Generator
) -> Search:
    found = engine.find(query)
    n = min(len(found.rows), int(rng.integers(SHOWN[0], SHOWN[1] + 1)))
    noise = rng.normal(0.0, 0.25, len(found.rows))
    order = np.argsort(-(found.score + BUCKETS[bucket] * found.relevance + noise))[:n]
    looked = rng.random(n) < (1.0 + np.arange(n)) ** -POSITION_BIAS
    reached, u = looked, rng.random((3, n))
    done = []
    for chance, draw in zip(found.response[:, order], u, strict=True):
        reached = reached & (draw < chance)
        done.append(tuple(np.flatnonzero(reached).tolist()))
    return Search(session, query, bucket, second, tuple(found.rows[order].tolist()), tuple(done))
