"""Targets of the relevance task: human labels, smoothed (A53), mixed with a teacher's (A15)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]


def one_hot(labels: npt.NDArray[np.int64], classes: int) -> Floats:
    """Return (N, classes) rows with a single 1."""
    rows: Floats = np.eye(classes, dtype=np.float32)[labels]
    return rows


def smoothed(human: Floats, epsilon: float) -> Floats:
    """Return (1−ε)·human + ε/K, (N, K): label smoothing, of human labels only (A53).

    A soft label says by itself how sure it is, and is left as it is. ε = 0 changes nothing, to the
    last bit.
    """
    return np.asarray((1.0 - epsilon) * human + epsilon / human.shape[1], np.float32)


def mixed_target(human: Floats, teacher: Floats, alpha: float) -> Floats:
    """Return α·human + (1−α)·teacher, (N, K).

    Paper 1, eq. (2) with the label names the right way round: α weighs the human label. One
    cross-entropy against the mixture has the value and gradient of the weighted sum of two,
    because cross-entropy is linear in its target.
    """
    return np.asarray(alpha * human + (1.0 - alpha) * teacher, np.float32)
