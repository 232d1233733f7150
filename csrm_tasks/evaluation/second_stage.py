"""Claims on the order in which a search is served, where there is a second stage.

Dev has kept it for its order; gold decides whether it may be released, as for the towers: EM@1 of
what is served is no worse, by the policy's margin, than that of the release's own towers alone, nor
than what the live release serves, with its second stage or without.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from csrm_tasks.evaluation.checks import Claim, GateCheck, compare, decided
from csrm_tasks.evaluation.gold import Gold, Predictions
from csrm_tasks.evaluation.measures import share
from csrm_tasks.evaluation.metrics import Floats
from csrm_tasks.evaluation.ordering import first_hits, ordered_pairs, places_of
from csrm_tasks.evaluation.paired import difference, interval, resample
from csrm_tasks.sections import Gate

MEASURE = "em_at_1"


def second_stage_checks(
    served: Floats | None, rivals: Mapping[str, Floats | None], policy: Gate
) -> list[GateCheck]:
    """Check the candidate's ``served`` EM@1 (Q, 2) against each of ``rivals``, by name in words.

    What was not measured is None, and INCONCLUSIVE.
    """
    return [_check(served, other, rival, policy) for rival, other in rivals.items()]


def _check(served: Floats | None, other: Floats | None, rival: str, policy: Gate) -> GateCheck:
    name = f"{MEASURE} as served, against {rival}"
    if served is not None and other is not None and np.array_equal(served, other):
        return GateCheck(name, "PASS", f"{name}: the same in every search")
    claim = Claim(share, policy.margin, False, policy.alpha, 1, rival=rival)
    return decided([compare(name, claim, served, other)])[0]


def told(pairs: Sequence[tuple[Predictions, Predictions]], gold: Gold) -> list[dict[str, Any]]:
    """Return the figures of each served order beside those of its towers alone, on gold.

    ``pairs`` of (served, its towers). ``ordered``: of two products of a search with different
    grades, how often the better one stands first.
    """
    return [
        {"name": served.name, "towers": towers.name, "figures": _figures(towers, served, gold)}
        for served, towers in pairs
    ]


def _figures(towers: Predictions, served: Predictions, gold: Gold) -> dict[str, Any]:
    draws, figures = resample(gold.queries), {}
    for measure, count in (("ordered", ordered_pairs), (MEASURE, first_hits)):
        one, other = (
            count(gold.query, places_of(gold.query, m.score), gold.grade, gold.queries)
            for m in (towers, served)
        )
        figures[measure] = {
            "towers": interval(one, share, draws).as_json(),
            "served": interval(other, share, draws).as_json(),
            "difference": difference(other, one, share, draws).as_json(),
        }
    return figures
