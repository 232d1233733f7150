"""Shoppers and raters of a simulated rollout: pages of graded results, and what comes of them.

A release is how likely each grade is at each rank. Both releases answer the same queries, so their
pages are drawn together: a result keeps its place with probability ``KEPT``. Shoppers look, click,
cart and buy as those of :mod:`csrm_tasks.demo.market.shoppers`. All pages are drawn once; a day's
counts are then binomial, which is the exact law of independent sessions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from csrm_tasks.demo.market.shoppers import POSITION_BIAS, RESPONSE
from csrm_tasks.release.online.sequential import Stratum

Floats = NDArray[np.float64]
RANKS = 10
KEPT = 0.7
EXACT = 0.55  # of the results that are not irrelevant
PAGES = 400_000  # drawn per world
DRIFT = 0.1  # a day's conversion is up to so much above or below, for both arms alike


@dataclass(frozen=True)
class World:
    """What the control and the judged release do to a session and to an audited query."""

    conversion: tuple[float, float]  # control, judged
    defect: tuple[float, float]  # Defect@5
    em: tuple[float, float]  # EM@1
    defect_moves: tuple[float, float]  # share of queries: only judged has a defect, only control
    em_moves: tuple[float, float]  # only control has an exact item first, only judged


def world(defects: float, exact: float, rng: np.random.Generator, base: float = 0.1) -> World:
    """Draw pages of a control with Defect@5 ``base`` and a release with ``defects`` times as much,
    whose results are exact ``exact`` times as often where they are not irrelevant.
    """
    drawn = rng.random((PAGES, RANKS))
    other = np.where(rng.random((PAGES, RANKS)) < KEPT, drawn, rng.random((PAGES, RANKS)))
    pages = [_grades(drawn, base, EXACT), _grades(other, base * defects, EXACT * exact)]
    bad = [(page[:, :5] == 0).any(axis=1) for page in pages]
    first = [page[:, 0] == 2 for page in pages]
    conversion = [_conversion(page) for page in pages]
    return World(
        (conversion[0], conversion[1]),
        (float(bad[0].mean()), float(bad[1].mean())),
        (float(first[0].mean()), float(first[1].mean())),
        (float((bad[1] & ~bad[0]).mean()), float((bad[0] & ~bad[1]).mean())),
        (float((first[0] & ~first[1]).mean()), float((first[1] & ~first[0]).mean())),
    )


def _grades(drawn: Floats, defect_at_5: float, exact: float) -> NDArray[np.int64]:
    """Turn uniform numbers (N, RANKS) into grades: low ones are irrelevant, high ones exact."""
    irrelevant = 1 - (1 - defect_at_5) ** (1 / 5)
    limits = np.array([irrelevant, 1 - (1 - irrelevant) * exact])
    return np.searchsorted(limits, drawn, side="right").astype(np.int64)


def _conversion(pages: NDArray[np.int64]) -> float:
    """Return the share of one-page sessions that buy anything."""
    looked = (1.0 + np.arange(RANKS)) ** -POSITION_BIAS
    buys = looked * RESPONSE.prod(axis=0)[pages]  # (N, RANKS)
    return float(1 - (1 - buys).prod(axis=1).mean())


def a_day(
    world: World, sessions: int, share: float, rng: np.random.Generator, routed: float | None = None
) -> Stratum:
    """Draw one day's sessions; ``routed``: the share that really reaches the judged release."""
    level = 1 + rng.uniform(-DRIFT, DRIFT)
    treated = int(rng.binomial(sessions, share if routed is None else routed))
    control, judged = (min(1.0, c * level) for c in world.conversion)
    hits = int(rng.binomial(treated, judged)), int(rng.binomial(sessions - treated, control))
    return Stratum(treated, hits[0], sessions - treated, hits[1], share)


def an_audit(world: World, queries: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Draw blind audits: EM@1 lost and won, Defect@5 new and gone."""
    lost, won, _ = rng.multinomial(queries, [*world.em_moves, 1 - sum(world.em_moves)])
    new, gone, _ = rng.multinomial(queries, [*world.defect_moves, 1 - sum(world.defect_moves)])
    return int(lost), int(won), int(new), int(gone)
