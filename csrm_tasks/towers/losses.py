"""Knowledge distillation of the two heads, eq. (4) of paper 1 with A28 and A29.

The printed text of eq. (4) swaps teacher and student; the target is the teacher. Both heads learn
a "good" probability: exact match p_e, and *not* defect 1 - p_i, so that a high cosine is always a
good one (A29). The printed sum over the data is a mean here, so that the learning rate does not
depend on the batch.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def head_logits(cosine: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Return s·c + b, whose sigmoid is the student's probability (A28); all broadcast together."""
    return scale * cosine + bias


def kd_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Mean cross-entropy of σ(logits) against soft targets in [0, 1]; shapes equal, e.g. (P,).

    Written as softplus(z) - t·z, which is eq. (4) without the overflow of log σ.
    """
    return (F.softplus(logits) - target * logits).mean()


def towers_loss(logits: Tensor, exact: Tensor, irrelevant: Tensor) -> Tensor:
    """Sum of both heads' losses.

    ``logits`` (P, 2) of the heads (exact match, not defect); ``exact`` and ``irrelevant`` (P,) are
    the teacher's p_e and p_i, or 0/1 from human grades for the hard-label baseline (A32).
    """
    return kd_loss(logits[:, 0], exact) + kd_loss(logits[:, 1], 1.0 - irrelevant)
