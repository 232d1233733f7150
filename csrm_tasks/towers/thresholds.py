"""Decision thresholds (A33), and the figures they give."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from csrm_tasks.errors import DataError
from csrm_tasks.evaluation.metrics import confusion_by_query, positive_f1

Floats = npt.NDArray[np.float32] | npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Threshold:
    """A head's positive decision is ``probability >= value``, with its figures on given pairs."""

    value: float
    precision: float
    recall: float
    f1: float


def choose_threshold(
    name: str, scores: Floats, truth: Bools | Floats, floor: float | None
) -> Threshold:
    """Choose by greatest F1, or by greatest recall among the cuts of precision ≥ ``floor``.

    ``scores`` (N,); ``truth`` (N,) says which pairs are positive, or how probably they are: F1,
    precision and recall are then those of the expected counts. A cut lies midway between two
    neighbouring scores: on a score, a rounding error of the export would flip that pair. Where no
    cut reaches ``floor`` the one of highest precision is taken. Raises :class:`DataError` when no
    pair is positive.
    """
    if not truth.any():
        raise DataError(f"no pair is positive for head {name!r}: no threshold can be chosen")
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order].astype(np.float64)
    hits = np.cumsum(truth[order], dtype=np.float64)
    last = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))  # ends of runs of ties
    precision = hits[last] / (last + 1.0)
    recall = hits[last] / hits[-1]
    f1 = 2.0 * hits[last] / (last + 1.0 + hits[-1])
    best = int(np.argmax(f1)) if floor is None else _widest(precision, floor)
    return Threshold(
        _midway(ranked, int(last[best])),
        float(precision[best]), float(recall[best]), float(f1[best]),
    )  # fmt: skip


def at_threshold(value: float, scores: Floats, truth: Bools) -> Threshold:
    """Return the figures that the threshold ``value`` gives on these pairs; 0 where undefined."""
    predicted, one_query = scores >= value, np.zeros(len(truth), np.int64)
    table = confusion_by_query(truth.astype(np.int64), predicted.astype(np.int64), one_query, 1, 2)[
        0
    ]  # (2, 2), truth in rows
    hits, said, there = (int(x) for x in (table[1, 1], table[:, 1].sum(), table[1].sum()))
    return Threshold(
        value, hits / said if said else 0.0, hits / there if there else 0.0,
        float(np.nan_to_num(positive_f1(table))),
    )  # fmt: skip


def _widest(precision: npt.NDArray[np.float64], floor: float) -> int:
    """Return the last cut of precision ≥ ``floor`` (recall only grows), else the most precise."""
    held = np.flatnonzero(precision >= floor)
    return int(held[-1]) if len(held) else int(np.argmax(precision))


def _midway(ranked: npt.NDArray[np.float64], last: int) -> float:
    below = ranked[last + 1] if last + 1 < len(ranked) else 0.0
    return float((ranked[last] + below) / 2.0)
