"""Self-distillation targets: α·human + (1−α)·teacher as one mixed target (A15)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]


def one_hot(labels: npt.NDArray[np.int64], classes: int) -> Floats:
    """Return (N, classes) rows with a single 1."""
    rows: Floats = np.eye(classes, dtype=np.float32)[labels]
    return rows


def mixed_target(human: Floats, teacher: Floats, alpha: float) -> Floats:
    """Return α·human + (1−α)·teacher, (N, K).

    Paper 1, eq. (2) with the label names the right way round: α weighs the human label. One
    cross-entropy against the mixture has the value and gradient of the weighted sum of two,
    because cross-entropy is linear in its target.
    """
    return np.asarray(alpha * human + (1.0 - alpha) * teacher, np.float32)
