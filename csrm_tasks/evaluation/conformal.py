"""Which grades a model cannot rule out: split-conformal sets, class by class (A60).

Vovk, Gammerman and Shafer 2005; class-conditional, Vovk 2012, "Conditional validity of inductive
conformal predictors". Of judged pairs that the model has not learnt (consensus pairs of dev), each
grade's pairs say how small the probability of the true grade gets. A new pair's set has every grade
whose probability is not smaller than that; for pairs drawn like those it holds the true grade with
a chance of 1 − alpha at least, for each grade by itself, whatever the model is worth. A pair whose
set is not one grade alone is not sure, and goes to review. Letters: N pairs, K grades.
"""

from __future__ import annotations

from math import ceil

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]


def limits(probabilities: Floats, grades: Ints, alpha: float) -> Floats:
    """Return how small each grade's probability (N, K) may be for it not to be ruled out, (K,).

    ``grades`` (N,): the true ones. One with fewer than 1/alpha − 1 pairs is never ruled out (0).
    """
    found = np.zeros(probabilities.shape[1])
    for grade in range(len(found)):
        own = np.sort(probabilities[grades == grade, grade])[::-1]
        place = ceil((len(own) + 1) * (1 - alpha) - 1e-9)  # from 1, the most probable first
        if place <= len(own):
            found[grade] = own[place - 1]
    return found


def sets(probabilities: Floats, least: Floats) -> Flags:
    """Return which grades are in each pair's set, (N, K); ``least``: :func:`limits`."""
    return np.asarray(probabilities >= least)


def unsure(found: Flags) -> Flags:
    """Return the pairs for review, (N,): more than one grade is left, or none."""
    return np.asarray(found.sum(axis=1) != 1)


def coverage(found: Flags, grades: Ints) -> Floats:
    """Return the share of each grade's pairs whose set has it, (K,); NaN for one without pairs."""
    held = found[np.arange(len(grades)), grades]
    each = [
        held[grades == g].mean() if (grades == g).any() else np.nan for g in range(found.shape[1])
    ]
    return np.asarray(each, np.float64)
