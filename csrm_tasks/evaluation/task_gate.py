"""The gate's claims of the query-category and query-item tasks (A42, A46, A47).

Of every task that the market learns: the candidate's F1 of yes on gold reaches its floor, and is no
worse than the champion's by the policy's margin. Where the champion has not learnt the task, or no
release is live, the floor alone decides; without one nothing does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from csrm_tasks.errors import RefusedError
from csrm_tasks.evaluation.checks import (
    Claim,
    GateCheck,
    Verdict,
    combine,
    compare,
    decided,
    enough,
    floor_value,
)
from csrm_tasks.evaluation.gate import NO_POLICY, planted_regression
from csrm_tasks.evaluation.metrics import positive_f1
from csrm_tasks.evaluation.tasks import TaskCounts
from csrm_tasks.sections import Gate


@dataclass(frozen=True)
class TaskEvidence:
    """What is known of both sides in the tasks that the market learns."""

    candidate: Mapping[str, TaskCounts]  # by task; all of the market's
    champion: Mapping[str, TaskCounts] | None  # None: no release is live


def decide_tasks(evidence: TaskEvidence, policy: Gate | None) -> Verdict:
    """Judge an LLM by its tasks alone; raises :class:`RefusedError` without a policy."""
    if policy is None:
        raise RefusedError(NO_POLICY)
    return combine(task_checks(evidence, policy))


def task_checks(evidence: TaskEvidence, policy: Gate) -> list[GateCheck]:
    """Return the checks of every task, and of each way in which they misbehave."""
    return [
        check
        for task, own in sorted(evidence.candidate.items())
        for check in _of_task(task, own, (evidence.champion or {}).get(task), policy)
    ]


def _of_task(
    task: str, own: TaskCounts, champion: TaskCounts | None, policy: Gate
) -> list[GateCheck]:
    name = f"{task} F1"
    few = enough(name, own.counts, policy.slice_min)
    if few is not None:
        return [few]
    checks = []
    least = policy.task_floors.get(task)  # type: ignore[call-overload]
    if least is not None:
        checks.append(floor_value(f"floor {name}", float(positive_f1(own.counts.sum(0))), least))
    claim = Claim(positive_f1, policy.margin, False, policy.alpha, policy.slice_min)
    if champion is not None and champion.queries:
        checks += _compared(name, claim, own, champion)
    elif least is None:
        reason = (
            f"{name}: no live release has learnt the task and gate.task_floors does not name it: "
            "nothing to judge against"
        )
        checks.append(GateCheck(name, "INCONCLUSIVE", reason))
    return checks


def _compared(name: str, claim: Claim, own: TaskCounts, other: TaskCounts) -> list[GateCheck]:
    if own.queries != other.queries:
        reason = f"{name}: candidate and champion were not judged on the same queries"
        return [GateCheck(name, "INCONCLUSIVE", reason)]
    checks = decided([compare(name, claim, own.counts, other.counts)])
    return [*checks, *_self_test(name, claim, other)]


def _self_test(name: str, claim: Claim, champion: TaskCounts) -> list[GateCheck]:
    """Void the verdict where the champion wins against itself, or a planted regression does not
    fail (A47).
    """
    right = champion.counts
    better = Claim(positive_f1, 0.0, True, claim.alpha, claim.least)
    if decided([compare(name, better, right, right)])[0].outcome == "PASS":
        return [
            GateCheck(f"self-test {name}", "INCONCLUSIVE", "void: a release won against itself")
        ]
    if not np.diagonal(right.sum(0)).all():  # nothing right to turn wrong
        return []
    if decided([compare(name, claim, planted_regression(right), right)])[0].outcome == "FAIL":
        return []
    reason = (
        f"void: a planted regression was not caught ({name}): so bad a candidate would not fail by "
        f"a margin of {claim.margin:.3f} on this gold; a smaller margin, or more gold queries"
    )
    return [GateCheck(f"self-test {name}", "INCONCLUSIVE", reason)]
