"""Cross-lingual transfer gap: how far apart one pair is in two languages (A44; paper 1, eq. 6).

Inputs are hidden states that feed the label logits, (m, H): row i of ``source`` and of ``target``
is the same query-product pair in the two languages, with RQA off.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from csrm_tasks.errors import DataError

Floats = npt.NDArray[np.float64]


def pair_gaps(source: Floats, target: Floats) -> Floats:
    """Return ‖target_i − source_i‖ / ‖target_i − mean(target)‖ for every pair, (m,).

    Raises :class:`DataError` where a pair lies on the mean, so that the ratio has no value.
    """
    if source.shape != target.shape or source.ndim != 2:
        raise DataError(f"transfer gap: shapes {source.shape}, {target.shape} are not one (m, H)")
    spread = np.linalg.norm(target - target.mean(axis=0), axis=1)
    if len(target) < 2 or not spread.all():
        raise DataError("transfer gap: needs at least two pairs with different hidden states")
    return np.asarray(np.linalg.norm(target - source, axis=1) / spread)


def transfer_gap(source: Floats, target: Floats) -> float:
    """Return eq. (6): the mean of :func:`pair_gaps`."""
    return float(pair_gaps(source, target).mean())


def median_gap(source: Floats, target: Floats) -> float:
    """Return the median of :func:`pair_gaps`: one pair near the mean cannot dominate it."""
    return float(np.median(pair_gaps(source, target)))


def symmetric_gap(source: Floats, target: Floats) -> float:
    """Return the mean of eq. (6) with either language as the target."""
    return 0.5 * (transfer_gap(source, target) + transfer_gap(target, source))


def translation_accuracy(source: Floats, target: Floats) -> float:
    """Return the share of pairs whose nearest neighbour in the other language is themselves.

    Euclidean, averaged over both directions; 1/m by chance.
    """
    squared = (
        (source**2).sum(axis=1)[:, None] + (target**2).sum(axis=1)[None] - 2.0 * source @ target.T
    )  # (m, m)
    own = np.arange(len(source))
    return float(0.5 * ((squared.argmin(1) == own).mean() + (squared.argmin(0) == own).mean()))
