"""Checks of a release under way: conversion, audits, failed requests, latency (p99).

A pure function of counts: each check is a success when a loss beyond the step's margin is ruled
out, a failure when the release is worse beyond doubt, inconclusive between the two, and an error
when it cannot be read. An error is never a failure: a broken measurement says nothing of a release.
All evidence of the rollout counts, not only this step's; the bounds allow for looking every day.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from csrm_tasks.release.online.cuped import Groups, adjusted
from csrm_tasks.release.online.preference import Preferences, preference
from csrm_tasks.release.online.sequential import (
    Difference,
    Stratum,
    difference,
    difference_in_bursts,
    mismatch,
    paired,
    weighed,
)
from csrm_tasks.release.online.served import Served
from csrm_tasks.release.rollout import Outcome
from csrm_tasks.sections import Rollout, Step

CHECKS = 5  # can fail by chance, and share alpha: conversion, EM@1, Defect@5, errors, latency;
# where a plan interleaves, the preference is the sixth
PLANNED = 1_000  # interleaved sessions with a preference at which its bounds are narrowest
MISMATCH_ALPHA = 0.001  # of calling a sound split broken; that asks a person, it rolls nothing back
SLOW_MARGIN = 0.01  # rise of the share of slow requests to be ruled out; slow is one in a hundred
MIN_TIMES = 1_000  # answered requests of each release below which there is no p99 to speak of
DISCORDANT = 0.2  # share of audited queries that are expected to differ; for rho only


@dataclass(frozen=True)
class Sums:
    """One measure of audits by strata, in queries: the judged release minus its control (A58)."""

    total: float  # Σ weight · difference; a query of a plain draw weighs 1
    squares: float  # Σ (weight · difference)²
    one: float  # a judged query's mean weight²

    def __add__(self, other: Sums) -> Sums:
        """Return the sums over both."""
        one = max(self.one, other.one)
        return Sums(self.total + other.total, self.squares + other.squares, one)


@dataclass(frozen=True)
class Audit:
    """Queries that raters judged under both releases, blind (A43)."""

    queries: int
    em_lost: int  # an exact item first under the control only
    em_won: int  # … under the judged release only
    defect_new: int  # an irrelevant item in the top five under the judged release only
    defect_gone: int
    # Of audits drawn by strata, whose queries don't count alike.
    em: Sums | None = field(default=None, kw_only=True)
    defect: Sums | None = field(default=None, kw_only=True)


@dataclass(frozen=True)
class OnlineEvidence:
    """Everything from the rollout's first day to the last published one."""

    sessions: tuple[Stratum, ...] = ()
    audit: Audit | None = None
    requests: Served | None = None
    teacher: Audit | None = None  # the same queries graded by an LLM: an estimate, shown only
    preferences: Preferences = field(default_factory=Preferences)  # of interleaved sessions
    known: Groups | None = None  # the sessions by what was known before, where the plan adjusts


@dataclass(frozen=True)
class OnlineCheck:
    """One measure's part of the judgement."""

    name: str
    outcome: Outcome
    text: str
    found: Difference | None = None

    def as_json(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self)


def evaluate_step(
    step: Step, plan: Rollout, evidence: OnlineEvidence
) -> tuple[Outcome, list[OnlineCheck]]:
    """Judge a release at ``step``; returns the outcome and every check it follows from."""
    alpha = share_of_alpha(plan)
    checks = [
        *_traffic(step, plan, evidence, alpha),
        *_preference(step, evidence.preferences, alpha),
        *_audits(step, plan, evidence.audit, alpha),
        *_serving(plan, evidence, alpha),
    ]
    outcomes = {check.outcome for check in checks}
    order: tuple[Outcome, ...] = ("FAILURE", "ERROR", "INCONCLUSIVE")
    return next((o for o in order if o in outcomes), "SUCCESS"), checks


def share_of_alpha(plan: Rollout) -> float:
    """Return the level of each two-sided interval: only one side of each can fail."""
    return 2 * plan.alpha / (CHECKS + any(step.interleave for step in plan.steps))


def _preference(step: Step, found: Preferences, alpha: float) -> list[OnlineCheck]:
    if not found.sessions:
        text = "no interleaved session with a click or cart was logged"
        return [OnlineCheck("interleaved", "ERROR", text)] if step.interleave else []
    few = bool(step.interleave) and found.sessions < step.sessions
    text = f"{found.sessions} interleaved sessions with a preference"
    return [
        OnlineCheck("interleaved", "INCONCLUSIVE" if few else "SUCCESS", text),
        _bounded(
            "preference", preference(found, alpha, PLANNED), step.preference_margin,
            rising_is_bad=False,
        ),
    ]  # fmt: skip


def _traffic(
    step: Step, plan: Rollout, evidence: OnlineEvidence, alpha: float
) -> list[OnlineCheck]:
    if not step.weight:
        return []  # shadow: nobody is answered by it
    strata = evidence.sessions
    seen = sum(s.treated for s in strata)
    if not seen or not sum(s.control for s in strata):
        return [
            OnlineCheck("sessions", "ERROR", "no session of one of the two releases was logged")
        ]
    sent = mismatch(strata, MISMATCH_ALPHA, plan.planned_sessions)
    if sent is not None:  # conversion is not even looked at
        text = f"{sent:.2%} of the sessions got it, which its share does not explain"
        return [OnlineCheck("split", "ERROR", text)]
    few = seen < step.sessions
    enough = OnlineCheck("sessions", "INCONCLUSIVE" if few else "SUCCESS", f"{seen} sessions")
    conversion = difference(strata, alpha, plan.planned_sessions)
    if evidence.known is not None:
        conversion = adjusted(evidence.known, alpha, plan.planned_sessions)
    base = sum(s.control_hits for s in strata) / sum(s.control for s in strata)
    return [enough, _bounded("conversion", conversion, step.margin * base, rising_is_bad=False)]


def _audits(step: Step, plan: Rollout, audit: Audit | None, alpha: float) -> list[OnlineCheck]:
    done = audit or Audit(0, 0, 0, 0, 0)
    if not step.audits and not done.queries:
        return []
    few = done.queries < step.audits
    text = f"{done.queries} of {step.audits} audited queries"
    planned = DISCORDANT * max(1, *(s.audits for s in plan.steps))
    em = _audited(done.em_won, done.em_lost, done.em, done.queries, alpha, planned)
    defect = _audited(done.defect_new, done.defect_gone, done.defect, done.queries, alpha, planned)
    return [
        OnlineCheck("audits", "INCONCLUSIVE" if few else "SUCCESS", text),
        _bounded("EM@1", em, step.audit_margin, rising_is_bad=False),
        _bounded("Defect@5", defect, step.audit_margin, rising_is_bad=True),
    ]


def _audited(
    ours: int, theirs: int, by_strata: Sums | None, queries: int, alpha: float, planned: float
) -> Difference | None:
    """Compare by counts, or by weighted sums where queries were drawn by strata."""
    if by_strata is None:
        return paired(ours, theirs, queries, alpha, planned)
    variance = by_strata.squares + by_strata.one
    return weighed(by_strata.total, variance, queries, alpha, planned)


def _serving(plan: Rollout, evidence: OnlineEvidence, alpha: float) -> list[OnlineCheck]:
    served = evidence.requests
    names = {"errors": plan.error_margin, "latency": plan.latency_ratio}
    if served is None or not len(served.requests):
        text = "no serving figures of both releases in one quarter of an hour"
        return [
            OnlineCheck(name, "ERROR", text) for name, limit in names.items() if limit is not None
        ]
    checks = []
    if plan.error_margin is not None:
        failed = difference_in_bursts(
            served.failed(), served.quarters, alpha, plan.planned_sessions
        )
        checks.append(_bounded("errors", failed, plan.error_margin, rising_is_bad=True))
    if plan.latency_ratio is not None:
        checks.append(_latency(plan, served, plan.latency_ratio, alpha))
    return checks


def _latency(plan: Rollout, served: Served, ratio: float, alpha: float) -> OnlineCheck:
    """Whether more than one request in a hundred takes longer than ``ratio`` times the control's
    p99. Beyond doubt is a failure, however little it is: the ratio is the limit.
    """
    fewest = int((served.requests - served.errors).sum(axis=0).min())
    if fewest < MIN_TIMES:
        return OnlineCheck("latency", "INCONCLUSIVE", f"{fewest} of {MIN_TIMES} answered requests")
    slow = served.slow(ratio)
    text = f"p99 {slow.judged_ms:.1f} ms against {slow.control_ms:.1f} ms"
    slowness = difference_in_bursts(slow.counts, served.quarters, alpha, plan.planned_sessions)
    check = _bounded("latency", slowness, SLOW_MARGIN, rising_is_bad=True)
    failed = slowness is not None and slowness.lo > 0
    outcome: Outcome = "FAILURE" if failed else check.outcome
    return OnlineCheck("latency", outcome, f"{text}; slow requests {check.text}", slowness)


def _bounded(
    name: str, interval: Difference | None, margin: float, *, rising_is_bad: bool
) -> OnlineCheck:
    """Compare an interval with 0 and with the margin on its bad side."""
    if interval is None:
        return OnlineCheck(name, "INCONCLUSIVE", "nothing to compare yet")
    text = f"{interval.value:+.4f} [{interval.lo:+.4f}, {interval.hi:+.4f}], margin {margin:.4f}"
    loss, certain = (interval.hi, interval.lo) if rising_is_bad else (-interval.lo, -interval.hi)
    if loss < margin:
        return OnlineCheck(name, "SUCCESS", text, interval)
    return OnlineCheck(name, "FAILURE" if certain > 0 else "INCONCLUSIVE", text, interval)
