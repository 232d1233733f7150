"""When an option is kept: limits that count training noise in, and on whom the burden lies (A41).

What dev can tell of a short training is little: two trainings of the same rows by other seeds
differ by about as much as most options bring. On whom the burden of proof lies is therefore said by
what is known beforehand::

    the answers are the same without it          dropped
    dev is worse with it                         dropped
    dev rules out that it brings the gain        dropped: it does not help
    dev rules out a loss by the margin           kept
    dev can tell neither: expected to help       kept
                          nobody knows           dropped

"Rules out" is by one-sided limits that err in at most :data:`ERROR` of cases. So an option that
brings the gain is dropped in at most that share of runs because it "does not help", whatever the
power, and the more dev queries and seeds there are, the surer one is dropped that brings less.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from csrm_tasks.evaluation.paired import Interval
from csrm_tasks.sections import Ablation

ERROR = 0.1  # of each limit, one-sided


@dataclass(frozen=True)
class Claim:
    """How one figure on dev differs with everything from without an option; shares."""

    measure: str
    value: float  # all seeds' answers taken together
    error: float  # its standard error by query, by a paired bootstrap
    by_seed: tuple[float, ...]

    @property
    def nothing(self) -> bool:
        """Whether the answers that count are the same, so that nothing varies."""
        return self.error == 0.0 and not any(self.by_seed)


@dataclass(frozen=True)
class Decision:
    """What dev says of one option; ``delta``: of its tasks' F1, with everything minus without."""

    option: str
    delta: Interval
    by_seed: tuple[float, ...]
    kept: bool
    reason: str
    hard: Interval | None = None  # likewise of the precision on wrong pairs that are near

    def as_json(self) -> dict[str, Any]:
        """Return what reports show."""
        return {
            "option": self.option, "delta": self.delta.as_json(), "by_seed": list(self.by_seed),
            "hard": None if self.hard is None else self.hard.as_json(), "kept": self.kept,
            "reason": self.reason,
        }  # fmt: skip


def training_noise(claims: Sequence[Claim]) -> tuple[float, int]:
    """Return by how much a difference varies from seed to seed, and of how many degrees of freedom.

    A standard deviation, pooled over all claims about each one's own mean: one option has too few
    seeds to tell. Claims of answers that are the same have no part in it.
    """
    told = [np.asarray(c.by_seed) for c in claims if not c.nothing]
    freedom = sum(len(seeds) - 1 for seeds in told)
    squares = sum(float(((seeds - seeds.mean()) ** 2).sum()) for seeds in told)
    return (float(np.sqrt(squares / freedom)) if freedom else 0.0), freedom


def limits(claim: Claim, noise: float, freedom: int) -> Interval:
    """Return the difference with a lower and an upper limit, each exceeded in ERROR of cases.

    The variance is that of resampled queries and that of other seeds; Student's t by Satterthwaite
    (1946), for the second is estimated from a few seeds.
    """
    from scipy.stats import norm, t

    seeds = noise**2 / len(claim.by_seed)
    variance = claim.error**2 + seeds
    if variance == 0.0 or claim.nothing:
        return Interval(claim.value, claim.value, claim.value)
    known = variance**2 * freedom / seeds**2 if seeds else np.inf
    quantile = t.ppf(1.0 - ERROR, known) if np.isfinite(known) else norm.ppf(1.0 - ERROR)
    wide = float(quantile * np.sqrt(variance))
    return Interval(claim.value, claim.value - wide, claim.value + wide)


def judged(
    delta: Interval, aim: Interval | None, what: str, expected: bool, rules: Ablation
) -> tuple[bool, str]:
    """Return whether an option is kept, and why.

    ``delta``: of the tasks' F1. ``aim``: of the measure that it is there for, called ``what``; None
    where dev holds none of its rows, so that it can only do harm there.
    """
    if delta.hi < 0:
        return False, "dev is worse with it than without it"
    if aim is not None and aim.hi < rules.gain:
        return False, f"dev rules out that it brings {rules.gain:g} of {what}: it does not help"
    if delta.lo > -rules.margin:
        return True, f"dev shows it to be no worse by {rules.margin:g} than doing without it"
    if expected:
        return True, (
            f"dev can neither rule out a loss of {max(0.0, -delta.lo):.3f} nor a gain of "
            f"{rules.gain:g}; kept, for others have measured that it helps"
        )
    return (
        False,
        f"dev does not rule out that it is worse by {rules.margin:g} than doing without it",
    )
