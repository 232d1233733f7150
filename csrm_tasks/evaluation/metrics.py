"""Metrics as functions of confusion counts, so that resampling a metric is adding up counts.

Every quality figure but ECE and the ranking metrics is a function of a confusion matrix, and
confusion matrices of queries add. ``confusion_by_query`` is therefore computed once; the metric of
any set (all queries, a slice, a bootstrap resample) is the metric of a sum. All functions take
matrices of shape (..., K, K), truth in rows, and return (...): one code path for a point estimate
and for 2,000 resamples. An undefined figure (no data) is NaN, never 0.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from csrm_tasks.ranking import TOP, best_first, places

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Metric = Callable[[Floats], Floats]

BINS = 15  # of confidence, for the expected calibration error


def confusion_by_query(truth: Ints, predicted: Ints, query: Ints, queries: int, k: int) -> Floats:
    """Count (truth, predicted) per query.

    ``truth`` and ``predicted`` (N,) in 0..k-1, ``query`` (N,) in 0..queries-1; returns
    (queries, k, k).
    """
    cell = (query * k + truth) * k + predicted
    return np.bincount(cell, minlength=queries * k * k).reshape(queries, k, k).astype(np.float64)


def ratio(top: Floats, bottom: Floats) -> Floats:
    """Divide element by element; 0 or less below the line is NaN: undefined, not zero."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(bottom > 0, top / bottom, np.nan)


def _sums(confusion: Floats) -> tuple[Floats, Floats, Floats]:
    hits = np.diagonal(confusion, axis1=-2, axis2=-1)
    return hits, confusion.sum(-1), confusion.sum(-2)  # each (..., K)


def micro_f1(confusion: Floats) -> Floats:
    """Micro-averaged F1 (paper 1, section 4); with one label per pair it equals accuracy. # A42"""
    hits, actual, predicted = _sums(confusion)
    missed, false = (actual - hits).sum(-1), (predicted - hits).sum(-1)
    true = hits.sum(-1)
    return ratio(true, true + 0.5 * (false + missed))


def accuracy(confusion: Floats) -> Floats:
    """Share of pairs on the diagonal."""
    hits, actual, _ = _sums(confusion)
    return ratio(hits.sum(-1), actual.sum(-1))


def class_f1(confusion: Floats) -> Floats:
    """F1 of each class, (..., K); NaN where a class is neither true nor predicted."""
    hits, actual, predicted = _sums(confusion)
    return ratio(2.0 * hits, actual + predicted)


def macro_f1(confusion: Floats) -> Floats:
    """Mean of the classes' F1; a class that never occurs on either side is left out."""
    each = class_f1(confusion)
    known = ~np.isnan(each)
    return ratio(np.where(known, each, 0.0).sum(-1), known.sum(-1).astype(np.float64))


def quadratic_kappa(confusion: Floats) -> Floats:
    """Quadratically weighted Cohen's kappa; NaN where both sides are one and the same class."""
    k = confusion.shape[-1]
    grade = np.arange(k, dtype=np.float64)
    cost = (grade[:, None] - grade[None, :]) ** 2  # (K, K)
    _, actual, predicted = _sums(confusion)
    total = actual.sum(-1)
    chance = ratio(
        (actual[..., :, None] * predicted[..., None, :] * cost).sum((-2, -1)), total
    )  # expected cost times N
    seen = (confusion * cost).sum((-2, -1))
    return 1.0 - ratio(seen, chance)


def positive_f1(confusion: Floats) -> Floats:
    """F1 of class 1 of a binary confusion (..., 2, 2); NaN where there is none to be found."""
    return np.where(confusion[..., 1, :].sum(-1) > 0, class_f1(confusion)[..., 1], np.nan)


def confidence_bins(probabilities: Floats, truth: Ints) -> tuple[Ints, Floats, Floats]:
    """Return of every pair its bin of ECE, its confidence and whether it is a hit (0/1), each (N,).

    ``probabilities`` (N, K); confidence is the top probability (Guo et al. 2017), the ``BINS`` are
    equal in width and closed on the right.
    """
    confidence = probabilities.max(1)
    hit = (probabilities.argmax(1) == truth).astype(np.float64)
    return np.clip(np.ceil(confidence * BINS).astype(np.int64) - 1, 0, BINS - 1), confidence, hit


def calibration_by_query(probabilities: Floats, truth: Ints, query: Ints, queries: int) -> Floats:
    """Sums for ECE per query: (queries, BINS, 3) of count, confidence and hits by bin."""
    which, confidence, hit = confidence_bins(probabilities, truth)
    cell = query * BINS + which
    sums = [
        np.bincount(cell, weights=w, minlength=queries * BINS)
        for w in (np.ones_like(hit), confidence, hit)
    ]
    return np.stack(sums, -1).reshape(queries, BINS, 3).astype(np.float64)


def calibration_error(surplus: Floats, pairs: Floats) -> Floats:
    """Expected calibration error: mean |confidence - hit rate|, weighted by bins' pairs.

    ``surplus`` (..., BINS): the sum of confidence less the hits of each bin, or its negative;
    ``pairs`` (...).
    """
    return ratio(np.abs(surplus).sum(-1), pairs)


def ece(calibration: Floats) -> Floats:
    """Expected calibration error of summed bins (..., BINS, 3)."""
    count, confidence, hits = (calibration[..., i] for i in range(3))
    return calibration_error(confidence - hits, count.sum(-1))


def top_hits(query: Ints, score: Floats, grade: Ints, queries: int) -> tuple[Floats, Floats]:
    """Per query whether EM@1 holds and whether Defect@5 occurs, each (queries,) of 0/1. # A43

    EM@1: an exact item first. Defect@5: an irrelevant item among the top five. Ties keep the order
    of the rows. A query without results fails both: 0 for EM@1, 1 for Defect@5.
    """
    em, defect = np.zeros(queries), np.ones(queries)
    order = best_first(score, query)
    query, grade = query[order], grade[order]
    rank = places(query)
    first = rank == 0
    em[query[first]] = grade[first] == 2
    defect[query[first]] = 0.0
    bad = (rank < TOP) & (grade == 0)
    defect[query[bad]] = 1.0
    return em, defect
