"""When seeds may be looked at, and how wide an interval is then: a group-sequential rule.

An effect of each seed is one value x_i, taken as normal with unknown mean and variance. Looked at
again and again with Student's 95 % interval, some look would miss the mean far oftener than in
5 % of studies. So the looks are said beforehand, and each gets a part of the 5 % (alpha spending,
Lan and DeMets 1983): the interval at look k is mean ± c_k · s / √n_k, and the c_k are chosen so
that all looks together miss the mean in at most :data:`SPENT` of all studies (repeated confidence
intervals, Jennison and Turnbull 1989). Such intervals hold whatever made somebody stop.

How the studentised means of all looks are distributed together depends on neither mean nor
variance, so the c_k are found by drawing it (:func:`limits`): exact for small n, but for the error
of :data:`DRAWS` draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np

from csrm_tasks.evaluation.paired import Interval

# Fixed before a seed of this study was trained: seeds looked at, and of the 5 % what is spent then.
SPENT = {4: 0.005, 7: 0.03, 14: 0.04, 28: 0.05}
LOOKS = tuple(SPENT)
DRAWS = 400_000


@cache
def limits() -> dict[int, float]:
    """Return c_k of each look: of how many standard errors its interval is, to either side."""
    rng = np.random.default_rng(0)
    total, squares, alive = np.zeros(DRAWS), np.zeros(DRAWS), np.ones(DRAWS, bool)
    found: dict[int, float] = {}
    seen, spent = 0, 0.0
    for n, until in SPENT.items():
        new = n - seen
        block = np.sqrt(new) * rng.standard_normal(DRAWS)  # the sum of the new values
        total += block
        squares += block**2 / new + rng.chisquare(new - 1, DRAWS)
        error = np.sqrt((squares - total**2 / n) / (n - 1) / n)
        apart = np.abs(total / n) / error
        missed = round((until - spent) * DRAWS)  # by this look first
        found[n] = float(np.sort(apart[alive])[-missed - 1])
        alive &= apart <= found[n]
        seen, spent = n, until
    return found


def look_at(seeds: int) -> int | None:
    """Return how many of so many seeds the newest look took in; None before the first."""
    return max((n for n in LOOKS if n <= seeds), default=None)


def level(look: int) -> float:
    """Return the two-sided error of Student's interval that is as wide as this look's.

    The interval by query is drawn at the same level.
    """
    from scipy.stats import t

    return float(2 * t.sf(limits()[look], look - 1))


def over_seeds(values: Sequence[float], look: int) -> Interval:
    """Return the mean of ``look`` independent values with the interval of that look."""
    found = np.asarray(values, np.float64)
    if len(found) != look:
        raise ValueError(f"a look at {look} seeds takes as many values, not {len(found)}")
    mean, half = float(found.mean()), limits()[look] * float(found.std(ddof=1)) / look**0.5
    return Interval(mean, mean - half, mean + half)
