"""Label budget: which judgements would decide the gate's open claims soonest.

An open claim says about how many more judged queries it needs, in the whole gold set or in a slice
(:func:`.checks.more_queries`): its paired interval shrinks with the root of their number. Queries
are therefore spent on one claim after another, the one that needs fewest first, each drawn at
random from the traffic of the claim's slice, so that a slice's figure stays that of the slice; a
query that is in other open slices counts there, too. To choose queries by how models differ on
them would decide sooner still, and wrongly. What is drawn is no gold query yet, and none that was
learnt from. Letters: C claims, K candidate queries.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np

from csrm_tasks.evaluation.slices import Mask


@dataclass(frozen=True)
class Open:
    """A claim that the gate left open."""

    name: str  # of the check
    where: str  # slice; "": all queries
    queries: int  # judged so far
    needed: int  # more


@dataclass(frozen=True)
class Spent:
    """What the budget does for one claim."""

    claim: Open
    chosen: int  # queries drawn for it
    inside: int  # queries of the budget that count for it, whichever claim they were drawn for

    @property
    def decided(self) -> bool:
        """Whether it gets as many as it needs."""
        return self.inside >= self.claim.needed

    @property
    def width(self) -> float:
        """Return its interval's expected width, as a share of today's."""
        return sqrt(self.claim.queries / (self.claim.queries + self.inside))


def spend(
    claims: Sequence[Open], inside: Mapping[str, Mask], costs: Sequence[int], budget: int, seed: int
) -> tuple[list[int], list[Spent]]:
    """Return which candidates to judge, in order, and what that does for each claim.

    ``inside``: of each slice which candidates are in it, (K,); ``costs`` (K,): judgements of each.
    Queries that no open claim needs are not drawn: less than ``budget`` may be spent.
    """
    count = len(costs)
    order = np.random.default_rng(seed).permutation(count)
    every = np.ones(count, bool)
    member = [inside.get(c.where, ~every) if c.where else every for c in claims]
    left = [c.needed for c in claims]
    drawn: list[int] = []
    chosen, free, judgements = [0] * len(claims), every.copy(), 0
    for at in sorted(range(len(claims)), key=lambda i: (claims[i].needed, claims[i].name)):
        for k in order[(member[at] & free)[order]].tolist():
            if left[at] <= 0 or judgements + costs[k] > budget:
                break
            free[k], judgements, chosen[at] = False, judgements + costs[k], chosen[at] + 1
            drawn.append(k)
            left = [n - int(m[k]) for n, m in zip(left, member, strict=True)]
    spent = [Spent(c, n, c.needed - rest) for c, n, rest in zip(claims, chosen, left, strict=True)]
    return drawn, spent


def open_claims(needed: Mapping[str, int], queries: Mapping[str, int]) -> list[Open]:
    """Return the claims that the gate left open; ``needed``: of its verdict, by check.

    ``queries``: judged ones by slice, "" for all. A claim about the towers is one about all.
    """
    found = []
    for name, more in needed.items():
        where = name.partition(" in ")[2]
        if where in queries:
            found.append(Open(name, where, queries[where], more))
    return found
