"""What is measured: additive counts of each query, and a figure of their sum.

Every measure's counts are (Q, …) arrays that add over queries, so a figure of any set of queries,
or of a bootstrap resample, is the figure of a sum (:mod:`csrm_tasks.evaluation.metrics`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from csrm_tasks.demo.study.verdict import SMALLEST
from csrm_tasks.evaluation import metrics
from csrm_tasks.evaluation.measures import share
from csrm_tasks.evaluation.metrics import Floats, Metric

MORE_SEARCHES = 0.3  # of a session, beyond its first: csrm_tasks.demo.market.shoppers


@dataclass(frozen=True)
class Measure:
    """A figure, and how a difference of it is judged."""

    title: str
    shape: tuple[int, ...]  # of one query's counts
    figure: Metric
    smallest: float = SMALLEST  # an effect below that would not matter
    sign: int = 1  # -1: lower is better
    points: bool = True  # a share, shown as points of a hundred
    by_query: bool = True  # False: one value a seed, no queries to resample


def session_conversion(counts: Floats) -> Floats:
    """Return the share of sessions with a cart or purchase, of (..., 2): carts, searches.

    A session is one search and a Poisson number of further ones, each converting by itself.
    """
    each = share(counts)
    made: Floats = 1.0 - (1.0 - each) * np.exp(-MORE_SEARCHES * each)
    return made


MEASURES = {
    "micro_f1": Measure("micro-F1", (3, 3), metrics.micro_f1),
    "em_f1": Measure("EM F1", (2, 2), metrics.positive_f1),
    "defect_f1": Measure("defect F1", (2, 2), metrics.positive_f1),
    "titles": Measure("right titles", (2,), share),
    "em_at_1": Measure("EM@1", (2,), share),
    "defect_at_5": Measure("Defect@5 ↓", (2,), share, sign=-1),
    # A tenth of a point is what the paper calls 0.866 %, were one session in nine to convert.
    "conversion": Measure("session conversion", (2,), session_conversion, smallest=0.001),
    "gap": Measure("transfer gap ↓", (2,), share, sign=-1, points=False, by_query=False),
    "fit": Measure("fit of own train labels", (2,), share, by_query=False),
    "qc_f1": Measure("F1 of qc", (2, 2), metrics.positive_f1),
    "qi_f1": Measure("F1 of qi", (2, 2), metrics.positive_f1),
}
