"""Shoppers of the demo market before two rankers: by sessions apart, or in one interleaved list.

Rankers, shoppers and products are those of :mod:`csrm_tasks.demo.market.shoppers`: a ranker is how
much it knows of what is relevant, and half of the variance of a search's noise is its own. All
searches of a batch are drawn at once; N searches, C candidates of a query (padded), K shown.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from csrm_tasks.demo.market.generate import demo_world
from csrm_tasks.demo.market.queries import make_queries
from csrm_tasks.demo.market.shoppers import POSITION_BIAS, SHOWN, Engine
from csrm_tasks.demo.market.world import TARGET

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
SHOWS = SHOWN[0]  # results on a page
NOISE = 0.25  # standard deviation of a ranker's score in one search
PER_SESSION = 0.3  # searches beyond the first


@dataclass(frozen=True)
class Market:
    """All queries' candidates, padded to one number of them."""

    popularity: Floats  # (Q,)
    score: Floats  # (Q, C); padding: so low that it is never shown
    relevance: Floats  # (Q, C)
    response: Floats  # (3, Q, C): click when looked at, cart when clicked, purchase when carted


@dataclass(frozen=True)
class Sessions:
    """What each session came to, (S,)."""

    next: Ints  # clicks and carts on what the second ranker picked
    stable: Ints  # … the first ranker
    bought: NDArray[np.bool_]


def market(products: int, queries: int, seed: int) -> Market:
    """Return the demo's target market of that size."""
    world = demo_world(products, seed)
    asked = make_queries(world, TARGET, queries)
    engine = Engine(world, asked)
    found = [engine.find(q) for q in range(len(asked.queries))]
    width = max(SHOWS, *(len(f.rows) for f in found))
    shape = len(found), width
    score, relevance = np.full(shape, -1e9), np.zeros(shape)
    response = np.zeros((3, *shape))
    for q, f in enumerate(found):
        n = len(f.rows)
        score[q, :n], relevance[q, :n], response[:, q, :n] = f.score, f.relevance, f.response
    return Market(asked.popularity, score, relevance, response)


def interleaved(
    made: Market, knows: tuple[float, float], sessions: int, rng: np.random.Generator
) -> Sessions:
    """Draw sessions whose searches show both rankers' results in one list."""
    owner, query = _searches(made, sessions, rng)
    first, second = rankings(made, knows, query, rng)
    page, team = team_draft(first, second, rng.random((len(query), SHOWS)) < 0.5)
    done = _shop(made, query, page, rng)  # (3, N, K)
    credits_ = done[:2].sum(axis=0)
    given = [np.where(team == t, credits_, 0).sum(axis=1) for t in (1, 0)]
    sums = [np.bincount(owner, g, sessions).astype(np.int64) for g in given]
    return Sessions(sums[0], sums[1], np.bincount(owner, done[2].any(axis=1), sessions) > 0)


def conversion(
    made: Market, knows: tuple[float, float], sessions: int, rng: np.random.Generator
) -> tuple[float, float]:
    """Return the share of sessions that buy under each ranker alone, on the same searches."""
    owner, query = _searches(made, sessions, rng)
    shares = []
    draws = int(rng.integers(2**62))
    for ranking in rankings(made, knows, query, rng):
        page = np.argsort(ranking, axis=1)[:, :SHOWS]
        done = _shop(made, query, page, np.random.default_rng(draws))
        bought = np.bincount(owner, done[2].any(axis=1), sessions) > 0
        shares.append(float(bought.mean()))
    return shares[0], shares[1]


def _searches(made: Market, sessions: int, rng: np.random.Generator) -> tuple[Ints, Ints]:
    """Return session and query of every search."""
    owner = np.repeat(np.arange(sessions), 1 + rng.poisson(PER_SESSION, sessions))
    return owner, rng.choice(len(made.popularity), size=len(owner), p=made.popularity)


def rankings(
    made: Market, knows: tuple[float, float], query: Ints, rng: np.random.Generator
) -> tuple[Ints, Ints]:
    """Return each candidate's place (from 0) under both rankers, (N, C) each."""
    score, relevance = made.score[query], made.relevance[query]
    common = rng.normal(0.0, NOISE / np.sqrt(2), score.shape)
    places = []
    for known in knows:
        own = rng.normal(0.0, NOISE / np.sqrt(2), score.shape)
        order = np.argsort(-(score + known * relevance + common + own), axis=1)
        places.append(np.argsort(order, axis=1))
    return places[0], places[1]


def team_draft(first: Ints, second: Ints, flips: NDArray[np.bool_]) -> tuple[Ints, Ints]:
    """Interleave places (N, C) of two rankers up to K results, as
    :func:`csrm_tasks.release.interleaving.draft` does one search; ``flips`` (N, K): whether the
    second ranker picks first in a round.

    Returns candidates (N, K) and who picked them (N, K): 0, 1, or −1 for nobody.
    """
    n, shows = flips.shape
    rows = np.arange(n)
    tops = [np.argsort(p, axis=1)[:, :shows] for p in (first, second)]
    shared = np.logical_and.accumulate(tops[0] == tops[1], axis=1)
    prefix = shared.sum(axis=1)
    left = [p.astype(np.float64) for p in (first, second)]  # inf: in the list
    page, team = np.empty((n, shows), np.int64), np.empty((n, shows), np.int64)
    for place in range(shows):
        turn = place - prefix  # below 0: both begin with it
        flip = flips[rows, np.maximum(turn, 0) // 2]
        picks = np.where(turn % 2 == 0, flip, ~flip)
        best = np.where(picks[:, None], left[1], left[0]).argmin(axis=1)
        page[:, place], team[:, place] = best, np.where(turn < 0, -1, picks)
        for ranking in left:
            ranking[rows, best] = np.inf
    return page, team


def _shop(made: Market, query: Ints, page: Ints, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Return which results are clicked, carted and bought, (3, N, K)."""
    reached = rng.random(page.shape) < (1.0 + np.arange(page.shape[1])) ** -POSITION_BIAS
    done = []
    for chance in made.response:
        reached = reached & (rng.random(page.shape) < chance[query[:, None], page])
        done.append(reached)
    return np.stack(done)
