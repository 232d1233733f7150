"""The gate (A46, A47): may the candidate replace the champion, on the evidence at hand?

A pure function of per-query counts and a policy. Every comparison is a paired bootstrap interval
of a difference; a claim holds when the whole interval supports it, is refuted when the whole
interval contradicts it, and is undecided otherwise. The candidate passes only if every claim
holds, so several claims need no correction of the level (intersection-union). The interval is
two-sided, hence a useless candidate wins with probability alpha/2 at most.

Gated: the LLM's micro-F1 in the policy's mode, and the towers' EM and defect F1 as non-inferior
(their thresholds maximise F1, A33; accuracy and the rest can be given floors).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

from csrm_tasks.errors import RefusedError
from csrm_tasks.evaluation.measures import MEASURES
from csrm_tasks.evaluation.metrics import Floats, Metric, micro_f1
from csrm_tasks.evaluation.paired import Interval, difference, resample
from csrm_tasks.sections import Gate

Outcome = Literal["PASS", "FAIL", "INCONCLUSIVE"]
NO_POLICY = "the market has no gate policy: add a `gate:` section to its file"
TOWER_MEASURES = ("em_f1", "defect_f1")


@dataclass(frozen=True)
class Evidence:
    """What is known of one release: confusions per query, the same queries for both sides."""

    release: str
    queries: tuple[str, ...]
    counts: Mapping[str, Floats]  # relevance (Q, 3, 3) of the LLM; em, defect (Q, 2, 2) of towers
    slices: Mapping[str, Floats] = field(default_factory=dict)  # name → relevance (Q, 3, 3)


@dataclass(frozen=True)
class Check:
    """One claim of the policy and what came of it."""

    name: str
    outcome: Outcome
    reason: str
    needed: int | None = None  # further judged queries that would about settle it


@dataclass(frozen=True)
class Verdict:
    """Outcome with every check that led to it."""

    outcome: Outcome
    checks: tuple[Check, ...]

    @property
    def reasons(self) -> list[str]:
        """Reasons of the checks that decided the outcome (all of them for a PASS)."""
        return [c.reason for c in self.checks if c.outcome == self.outcome]

    @property
    def needed(self) -> dict[str, int]:
        """About how many more judged queries each undecided check needs."""
        return {c.name: c.needed for c in self.checks if c.needed is not None}

    def as_json(self) -> dict[str, Any]:
        """Return outcome, reasons, needed and checks as plain JSON."""
        return {
            "outcome": self.outcome,
            "reasons": self.reasons,
            "needed": self.needed,
            "checks": [asdict(c) for c in self.checks],
        }


def combine(checks: list[Check]) -> Verdict:
    """FAIL if any check fails; else INCONCLUSIVE if any is, or if there is none; else PASS."""
    found = {c.outcome for c in checks}
    if "FAIL" in found:
        return Verdict("FAIL", tuple(checks))
    if "INCONCLUSIVE" in found or not checks:
        return Verdict("INCONCLUSIVE", tuple(checks))
    return Verdict("PASS", tuple(checks))


def decide(candidate: Evidence, champion: Evidence | None, policy: Gate | None) -> Verdict:
    """Judge ``candidate`` against ``champion`` (None: no release is live, so floors decide).

    Raises :class:`RefusedError` without a policy. Evidence that is missing, empty, not finite, too
    small or not of the same queries is INCONCLUSIVE, never PASS.
    """
    if policy is None:
        raise RefusedError(NO_POLICY)
    checks = [floor(candidate, name, least) for name, least in sorted(policy.floors.items())]
    if champion is None:
        if not policy.floors:
            reason = "no release is live and the policy has no floors: nothing to judge against"
            checks.append(Check("floors", "INCONCLUSIVE", reason))
        enough = _enough("micro_f1", candidate.counts.get("relevance"), policy.slice_min)
        return combine([*checks, enough] if enough else checks)
    checks += comparisons(candidate, champion, policy)
    return combine([*checks, *self_test(champion, policy)])


@dataclass(frozen=True)
class ColdStart:
    """What is known of a release before there is a gold set: how its LLM does on source dev."""

    stage: int
    source_dev_micro_f1: float | None


def decide_cold_start(
    candidate: ColdStart, champion: ColdStart | None, policy: Gate | None
) -> Verdict:
    """Judge a stage-1 release by a floor; it may only follow nothing or another stage-1 release.

    A live release that has been judged on target labels cannot be compared with one that has not.
    """
    if policy is None:
        raise RefusedError(NO_POLICY)
    value, least = candidate.source_dev_micro_f1, policy.cold_start_floor
    checks = [floor_value("micro_f1 on source dev", value, least)]
    if champion is not None and champion.stage != 1:
        reason = "the live release was trained on target labels: retrain instead of a cold start"
        checks.append(Check("champion", "INCONCLUSIVE", reason))
    elif champion is not None:
        before = champion.source_dev_micro_f1 or 0.0
        label = "micro_f1 on source dev, champion less margin"
        checks.append(floor_value(label, value, before - policy.margin))
    return combine(checks)


def comparisons(candidate: Evidence, champion: Evidence, policy: Gate) -> list[Check]:
    """Return the checks that set the two sides against each other."""
    if candidate.queries != champion.queries:
        reason = "candidate and champion were not judged on the same queries"
        return [Check("gold", "INCONCLUSIVE", reason)]
    strict = policy.mode == "superiority"
    measured = [(policy.metric, strict), *((m, False) for m in TOWER_MEASURES)]
    checks = []
    for name, superior in measured:
        family, metric = MEASURES[name]
        one, other = candidate.counts.get(family), champion.counts.get(family)
        margin = 0.0 if superior else policy.margin
        checks.append(compare(name, one, other, metric, margin, superior, policy))
    for name in policy.slices:
        one, other = candidate.slices.get(name), champion.slices.get(name)
        label = f"micro_f1 in {name}"
        checks.append(compare(label, one, other, micro_f1, policy.slice_margin, False, policy))
    return checks


def compare(
    name: str,
    one: Floats | None,
    other: Floats | None,
    metric: Metric,
    margin: float,
    superior: bool,
    policy: Gate,
) -> Check:
    """Check that ``one`` beats ``other`` (``superior``) or is not worse by ``margin`` or more."""
    problem = _unusable(name, one, other) or _enough(name, one, policy.slice_min)
    if problem is not None or one is None or other is None:
        return problem or Check(name, "INCONCLUSIVE", f"{name}: not measured")
    weights = resample(len(one))
    diff = difference(one, other, metric, weights, policy.alpha)
    if not math.isfinite(diff.lo):
        return Check(name, "INCONCLUSIVE", f"{name}: undefined on this gold set")
    claim = "better than" if superior else f"no worse by {margin:.3f} than"
    shown = f"{diff.value:+.3f} [{diff.lo:+.3f}, {diff.hi:+.3f}]"
    if diff.lo > -margin:
        return Check(name, "PASS", f"{name}: {claim} the champion, {shown}")
    if diff.hi < -margin:
        return Check(name, "FAIL", f"{name}: not {claim} the champion, {shown}")
    reason = f"{name}: not decided whether {claim} the champion, {shown}"
    if diff.lo == diff.hi:
        return Check(name, "INCONCLUSIVE", f"{reason}; the two answer alike")
    needed = more_queries(diff, -margin, len(one))
    return Check(name, "INCONCLUSIVE", f"{reason}; about {needed} more judged queries", needed)


def more_queries(diff: Interval, bound: float, queries: int) -> int:
    """Estimate how many more queries take ``bound`` out of an interval of positive width.

    The width shrinks with the root of the number of queries. A difference right at the bound can
    never be settled; the estimate is capped at 24 times what there is.
    """
    half = (diff.hi - diff.lo) / 2
    distance = max(abs(diff.value - bound), half / 5)
    return max(1, math.ceil(queries * ((half / distance) ** 2 - 1)))


def floor(evidence: Evidence, name: str, least: float) -> Check:
    """Check a hard floor of a point estimate."""
    label = f"floor {name}"
    if name not in MEASURES:
        known = ", ".join(MEASURES)
        return Check(label, "INCONCLUSIVE", f"{label}: no such measure (known: {known})")
    family, metric = MEASURES[name]
    found = evidence.counts.get(family)
    value = float(metric(found.sum(0))) if found is not None and len(found) else float("nan")
    return floor_value(label, value, least)


def floor_value(label: str, value: float | None, least: float) -> Check:
    """Check that a figure is there, finite and at least ``least``."""
    if value is None or not math.isfinite(value):
        return Check(label, "INCONCLUSIVE", f"{label}: not measured")
    if value < least:
        return Check(label, "FAIL", f"{label}: {value:.3f} is below {least:.3f}")
    return Check(label, "PASS", f"{label}: {value:.3f} is at least {least:.3f}")


def _unusable(name: str, one: Floats | None, other: Floats | None) -> Check | None:
    """Return why the two sides cannot be compared, or None."""
    sides = (("candidate", one), ("champion", other))
    for side, found in sides:
        if found is None or found.size == 0 or found.sum() == 0:
            return Check(name, "INCONCLUSIVE", f"{name}: the {side} was not measured")
        if not np.isfinite(found).all():
            return Check(name, "INCONCLUSIVE", f"{name}: the {side} has NaN or infinity")
    if one is not None and other is not None and not np.array_equal(one.sum(-1), other.sum(-1)):
        return Check(name, "INCONCLUSIVE", f"{name}: the two sides judged different pairs")
    return None


def _enough(name: str, counts: Floats | None, least: int) -> Check | None:
    """Return an INCONCLUSIVE check when fewer than ``least`` pairs were judged."""
    pairs = 0 if counts is None else int(np.nan_to_num(counts).sum())
    if counts is not None and pairs >= least:
        return None
    judged = 0 if counts is None else int((counts.sum((1, 2)) > 0).sum())
    needed = math.ceil((least - pairs) / (pairs / judged)) if pairs else least
    reason = f"{name}: {pairs} judged pairs, {least} are needed; about {needed} more judged queries"
    return Check(name, "INCONCLUSIVE", reason, needed)


def planted_regression(counts: Floats) -> Floats:
    """Turn every right answer of every second query wrong: a regression no gate may miss."""
    k = counts.shape[-1]
    planted = counts.copy()
    grade = np.arange(k)
    hits = planted[::2, grade, grade]
    planted[::2, grade, (grade + 1) % k] += hits
    planted[::2, grade, grade] = 0.0
    return planted


def self_test(champion: Evidence, policy: Gate) -> list[Check]:
    """Return a voiding check for each way in which this very gate misbehaves (A47)."""
    counts = champion.counts.get("relevance")
    if _unusable("self-test", counts, counts) or _enough("self-test", counts, policy.slice_min):
        return []  # the comparison itself is INCONCLUSIVE already
    assert counts is not None
    found = []
    same = compare("self-test", counts, counts, micro_f1, 0.0, True, policy)
    if same.outcome == "PASS":
        reason = "void: the champion won against itself"
        found.append(Check("self-test A/A", "INCONCLUSIVE", reason))
    superior = policy.mode == "superiority"
    margin = 0.0 if superior else policy.margin
    worse = planted_regression(counts)
    if compare("", worse, counts, micro_f1, margin, superior, policy).outcome != "FAIL":
        reason = "void: a planted regression was not caught"
        found.append(Check("self-test regression", "INCONCLUSIVE", reason))
    return found
