"""The gate (A46, A47): may the candidate replace the champion, on the evidence at hand?

A pure function of per-query counts and a policy; :mod:`.checks` says how a claim is decided and
how many of them combine. The interval is two-sided, hence a useless candidate wins with
probability alpha/2 at most.

Gated: the LLM's micro-F1 in the policy's mode, and the towers' EM and defect F1 as non-inferior
(their thresholds maximise F1, A33; accuracy and the rest can be given floors); hard floors; the
baselines that the towers and what taught them must not be below; micro-F1 in the policy's slices
as non-inferior. What baselines are better at is told besides.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from csrm_tasks.errors import RefusedError
from csrm_tasks.evaluation.beside import Counts, better_baselines, not_below
from csrm_tasks.evaluation.checks import (
    Claim,
    GateCheck,
    Verdict,
    combine,
    compare,
    decided,
    enough,
    floor_value,
    judged_sureness,
    unusable,
)
from csrm_tasks.evaluation.measures import MEASURES
from csrm_tasks.evaluation.metrics import Floats, micro_f1
from csrm_tasks.evaluation.second_stage import second_stage_checks
from csrm_tasks.evaluation.slices import Mask
from csrm_tasks.sections import Gate

NO_POLICY = "the market has no gate policy: add a `gate:` section to its file"
TOWER_MEASURES = ("em_f1", "defect_f1")
BY_LABELS = "dev refused the teacher, so the towers learnt labels: not_below claims nothing of it"
TaughtBy = Literal["llm", "stack", "labels"]  # what towers learn from (A50, A32)


@dataclass(frozen=True)
class GateEvidence:
    """What is known of one release: confusions per query, the same queries for both sides."""

    release: str
    queries: tuple[str, ...]
    counts: Mapping[str, Floats]  # relevance (Q, 3, 3) of the LLM; em, defect (Q, 2, 2) of towers
    slices: Mapping[str, Floats] = field(default_factory=dict)  # name → relevance (Q, 3, 3)
    baselines: Mapping[str, Counts] = field(default_factory=dict)  # name → families of counts
    seen: Mask | None = None  # (Q,) queries that its towers were taught before these were gold
    taught_by: TaughtBy = "llm"  # who taught its towers
    teacher: Counts = field(default_factory=dict)  # families of the LLM, or of the stack, if it did
    second_stage: bool = False  # whether it re-ranks what its towers find
    served: Floats | None = None  # EM@1 (Q, 2) in the order that it answers in, where measured


def decide(candidate: GateEvidence, champion: GateEvidence | None, policy: Gate | None) -> Verdict:
    """Judge ``candidate`` against ``champion`` (None: no release is live, so floors decide).

    Raises :class:`RefusedError` without a policy. Evidence that is missing, empty, not finite, too
    small or not of the same queries is INCONCLUSIVE, never PASS.
    """
    if policy is None:
        raise RefusedError(NO_POLICY)
    checks = [
        floor(candidate, name, least, policy.alpha) for name, least in sorted(policy.floors.items())
    ]
    sides = sides_of(candidate)
    teacher, towers = sides.values()
    claims = {} if candidate.taught_by == "labels" else {"": teacher}
    checks += not_below(claims | {" of the towers": towers}, candidate.baselines, policy)
    if champion is None:
        if not checks:
            reason = "no release is live and the policy has no floors: nothing to judge against"
            checks.append(GateCheck("floors", "INCONCLUSIVE", reason))
        few = enough("micro_f1", candidate.counts.get("relevance"), policy.slice_min)
        checks += [few] if few else []
    else:
        checks += comparisons(candidate, champion, policy)
    checks += _as_served(candidate, champion, policy)
    verdict = combine([*checks, *self_test(champion or candidate, policy)])
    told = [BY_LABELS] if candidate.taught_by == "labels" else []
    better = better_baselines(sides, candidate.baselines, policy.alpha)
    return replace(verdict, notes=(*told, *better))


def _as_served(
    candidate: GateEvidence, champion: GateEvidence | None, policy: Gate
) -> list[GateCheck]:
    """Return the checks of the order that shoppers see, where either side has a second stage."""
    if not (candidate.second_stage or (champion and champion.second_stage)):
        return []
    rivals = {"the release's own towers": candidate.counts.get("em_at_1")}
    if champion is not None:
        rivals["the champion"] = _served(champion)
    return second_stage_checks(_served(candidate), rivals, policy)


def _served(evidence: GateEvidence) -> Floats | None:
    """Return EM@1 of what a release answers; of one without a second stage it is its towers'."""
    alone = None if evidence.second_stage else evidence.counts.get("em_at_1")
    return evidence.served if evidence.served is not None else alone


def sides_of(evidence: GateEvidence) -> dict[str, Counts]:
    """Return what baselines are compared with: what taught the towers, and the towers.

    Labels have no answers of their own; then it is the LLM, of which nothing is claimed.
    """
    towers = {f: t for f, t in evidence.counts.items() if f != "relevance"}
    if evidence.taught_by == "stack":
        return {"teacher (LLM and lexical evidence)": evidence.teacher, "towers": towers}
    alone = {f: t for f, t in evidence.counts.items() if f == "relevance"}
    return {"LLM": evidence.teacher or alone, "towers": towers}


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
        checks.append(GateCheck("champion", "INCONCLUSIVE", reason))
    elif champion is not None:
        before = champion.source_dev_micro_f1 or 0.0
        label = "micro_f1 on source dev, champion less margin"
        checks.append(floor_value(label, value, before - policy.margin))
    return combine([*checks, *_floor_self_test(least)])


def comparisons(candidate: GateEvidence, champion: GateEvidence, policy: Gate) -> list[GateCheck]:
    """Return the checks that set the two sides against each other."""
    if candidate.queries != champion.queries:
        reason = "candidate and champion were not judged on the same queries"
        return [GateCheck("gold", "INCONCLUSIVE", reason)]
    checks = []
    for name, claim in _claims(policy).items():
        judge = _of_towers if name in TOWER_MEASURES else _of_llm
        checks.append(judge(name, claim, candidate, champion))
    slices = [
        compare(f"micro_f1 in {name}", claim, candidate.slices.get(name), champion.slices.get(name))
        for name, claim in _slice_claims(policy).items()
    ]
    return [*checks, *decided(slices), *_alike(candidate, champion)]


def _of_llm(name: str, claim: Claim, one: GateEvidence, other: GateEvidence) -> GateCheck:
    return _among(name, claim, one, other, np.ones(len(one.queries), bool))


def _of_towers(name: str, claim: Claim, one: GateEvidence, other: GateEvidence) -> GateCheck:
    """Judge the towers over the gold queries that are new to the candidate's.

    The live release's may have been taught, as traffic, what became gold after it was made. That
    flatters it, so a claim that holds all the same needs no allowance; but what is refuted only by
    that is undecided.
    """
    new = np.ones(len(one.queries), bool) if one.seen is None else ~one.seen
    check = _among(name, claim, one, other, new)
    taught = np.zeros(len(new), bool) if other.seen is None else other.seen
    if check.outcome != "FAIL" or not taught.any():
        return check
    rest = _among(name, claim, one, other, new & ~taught)
    if rest.outcome == "FAIL":
        return rest
    reason = (
        f"{check.reason}; but the champion's towers were taught {int(taught.sum())} of these "
        f"{int(new.sum())} queries, and over the others: {rest.reason}"
    )
    return GateCheck(name, "INCONCLUSIVE", reason, rest.needed)


def _among(
    name: str, claim: Claim, one: GateEvidence, other: GateEvidence, queries: Mask
) -> GateCheck:
    family = MEASURES[name][0]
    sides = (e.counts.get(family) for e in (one, other))
    kept = (None if side is None else side[queries] for side in sides)
    return decided([compare(name, claim, *kept)])[0]


def _claims(policy: Gate) -> dict[str, Claim]:
    """Return measure → what is claimed of it."""
    superior = policy.mode == "superiority"
    claims = {}
    for name in (policy.metric, *TOWER_MEASURES):
        strict = superior and name == policy.metric
        margin = 0.0 if strict else policy.margin
        claims[name] = Claim(MEASURES[name][1], margin, strict, policy.alpha, policy.slice_min)
    return claims


def _slice_claims(policy: Gate) -> dict[str, Claim]:
    given = (micro_f1, policy.slice_margin, False, policy.alpha, policy.slice_min)
    return {name: Claim(*given, where=name) for name in policy.slices}


def _alike(candidate: GateEvidence, champion: GateEvidence) -> list[GateCheck]:
    """A candidate that answers every pair as the champion does gives no reason to roll it out."""
    same = candidate.counts.keys() == champion.counts.keys() and all(
        np.array_equal(table, champion.counts[family]) for family, table in candidate.counts.items()
    )
    same = same and np.array_equal(_order_of(candidate), _order_of(champion))
    reason = "the candidate answers exactly as the champion does: nothing is gained by releasing it"
    return [GateCheck("difference", "INCONCLUSIVE", reason)] if same else []


def _order_of(evidence: GateEvidence) -> Floats:
    found = _served(evidence)
    return np.zeros(0) if found is None else found


def floor(evidence: GateEvidence, name: str, least: float, alpha: float) -> GateCheck:
    """Check a hard floor of a point estimate; its interval is shown and does not decide."""
    label = f"floor {name}"
    family, metric = MEASURES[name]
    table = evidence.counts.get(family)
    if table is None or not len(table):
        return floor_value(label, None, least)
    return floor_value(
        label, float(metric(table.sum(0))), least, judged_sureness(table, metric, alpha)
    )


def planted_regression(counts: Floats) -> Floats:
    """Turn every right answer of every second judged query wrong: no gate may miss that."""
    k = counts.shape[-1]
    planted = counts.copy()
    rows = np.flatnonzero(counts.sum((1, 2)) > 0)[::2]
    for grade in range(k):
        planted[rows, grade, (grade + 1) % k] += counts[rows, grade, grade]
        planted[rows, grade, grade] -= counts[rows, grade, grade]
    return planted


def self_test(evidence: GateEvidence, policy: Gate) -> list[GateCheck]:
    """Return a voiding check for each way in which this very gate misbehaves (A47)."""
    counts = evidence.counts.get("relevance")
    if unusable("self-test", counts, counts) or enough("self-test", counts, policy.slice_min):
        return []  # the verdict is INCONCLUSIVE already
    assert counts is not None
    checks = []
    better = Claim(micro_f1, 0.0, True, policy.alpha, policy.slice_min)
    if decided([compare("self-test", better, counts, counts)])[0].outcome == "PASS":
        reason = "void: a release won against itself"
        checks.append(GateCheck("self-test A/A", "INCONCLUSIVE", reason))
    claims = {"all": (_claims(policy)[policy.metric], counts)}
    measured = {n: c for n, c in _slice_claims(policy).items() if n in evidence.slices}
    claims |= {n: (c, evidence.slices[n]) for n, c in measured.items()}
    for name, (claim, right) in claims.items():
        if unusable(name, right, right) or enough(name, right, policy.slice_min):
            continue
        if decided([compare(name, claim, planted_regression(right), right)])[0].outcome != "FAIL":
            reason = (
                f"void: a planted regression was not caught (in {name}): so bad a candidate would "
                f"not fail by a margin of {claim.margin:.3f} on this gold; a smaller margin, or "
                "more gold queries"
            )
            checks.append(GateCheck("self-test regression", "INCONCLUSIVE", reason))
    return checks


def _floor_self_test(least: float) -> list[GateCheck]:
    """As :func:`self_test`, where all that decides is a floor."""
    wanted = {least - 0.01: "FAIL", float("nan"): "INCONCLUSIVE"}
    if all(floor_value("", value, least).outcome == said for value, said in wanted.items()):
        return []
    return [GateCheck("self-test floor", "INCONCLUSIVE", "void: a figure below the floor passed")]
