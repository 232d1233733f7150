"""Conversion adjusted by what was known of a session before its first search (CUPED, A59).

Deng, Xu, Kohavi and Walker 2013, "Improving the sensitivity of online controlled experiments by
utilizing pre-experiment data": θᵀ(x − x̄) is taken off each session's outcome. What was known before
cannot differ between the arms but by chance, so the difference stays unbiased, and what x explains
of the outcome's variance is gone. θ is one for both arms and all strata, fitted on all together
with the arms' difference taken out, which makes the adjusted difference the arm's coefficient in a
linear regression on stratum, arm and x. Sessions that are alike are one row with their number:
G rows, F covariates, S strata.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

import numpy as np
from numpy.typing import NDArray

from csrm_tasks.release.online.sequential import Difference, boundary, rho_for

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Groups:
    """Sessions by stratum (a day of one step), arm, outcome and what was known."""

    number: Floats  # (G,), sessions
    outcome: Floats  # (G,)
    treated: NDArray[np.bool_]  # (G,): answered by the judged release
    stratum: NDArray[np.int64]  # (G,)
    known: Floats  # (G, F)


def adjusted(groups: Groups, alpha: float, planned: float) -> Difference | None:
    """Return the always-valid adjusted difference; without covariates that of
    :func:`.sequential.difference`. None where no stratum has both arms.
    """
    found = _of_both_arms(groups)
    if not len(found.number):
        return None
    n, stratum, arm = found.number, found.stratum, found.treated.astype(np.float64)
    values = np.column_stack([found.outcome, found.known])  # (G, 1 + F)
    seen = np.bincount(stratum, n)  # (S,)
    arm_left = arm - (np.bincount(stratum, n * arm) / seen)[stratum]
    left = np.column_stack([
        v - (np.bincount(stratum, n * v) / seen)[stratum] for v in values.T
    ])  # fmt: skip
    total = float(n @ arm_left**2)  # Σ n₁n₀/(n₁+n₀), the effective sessions
    gaps = (n * arm_left) @ left / total  # (1 + F,): both arms' differences
    own = left - arm_left[:, None] * gaps
    root = np.sqrt(n)[:, None]
    theta = np.linalg.lstsq(root * own[:, 1:], (root * own)[:, 0], rcond=None)[0]
    rest = left[:, 0] - left[:, 1:] @ theta
    variances = np.bincount(stratum, n * rest**2) / (seen - 1)
    weights = np.bincount(stratum, n * arm_left**2)
    spread = float(weights @ variances) / total + 1 / float(seen.sum() + 2)
    value = float(gaps[0] - gaps[1:] @ theta)
    half = sqrt(spread) * boundary(total, rho_for(planned, alpha), alpha) / total
    return Difference(value, value - half, value + half)


def _of_both_arms(groups: Groups) -> Groups:
    """Return the rows of strata in which both arms have sessions; strata from 0."""
    strata = [set(groups.stratum[groups.treated == t].tolist()) for t in (True, False)]
    kept = np.isin(groups.stratum, sorted(strata[0] & strata[1]))
    numbered = np.unique(groups.stratum[kept], return_inverse=True)[1]
    return Groups(
        groups.number[kept], groups.outcome[kept], groups.treated[kept],
        np.asarray(numbered, np.int64), groups.known[kept],
    )  # fmt: skip
