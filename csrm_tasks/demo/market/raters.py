"""Simulated raters: how human labels differ from the truth.

A rater replaces the true grade with probability ``error``, by the confusion below (a slip to the
neighbouring grade is likelier, and a substitute is taken for exact as often as for irrelevant).
Raters differ: each has its own multiple of the market's error rate.

======== ===== =====================================================================
crowd    error
======== ===== =====================================================================
source   8 %   an established market's raters
target   15 %  a new market's
expert   4 %   the eight who judge every gold pair, so that most pairs keep 7 of 8
======== ===== =====================================================================
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from csrm_tasks.records import Grade

# Row: true grade 0, 1, 2; column: what is said instead. Rows sum to 1.
CONFUSION = np.array([[0.0, 0.8, 0.2], [0.5, 0.0, 0.5], [0.15, 0.85, 0.0]])


@dataclass(frozen=True)
class Crowd:
    """A group of raters of one market."""

    name: str
    error: float  # mean share of wrong grades
    raters: int
    spread: float = 0.4  # standard deviation of log skill between raters

    def errors(self, rng: np.random.Generator) -> NDArray[np.float64]:
        """Return each rater's own error rate, (raters,), with mean ``error``."""
        skill = rng.lognormal(0.0, self.spread, self.raters)
        rates: NDArray[np.float64] = np.clip(self.error * skill / skill.mean(), 0.0, 0.6)
        return rates


SOURCE_CROWD = Crowd("ko-r", 0.08, 40)
TARGET_CROWD = Crowd("tw-r", 0.15, 20)
EXPERTS = Crowd("tw-x", 0.04, 8)


def rate(
    truth: NDArray[np.int64], error: NDArray[np.float64], rng: np.random.Generator
) -> NDArray[np.int64]:
    """Return what raters with the given error rates say; all arrays (N,)."""
    said = truth.copy()
    wrong = rng.random(len(truth)) < error
    u = rng.random(len(truth))
    below = CONFUSION.cumsum(axis=1)[truth]  # (N, 3)
    other = (u[:, None] >= below).sum(axis=1)
    said[wrong] = np.minimum(other, Grade.EXACT)[wrong]
    return said
