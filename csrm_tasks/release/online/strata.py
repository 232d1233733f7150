"""Audits by strata: which queries raters see, so that few of them say most (A58).

A query's ``size`` is how much a model expects it to add to the measures' errors. Strata are by
size; queries for which both releases show the same are one of their own, of which nothing is
judged. Numbers are Neyman's allocation (1934; by costs, Cochran 1977, section 5.5) from what audits
before varied, with a floor, so that a stratum that looked quiet is never left alone. Within a
stratum queries are drawn systematically from a random order, each with a probability in proportion
to its traffic and size (Madow 1949; Hartley and Rao 1962): fixed numbers and known probabilities,
by which the Horvitz–Thompson estimate divides. A model that is wrong makes it wider, never biased.
Letters: Q queries, H strata, n drawn.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
CLASSES = 3  # strata of queries whose pages differ


@dataclass(frozen=True)
class Population:
    """All queries that an audit speaks for."""

    searches: Ints  # (Q,), how often each was asked; above 0
    stratum: Ints  # (Q,), 0..H-1
    size: Floats | None = None  # (Q,), by which chances rise beside traffic; None: all alike

    @property
    def traffic(self) -> Floats:
        """Return each query's share of the searches, (Q,)."""
        return np.asarray(self.searches / self.searches.sum())

    @property
    def shares(self) -> Floats:
        """Return each stratum's share of the searches, (H,)."""
        return np.bincount(self.stratum, self.traffic).astype(np.float64)


@dataclass(frozen=True)
class Drawn:
    """What raters are given."""

    query: Ints  # (n,), positions in the population
    chance: Floats  # (n,): how probable it was that the query is drawn; 1: whatever chance says


def strata(traffic: Floats, size: Floats, classes: int = CLASSES) -> Ints:
    """Return strata: 0 where ``size`` is 0, else from 1, the largest first, with about equal sums
    of traffic times size, (Q,).
    """
    order = np.argsort(-size, kind="stable")
    mass = (traffic * size)[order]
    before = np.cumsum(mass) - mass
    found = np.empty(len(size), np.int64)
    found[order] = 1 + np.minimum(
        (classes * before / max(float(mass.sum()), 1e-300)).astype(np.int64), classes - 1
    )
    return np.where(size > 0, found, 0)


def allocate(
    number: float, shares: Floats, deviations: Floats, sizes: Ints, costs: Floats, floors: Ints
) -> Ints:
    """Return how many queries of each stratum are judged, (H,): in proportion to share times
    standard deviation over the root of the cost, at least ``floors`` (H,), at most all.

    ``number``: what all may cost together; ``costs``: judgements per query. What floors and small
    strata take is taken from the others in proportion. Rounded down, so the cost is never above
    ``number`` unless the floors are.
    """
    wanted = shares * deviations / np.sqrt(costs)
    wanted = np.where(wanted > 1e-9 * wanted.max(), wanted, 0.0)
    least = np.minimum(floors, sizes)
    fixed, given = np.zeros(len(shares), bool), least.astype(np.float64)
    while not fixed.all() and wanted[~fixed].sum() > 0:
        left = number - float(given[fixed] @ costs[fixed])
        scale = max(0.0, left) / float(wanted[~fixed] @ costs[~fixed])
        asked = np.where(fixed, given, wanted * scale)
        out = ~fixed & ((asked < least) | (asked > sizes))
        if not out.any():
            given = asked
            break
        # Floors first: they take from the others, whose sizes may then be no bound any more.
        low = out & (asked < least)
        chosen = low if low.any() else out
        given[chosen] = np.where(low, least, sizes)[chosen]
        fixed |= chosen
    return np.floor(given + 1e-9).astype(np.int64)


def draw(population: Population, numbers: Ints, rng: np.random.Generator) -> Drawn:
    """Draw ``numbers`` (H,) queries, without replacement."""
    mass = population.traffic * (1.0 if population.size is None else population.size)
    parts = [
        _systematic(np.flatnonzero(population.stratum == h), mass, n, rng)
        for h, n in enumerate(numbers.tolist())
    ]
    return Drawn(np.concatenate([q for q, _ in parts]), np.concatenate([c for _, c in parts]))


def _systematic(
    among: Ints, mass: Floats, number: int, rng: np.random.Generator
) -> tuple[Ints, Floats]:
    """Draw from one stratum; queries whose probability would reach 1 are taken, and left out."""
    rest, taken = rng.permutation(among), np.zeros(0, np.int64)
    while number > len(taken):
        chance = (number - len(taken)) * mass[rest] / mass[rest].sum()
        if len(rest) == 0 or not (chance >= 1).any():
            break
        taken, rest = np.concatenate([taken, rest[chance >= 1]]), rest[chance < 1]
    sure = np.ones(len(taken))
    left = number - len(taken)
    if left <= 0 or not len(rest):
        return taken, sure
    chance = left * mass[rest] / mass[rest].sum()
    marks = np.arange(left) + rng.random()
    at = np.minimum(np.searchsorted(np.cumsum(chance), marks, side="right"), len(rest) - 1)
    return np.concatenate([taken, rest[at]]), np.concatenate([sure, chance[at]])
