"""How many queries of which kind an audit of EM@1 and Defect@5 needs (A58).

From what a model expects of each query (:mod:`.expected`) and what audits before showed. Both only
decide how wide the intervals become: chances are known, whoever is wrong (:mod:`.strata`). The
numbers below were chosen by simulation on seeds that no figure is reported of (docs/ROLLOUT.md).
Letters: Q queries, H strata, n judged before.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from csrm_tasks.release.online.expected import MEASURES, Expected, Measure
from csrm_tasks.release.online.strata import Floats, Ints, Population, allocate, strata

IMPORTANCE: Mapping[Measure, float] = {"EM@1": 1.0, "Defect@5": 5.0}  # Defect@5 is the rarer
LEAST = 0.05  # of the mean chance to differ, added to that of every query that can
TRUST = 30  # judged queries that what is expected of a stratum counts as
FLOOR = 0.04  # of the judgements go to each stratum at least


@dataclass(frozen=True)
class Before:
    """Queries that people judged in audits before, (n,) each."""

    stratum: Ints
    size: Floats
    weight: Floats  # share of the traffic over the chance to be drawn
    people: Mapping[Measure, Floats]
    expected: Mapping[Measure, Expected]

    def squares(self, measure: Measure) -> Floats:
        """Return the squares of what the model leaves to people, its help taken as tuned."""
        people, theirs = self.people[measure], self.expected[measure].difference
        about = theirs - theirs.mean() if len(theirs) else theirs
        power = float(np.clip(people @ about / max(float(about @ about), 1e-12), 0, 1))
        return np.asarray((people - power * theirs) ** 2)


def by_strata(searches: Ints, cost: Ints, said: Mapping[Measure, Expected]) -> Population:
    """Return the queries with their sizes and strata; ``cost`` (Q,): judgements of each."""
    traffic = np.asarray(searches / searches.sum())
    size = _size(traffic, cost, said)
    return Population(searches, strata(traffic, size), size)


def _size(traffic: Floats, cost: Ints, said: Mapping[Measure, Expected]) -> Floats:
    """Return how much each query is expected to add to both measures' errors per judgement, (Q,).

    0: nothing can differ. A query that can counts ``LEAST`` of the mean, however sure the model is
    that it does not: so a model's errors are found, and no query's weight gets out of hand.
    """
    total = np.zeros(len(traffic))
    for measure, found in said.items():
        mean = float(traffic @ found.chance)
        can = found.chance > 0
        if mean > 0:
            least = LEAST * mean / float(traffic[can].sum())
            total += IMPORTANCE[measure] * np.where(can, found.chance + least, 0.0) / mean
    return np.asarray(np.sqrt(total / cost))


def numbers(
    population: Population, cost: Ints, said: Mapping[Measure, Expected], before: Before,
    judgements: float,
) -> Ints:  # fmt: skip
    """Return how many queries of each stratum are drawn, (H,), for about so many ``judgements``."""
    mass = population.traffic * _sizes(population)
    count = len(population.shares)
    every = np.maximum(np.bincount(population.stratum, mass, count), 1e-300)
    costs = np.maximum(np.bincount(population.stratum, mass * cost, count) / every, 1.0)
    inside = np.bincount(population.stratum, mass > 0, count)
    floors = np.where(inside > 0, np.maximum(2, FLOOR * judgements / costs).astype(np.int64), 0)
    spread = deviations(population, said, before) * (inside > 0)
    return allocate(judgements, population.shares, spread, inside.astype(np.int64), costs, floors)


def deviations(
    population: Population, said: Mapping[Measure, Expected], before: Before
) -> Floats:  # fmt: skip
    """Return the standard deviation, by stratum, of what a drawn query adds per share of it, (H,).

    What was seen of a stratum is drawn to what is expected, scaled to what was seen of all, as if
    ``TRUST`` queries had shown it: one in which nothing differed so far is not without variance.
    """
    traffic, size, count = population.traffic, _sizes(population), len(population.shares)
    per = np.divide(1.0, size, out=np.zeros(len(size)), where=size > 0)
    shares = np.maximum(population.shares, 1e-300)
    mean_size = np.bincount(population.stratum, traffic * size, count) / shares
    seen = np.bincount(before.stratum, minlength=count)[:count]
    weight = np.maximum(np.bincount(before.stratum, before.weight, count)[:count], 1e-300)
    together = np.zeros(count)
    for measure in MEASURES:
        squares, likely = before.squares(measure), before.expected[measure].chance
        mean = max(float(traffic @ said[measure].chance), 1e-12)
        # As if one more query had shown what was expected.
        one = float(before.weight.mean()) * mean if len(squares) else mean
        scale = (before.weight @ squares + one) / (before.weight @ likely + one)
        expected = np.bincount(population.stratum, traffic * said[measure].chance * per, count)
        shown = np.bincount(
            before.stratum, before.weight * squares / np.maximum(before.size, 1e-300), count
        )[:count]
        both = (seen * shown / weight + TRUST * scale * expected / shares) / (seen + TRUST)
        together += IMPORTANCE[measure] * both / (scale * mean)
    return np.asarray(np.sqrt(mean_size * together))


def _sizes(population: Population) -> Floats:
    if population.size is None:
        raise ValueError("a population without sizes is not drawn by strata")
    return population.size
