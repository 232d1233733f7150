"""Candidate and baselines on the same gold pairs: what the policy claims, and what it is told.

A claim is a floor that is measured instead of set: point estimates decide, as in every floor. What
a linear model is better at is told in any case, with its paired interval (A45).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from csrm_tasks.evaluation.checks import (
    GateCheck,
    floor_value,
    judged_queries,
    judged_sureness,
    sureness,
    unusable,
)
from csrm_tasks.evaluation.measures import MEASURES
from csrm_tasks.evaluation.metrics import Floats
from csrm_tasks.evaluation.paired import difference, resample
from csrm_tasks.sections import COMPARED, Gate

Counts = Mapping[str, Floats]  # family of counts → (Q, …)
LEARNT = ("tfidf", "encoder", "prompt")  # of which it is told; the majority class is no model
WORDS = {"micro_f1": "micro-F1", "em_f1": "EM F1", "defect_f1": "defect F1", "em_at_1": "EM@1"}


def not_below(
    sides: Mapping[str, Counts], baselines: Mapping[str, Counts], policy: Gate
) -> list[GateCheck]:
    """Check each side in each figure that the policy names against each baseline that it names.

    ``sides``: how a side is called in the check's name (" of the towers", "" the teacher) → counts.
    Towers have no micro-F1.
    """
    return [
        _not_below(f"{measure}{side}", measure, baseline, counts, baselines, policy.alpha)
        for baseline, measures in policy.compared.items()
        for measure in measures
        for side, counts in sides.items()
        if not (side and measure == "micro_f1")
    ]


def _not_below(
    name: str,
    measure: str,
    baseline: str,
    ours: Counts,
    baselines: Mapping[str, Counts],
    alpha: float,
) -> GateCheck:
    label, (family, metric) = f"{name} not below {baseline}", MEASURES[measure]
    one, other = ours.get(family), baselines.get(baseline, {}).get(family)
    problem = unusable(label, one, other, baseline)
    if problem is not None or one is None or other is None:
        return problem or GateCheck(label, "INCONCLUSIVE", f"{label}: not measured")
    sure = judged_sureness(one, metric, alpha)
    return floor_value(label, float(metric(one.sum(0))), float(metric(other.sum(0))), sure)


def better_baselines(
    sides: Mapping[str, Counts], baselines: Mapping[str, Counts], alpha: float
) -> Iterator[str]:
    """Say in what a baseline is better than a side, a line each; ``sides`` by name in words."""
    for name in LEARNT:
        for side, counts in sides.items():
            for measure in COMPARED:
                family, metric = MEASURES[measure]
                one, other = counts.get(family), baselines.get(name, {}).get(family)
                if one is None or other is None or unusable("", one, other):
                    continue
                diff = difference(other, one, metric, resample(len(one)), alpha)
                if diff.value > 0:
                    found = [float(metric(t.sum(0))) for t in (other, one)]
                    judged = judged_queries(one)
                    yield (
                        f"{name} is {'' if diff.lo > 0 else 'perhaps '}better than the {side} in "
                        f"{WORDS[measure]}: {found[0]:.3f} against {found[1]:.3f}, "
                        f"{diff.value:+.3f} {sureness(diff, judged, '+')}"
                    )
