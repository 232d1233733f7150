"""What a gate's verdict is made of: one check per claim of the policy, and how they combine.

Two models are compared by the paired bootstrap interval of their difference: a claim holds when
the whole interval supports it, is refuted when the whole interval contradicts it, and is undecided
otherwise.

Many comparisons: a candidate passes only if *every* claim holds, and the chance that all of
several claims hold by luck is at most that of any one of them, so passing needs no correction
(intersection-union test; Berger, 1982). Failing is the other way round: any one slice refuses the
candidate, and among many slices one looks bad by luck. So slices are refuted by Holm's step-down
(1979), which keeps the chance of any false refusal among them at the level of one, whatever their
dependence (slices overlap). What Holm leaves undecided is INCONCLUSIVE, hence does not pass either.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from csrm_tasks.evaluation.metrics import Floats, Metric
from csrm_tasks.evaluation.paired import (
    Interval,
    holm,
    interval,
    paired_draws,
    percentile,
    resample,
)

Outcome = Literal["PASS", "FAIL", "INCONCLUSIVE"]


@dataclass(frozen=True)
class GateCheck:
    """One claim of the policy and what came of it."""

    name: str
    outcome: Outcome
    reason: str
    needed: int | None = None  # further judged queries that would about settle it


@dataclass(frozen=True)
class Verdict:
    """Outcome with every check that led to it."""

    outcome: Outcome
    checks: tuple[GateCheck, ...]
    notes: tuple[str, ...] = ()  # what the market is told besides; decides nothing

    @property
    def reasons(self) -> list[str]:
        """Reasons of the checks that decided the outcome (all of them for a PASS)."""
        return [c.reason for c in self.checks if c.outcome == self.outcome]

    @property
    def needed(self) -> dict[str, int]:
        """About how many more judged queries each undecided check needs."""
        return {c.name: c.needed for c in self.checks if c.needed is not None}

    def as_json(self) -> dict[str, Any]:
        """Return outcome, reasons, needed and checks as plain JSON; notes where there are some."""
        told = {"notes": list(self.notes)} if self.notes else {}
        return told | {
            "outcome": self.outcome,
            "reasons": self.reasons,
            "needed": self.needed,
            "checks": [vars(c) for c in self.checks],
        }


def combine(checks: list[GateCheck]) -> Verdict:
    """FAIL if any check fails; else INCONCLUSIVE if any is, or if there is none; else PASS."""
    outcomes = {c.outcome for c in checks}
    if "FAIL" in outcomes:
        return Verdict("FAIL", tuple(checks))
    if "INCONCLUSIVE" in outcomes or not checks:
        return Verdict("INCONCLUSIVE", tuple(checks))
    return Verdict("PASS", tuple(checks))


@dataclass(frozen=True)
class Claim:
    """That the candidate is better than its rival, or no worse by ``margin`` or more."""

    metric: Metric
    margin: float  # 0 where better is claimed
    superior: bool
    alpha: float  # of the two-sided interval
    least: int  # judged pairs below which nothing is claimed
    where: str = ""  # slice; "" is the whole gold set
    rival: str = "the champion"

    @property
    def words(self) -> str:
        """Return the claim as the report says it."""
        said = "better" if self.superior else f"no worse by {self.margin:.3f}"
        return f"{said} than {self.rival}"


@dataclass(frozen=True)
class Compared:
    """What the gold set says of a claim: the difference, and how sure it is that it is refuted."""

    name: str
    claim: Claim
    diff: Interval
    refuted: float  # one-sided bootstrap p-value of "the difference is above -margin"
    queries: int  # that the figure was judged on


def compare(
    name: str, claim: Claim, one: Floats | None, other: Floats | None
) -> Compared | GateCheck:
    """Set candidate ``one`` against champion ``other``, both (Q, K, K); a check is a problem."""
    problem = unusable(name, one, other, claim.rival.removeprefix("the ")) or enough(
        name, one, claim.least, claim.where
    )
    if problem is not None or one is None or other is None:
        return problem or GateCheck(name, "INCONCLUSIVE", f"{name}: not measured")
    value, draws = paired_draws(one, other, claim.metric, resample(len(one)))
    diff = percentile(value, draws, claim.alpha)
    if not math.isfinite(diff.lo):
        return GateCheck(name, "INCONCLUSIVE", f"{name}: undefined on this gold set")
    known = draws[np.isfinite(draws)]
    refuted = (1 + int((known >= -claim.margin).sum())) / (1 + len(known))
    return Compared(name, claim, diff, refuted, judged_queries(one))


def decided(results: Sequence[Compared | GateCheck]) -> list[GateCheck]:
    """Turn comparisons that stand together into checks, refuting by Holm's step-down."""
    measured = [c for c in results if isinstance(c, Compared)]
    adjusted = iter(holm([c.refuted for c in measured]))
    return [c if isinstance(c, GateCheck) else _decided(c, next(adjusted)) for c in results]


def _decided(c: Compared, refuted: float) -> GateCheck:
    shown = f"{c.diff.value:+.3f} {sureness(c.diff, c.queries, '+')}"
    said = f"{c.claim.words}, {shown}"
    if c.diff.lo > -c.claim.margin:
        return GateCheck(c.name, "PASS", f"{c.name}: {said}")
    if refuted <= c.claim.alpha / 2:
        return GateCheck(c.name, "FAIL", f"{c.name}: not {said}")
    reason = f"{c.name}: not decided whether {said}"
    if c.diff.lo == c.diff.hi:
        return GateCheck(c.name, "INCONCLUSIVE", f"{reason}; the two answer alike")
    needed = more_queries(c.diff, -c.claim.margin, c.queries)
    return GateCheck(c.name, "INCONCLUSIVE", f"{reason}; {_more(needed, c.claim.where)}", needed)


def sureness(found: Interval, queries: int, sign: str = "") -> str:
    """Return how sure a figure is: its interval, and over how many judged queries.

    ``sign``: "+" for a difference.
    """
    return f"[{found.lo:{sign}.3f}, {found.hi:{sign}.3f}] over {queries:,} queries"


def judged_sureness(table: Floats, metric: Metric, alpha: float) -> str:
    """Return how sure a figure of ``table`` (Q, K, K or Q, 2) is: see :func:`sureness`."""
    found = interval(table, metric, resample(len(table)), alpha)
    return f" {sureness(found, judged_queries(table))}"


def judged_queries(table: Floats) -> int:
    """Return how many of the queries of ``table`` (Q, K, K or Q, 2) have anything judged."""
    return int((table.sum(axis=tuple(range(1, table.ndim))) > 0).sum())


def more_queries(diff: Interval, bound: float, queries: int) -> int:
    """Estimate how many more queries take ``bound`` out of an interval of positive width.

    The width shrinks with the root of the number of queries. A difference right at the bound can
    never be settled; the estimate is capped at 24 times what there is.
    """
    half = (diff.hi - diff.lo) / 2
    distance = max(abs(diff.value - bound), half / 5)
    return max(1, math.ceil(queries * ((half / distance) ** 2 - 1)))


def _more(needed: int, where: str) -> str:
    return f"needs about {needed:,} more judged queries{f' in {where}' if where else ''}"


def floor_value(label: str, value: float | None, least: float, sure: str = "") -> GateCheck:
    """Check that a figure is there, finite and at least ``least``; ``sure``: see `sureness`."""
    if value is None or not math.isfinite(value) or not math.isfinite(least):
        return GateCheck(label, "INCONCLUSIVE", f"{label}: not measured")
    if value < least:
        return GateCheck(label, "FAIL", f"{label}: {value:.3f}{sure} is below {least:.3f}")
    return GateCheck(label, "PASS", f"{label}: {value:.3f}{sure} is at least {least:.3f}")


def unusable(
    name: str, one: Floats | None, other: Floats | None, peer: str = "champion"
) -> GateCheck | None:
    """Return why the two sides cannot be compared, or None."""
    for side, table in (("candidate", one), (peer, other)):
        if table is None or table.size == 0 or table.sum() == 0:
            return GateCheck(name, "INCONCLUSIVE", f"{name}: the {side} was not measured")
        if not np.isfinite(table).all():
            return GateCheck(name, "INCONCLUSIVE", f"{name}: the {side} has NaN or infinity")
    if one is not None and other is not None and not np.array_equal(_truth(one), _truth(other)):
        return GateCheck(name, "INCONCLUSIVE", f"{name}: the two sides judged different pairs")
    return None


def _truth(table: Floats) -> Floats:
    """Return what of a table does not depend on the answers: grades, or in (Q, 2) the queries."""
    return table[..., 1] if table.ndim == 2 else table.sum(-1)


def enough(name: str, counts: Floats | None, least: int, where: str = "") -> GateCheck | None:
    """Return an INCONCLUSIVE check when fewer than ``least`` pairs were judged."""
    pairs = 0 if counts is None else int(np.nan_to_num(counts).sum())
    if counts is not None and pairs >= least:
        return None
    judged = 0 if counts is None else judged_queries(counts)
    needed = math.ceil((least - pairs) / (pairs / judged)) if pairs else least
    reason = f"{name}: {pairs} judged pairs, {least} are needed; {_more(needed, where)}"
    return GateCheck(name, "INCONCLUSIVE", reason, needed)
