"""The named figures (A42, A43): which family of counts each one is a function of."""

from __future__ import annotations

from csrm_tasks.evaluation import metrics
from csrm_tasks.evaluation.metrics import Floats, Metric


def share(counts: Floats) -> Floats:
    """Mean of a 0/1 figure per query; ``counts`` (..., 2) holds hits and queries."""
    return metrics.ratio(counts[..., 0], counts[..., 1])


MEASURES: dict[str, tuple[str, Metric]] = {  # name → (counts family, metric)
    "micro_f1": ("relevance", metrics.micro_f1),
    "macro_f1": ("relevance", metrics.macro_f1),
    "kappa": ("relevance", metrics.quadratic_kappa),
    "em_accuracy": ("em", metrics.accuracy),
    "em_f1": ("em", metrics.positive_f1),
    "defect_accuracy": ("defect", metrics.accuracy),
    "defect_f1": ("defect", metrics.positive_f1),
    "em_at_1": ("em_at_1", share),
    "defect_at_5": ("defect_at_5", share),
    "ece": ("calibration", metrics.ece),
}
LOWER = ("defect_at_5", "ece")  # is better
