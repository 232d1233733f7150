"""Losses of the embedding-based retriever, and eq. (1) of paper 1 as it is printed.

All are pure functions of tensors. Shapes: B pairs in the batch, P products in it (the B positives
and a shared pool of random ones), d the width of an embedding.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def contrastive_loss(
    cosine: Tensor, positive: Tensor, allowed: Tensor, weight: Tensor, temperature: float
) -> Tensor:
    """Weighted InfoNCE (A22): ``sum_b w_b · -log softmax_b(positive) / sum_b w_b``.

    ``cosine`` (B, P) of every query with every product; ``positive`` (B,) the column of the
    query's own product; ``allowed`` (B, P) bool, False where a product must not serve as a negative
    (another pseudo pair of the same query; the positive's own column always counts); ``weight``
    (B,) ≥ 0, the CVR, through which no gradient flows. Divided by the batch's sum of weights, never
    per query, so that a query whose candidates all convert badly says little. 0 where all weights
    are 0.
    """
    weight = weight.detach()
    own = F.one_hot(positive, cosine.shape[1]).bool()  # (B, P)
    logits = (cosine / temperature).masked_fill(~(allowed | own), -torch.inf)
    picked = F.log_softmax(logits, dim=1).gather(1, positive[:, None]).squeeze(1)  # (B,)
    total = weight.sum()
    return -(weight * picked).sum() / torch.where(total > 0, total, torch.ones_like(total))


def mse_loss(cosine: Tensor, target: Tensor) -> Tensor:
    """Mean of (CVR − c)² over the batch's pairs; ``cosine`` and ``target`` are (B,)  (A22)."""
    return (target.detach() - cosine).square().mean()


def equation_1(positive: Tensor, negatives: Tensor, cvr: Tensor) -> tuple[Tensor, Tensor]:
    """Eq. (1) of paper 1 to the letter: its two sums ``(Loss_cl, Loss_mse)``.

    ``positive`` (B,) and ``negatives`` (B, N) are inner products, ``cvr`` is (B,). Loss_cl has no
    logarithm, no temperature, no positive in the denominator, and as printed it is the quantity to
    make *large*: minimising it pushes every pair with a high CVR apart. ``||a, b||`` is read as
    the absolute difference's square. Kept for docs/PAPER.md and its test; training uses A22.
    """
    share = positive.exp() / negatives.exp().sum(dim=1)
    return (cvr * share).sum(), (cvr - positive).square().sum()
