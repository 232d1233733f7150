"""Conversion adjusted by what was known of a session before its first search (CUPED, A59).

Deng, Xu, Kohavi and Walker 2013, "Improving the sensitivity of online controlled experiments by
utilizing pre-experiment data": θᵀ(x − x̄) is taken off each session's outcome. What was known before
cannot differ between the arms but by chance, so the difference stays unbiased, and what x explains
of the outcome's variance is gone. θ is one for both arms, fitted on both together with each arm
about its own mean, which makes the adjusted difference that of a linear regression on arm and x.
Letters: N sessions, F covariates.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from csrm_tasks.release.online.sequential import Difference, boundary, rho_for

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Adjusted:
    """The difference of both arms' means with what is known before taken off."""

    value: float  # judged release minus control
    variance: float  # of one effective session, n₁n₀/(n₁+n₀) of which make the difference
    sessions: float  # effective
    explained: float  # share of the outcomes' variance that the covariates took off

    def interval(self, alpha: float, planned: float) -> Difference:
        """Return the always-valid interval, narrowest at ``planned`` effective sessions."""
        bound = boundary(self.sessions, rho_for(planned, alpha), alpha)
        half = self.variance**0.5 * bound / self.sessions
        return Difference(self.value, self.value - half, self.value + half)


def adjusted(outcome: Floats, treated: NDArray[np.bool_], known: Floats) -> Adjusted | None:
    """Return the adjusted difference of outcomes (N,); None unless both arms have two sessions.

    ``treated`` (N,): answered by the judged release. ``known`` (N, F): from before each session's
    first search; a covariate that does not vary adds nothing.
    """
    counts = np.array([(~treated).sum(), treated.sum()])
    if counts.min() < 2:
        return None
    arm = treated.astype(np.int64)
    centred, means, shifts = np.empty_like(known), np.empty(2), np.empty((2, known.shape[1]))
    own = np.empty_like(outcome)
    for a in (0, 1):
        here = arm == a
        means[a], shifts[a] = outcome[here].mean(), known[here].mean(axis=0)
        own[here], centred[here] = outcome[here] - means[a], known[here] - shifts[a]
    theta = np.linalg.lstsq(centred, own, rcond=None)[0]  # also where x is collinear
    left = own - centred @ theta
    sessions = float(counts.prod() / counts.sum())
    freedom = max(1, len(outcome) - 2 - int(np.linalg.matrix_rank(centred)))
    before = float(own @ own)
    return Adjusted(
        float(means[1] - means[0] - (shifts[1] - shifts[0]) @ theta),
        float(left @ left) / freedom, sessions,
        1 - float(left @ left) / before if before else 0.0,
    )  # fmt: skip
