"""Looking every day without fooling oneself: confidence sequences of differences (A45).

A fixed-horizon test may be read once. A release under way is looked at every day and stopped when
it looks bad, so its intervals must hold at all times at once: the probability that *any* of them
misses the truth is at most alpha. All are built from one boundary, the normal mixture (Robbins
1970; Howard, Ramdas, McAuliffe and Sekhon 2021, "Time-uniform, nonparametric, nonasymptotic
confidence sequences", eq. 14): a sum S with variance V stays within

    |S| < sqrt( (V + rho) · log( (V + rho) / (rho · alpha²) ) )

for ever with probability 1 - alpha. Inverted it is the mixture sequential probability ratio test
(Johari, Koomen, Pekelis and Walsh 2017, "Peeking at A/B tests"). For conversions S is
asymptotically normal (Waudby-Smith et al. 2021, asymptotic confidence sequences); for paired
audits it holds exactly.

Sessions are independent; requests are not: one shopper's retries, or a pause of one process, fail
together. Their variance is therefore the greater of two: what independent requests would have, and
the squares that were seen, summed over quarters of an hour. With that maximum the boundary holds
for any martingale whose increments have the first as their variance (Delyon 2009; Howard et al.
2020, "Time-uniform Chernoff bounds", table 3), and with the squares alone for symmetric increments
of any variance (de la Peña 1999). Assumed: what happens in one quarter of an hour to one release
alone says nothing of the next.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import log, sqrt
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.int64]  # (K, 4), a row per stratum: treated, hits, control, hits


@dataclass(frozen=True)
class Stratum:
    """What both arms did in a time in which nothing else differed (a day of one step)."""

    treated: int  # sessions (requests) of the judged release
    treated_hits: int  # of these, converted (failed)
    control: int
    control_hits: int
    share: float  # of both arms' sessions that was assigned to the judged release


@dataclass(frozen=True)
class Difference:
    """Judged release minus control, with the bounds that hold now."""

    value: float
    lo: float
    hi: float

    def as_json(self) -> dict[str, float]:
        """Return the three numbers."""
        return asdict(self)


def rho_for(planned: float, alpha: float) -> float:
    """Return the rho that makes the boundary narrowest at variance ``planned`` (eq. 27 of Howard
    et al., by its usual approximation). Any choice made before the data is valid.
    """
    spread = 2 * log(1 / alpha)
    return planned / (spread + log(1 + spread))


def boundary(variance: float, rho: float, alpha: float) -> float:
    """Return the greatest |S| that chance explains at this or any other time."""
    return sqrt((variance + rho) * log((variance + rho) / (rho * alpha**2)))


def difference(strata: Sequence[Stratum], alpha: float, planned: float) -> Difference | None:
    """Return the always-valid difference of two shares of independent sessions.

    Compared within each stratum; strata weigh as in Cochran, Mantel and Haenszel, n₁n₀/(n₁+n₀), so
    that neither a day's level nor a change of the arms' shares can look like an effect.
    ``planned``: the sum of these weights at which the bounds are narrowest. None where no stratum
    has both arms.
    """
    rows = [(s.treated, s.treated_hits, s.control, s.control_hits) for s in strata]
    return _compared(np.array(rows, np.int64).reshape(-1, 4), alpha, planned)


def difference_in_bursts(
    counts: Counts, quarters: NDArray[np.int64], alpha: float, planned: float
) -> Difference | None:
    """Return the same for requests, which may fail, or be slow, many at once (see the module).

    ``counts``: (K, 4). ``quarters``: (K,), equal for strata of one quarter of an hour.
    """
    return _compared(counts, alpha, planned, quarters)


def _compared(
    counts: Counts, alpha: float, planned: float, quarters: NDArray[np.int64] | None = None
) -> Difference | None:
    both = (counts[:, 0] > 0) & (counts[:, 2] > 0)
    if not both.any():
        return None
    treated, hits, control, control_hits = counts[both].T.astype(np.float64)  # each (K,)
    seen = treated + control
    weights = treated * control / seen
    total = float(weights.sum())
    gaps = weights * (hits / treated - control_hits / control)  # S, by stratum
    value = float(gaps.sum()) / total
    # A stratum's variance given how many hits both arms had together (hypergeometric); one hit is
    # added to the whole, so that no hit at all does not look certain.
    share = (hits + control_hits) / seen
    variances = weights * share * (1 - share) * seen / (seen - 1)
    spread = float(variances.sum()) / total + 1 / float(seen.sum() + 2)
    effective = total
    if quarters is not None:
        together = np.bincount(np.unique(quarters[both], return_inverse=True)[1], gaps)
        effective = max(total, float(together @ together) / spread)
    # In units of the standard deviation, so that rho does not depend on the data.
    half = sqrt(spread) * boundary(effective, rho_for(planned, alpha), alpha) / total
    return Difference(value, value - half, value + half)


def paired(worse: int, better: int, pairs: int, alpha: float, planned: float) -> Difference | None:
    """Return the always-valid difference of two shares measured on the same queries.

    ``worse``, ``better``: queries in which only the judged release has the property, or only the
    control. Without a difference each of these is a fair coin, so the boundary holds exactly.
    ``planned``: their number at which the bounds are narrowest. None without pairs.
    """
    return weighed(worse - better, worse + better + 1, pairs, alpha, planned)


def weighed(
    total: float, variance: float, pairs: int, alpha: float, planned: float
) -> Difference | None:
    """Return the same of queries that don't count alike: ``total`` is Σ weight · difference.

    ``variance``: Σ (weight · difference)² and a judged query's mean weight², so that no difference
    at all does not look certain. Weights are settled before anybody judges. Without a difference
    each query's part is symmetric about 0, whatever its weight, so that the boundary holds exactly
    (de la Peña 1999). None without pairs.
    """
    if not pairs:
        return None
    half = boundary(variance, rho_for(planned, alpha), alpha) / pairs
    return Difference(total / pairs, total / pairs - half, total / pairs + half)


def mismatch(strata: Sequence[Stratum], alpha: float, planned: float) -> float | None:
    """Return the share of sessions that the judged release really got, where chance cannot explain
    how far it is from its assigned share; else None. A sample-ratio mismatch means that sessions
    are lost, or routed otherwise than the document says: nothing measured on them can be trusted.
    """
    sent = [s for s in strata if 0 < s.share < 1]
    seen = sum(s.treated for s in sent)
    expected = sum((s.treated + s.control) * s.share for s in sent)
    variance = sum((s.treated + s.control) * s.share * (1 - s.share) for s in sent)
    if abs(seen - expected) <= boundary(variance, rho_for(planned, alpha), alpha):
        return None
    return seen / sum(s.treated + s.control for s in sent)


def two_proportions(s: Stratum, alpha: float = 0.05) -> tuple[Difference, float]:
    """Return the fixed-horizon difference of two shares and its p-value, two-sided.

    Valid for one look at a size that was fixed before. Interval: Newcombe's hybrid of two Wilson
    scores (1998, method 10); test: the pooled z test. Both arms need sessions.
    """
    one, other = s.treated_hits / s.treated, s.control_hits / s.control
    lo1, hi1 = _wilson(s.treated_hits, s.treated, alpha)
    lo0, hi0 = _wilson(s.control_hits, s.control, alpha)
    lo = one - other - sqrt((one - lo1) ** 2 + (hi0 - other) ** 2)
    hi = one - other + sqrt((hi1 - one) ** 2 + (other - lo0) ** 2)
    pooled = (s.treated_hits + s.control_hits) / (s.treated + s.control)
    error = sqrt(pooled * (1 - pooled) * (1 / s.treated + 1 / s.control))
    p = 2 * NormalDist().cdf(-abs(one - other) / error) if error else 1.0
    return Difference(one - other, lo, hi), p


def _wilson(hits: int, n: int, alpha: float) -> tuple[float, float]:
    z = NormalDist().inv_cdf(1 - alpha / 2)
    middle = hits + z * z / 2
    half = z * sqrt(hits * (n - hits) / n + z * z / 4)
    return (middle - half) / (n + z * z), (middle + half) / (n + z * z)
