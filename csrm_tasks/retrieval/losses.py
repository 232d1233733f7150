"""Losses of the embedding-based retriever, and eq. (1) of paper 1 as it is printed.

All are pure functions of tensors. Shapes: B pairs in the batch, Q distinct queries and P products
in it (the B positives and a shared pool of random ones).
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


def margin_mse_loss(cosine: Tensor, teacher: Tensor) -> Tensor:
    """MarginMSE within a query: the difference of two cosines should be that of the two CVRs (A22).

    ``cosine`` (Q, P); ``teacher`` (Q, P) the CVR, NaN where a pair was not scored. Mean over all
    couples of scored products of one query of ``((c_i - c_j) - (t_i - t_j))²``; 0 where no query
    has two. Hofstätter et al., 2020, "Improving efficient neural ranking models with cross-
    architecture knowledge distillation", there with one positive and one negative.
    """
    scored = ~teacher.isnan()
    count = scored.sum(dim=1, keepdim=True)  # (Q, 1)
    error = torch.where(scored, cosine - teacher.detach().nan_to_num(), 0.0)
    centred = torch.where(scored, error - error.sum(dim=1, keepdim=True) / count.clamp(min=1), 0.0)
    squares = (count * centred.square()).sum()  # n Σ (e_i - ē)² = Σ_{i<j} (e_i - e_j)²
    return squares / (count * (count - 1) // 2).sum().clamp(min=1)


def within_query_kl(cosine: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """KL divergence of the cosines' ranking of a query's scored products from the CVRs' (A22).

    Shapes as in :func:`margin_mse_loss`. Both are softmaxes at the same temperature, so that its
    minimum (cosine = CVR, up to a constant of the query) is where the regression has its own. Mean
    over the queries with two scored products or more; 0 where there is none.
    """
    some = (~teacher.isnan()).sum(dim=1) >= 2
    cosine, teacher = cosine[some], teacher[some].detach()
    if not len(teacher):
        return cosine.sum()  # of nothing: 0, with a gradient of 0
    missing = teacher.isnan()
    target = F.log_softmax((teacher / temperature).masked_fill(missing, -torch.inf), dim=1)
    ours = F.log_softmax((cosine / temperature).masked_fill(missing, -torch.inf), dim=1)
    gap = (target - ours).masked_fill(missing, 0.0)  # -inf less -inf is none of ours
    return (target.exp() * gap).sum() / len(teacher)


def false_negatives(cosine: Tensor, positive: Tensor, share: float) -> Tensor:
    """Return (B, P) bool: is this product nearer to the query than a negative may be (A22)?

    Its cosine is above ``share`` of the positive's. ``cosine`` (B, P) and ``positive`` (B,) as in
    :func:`contrastive_loss`; no gradient. Nothing is, where the positive's cosine is not above 0:
    such a model is no judge yet. The positive itself never is.
    """
    cosine = cosine.detach()
    own = cosine.gather(1, positive[:, None])  # (B, 1)
    return ((cosine > share * own) & (own > 0)).scatter(1, positive[:, None], value=False)


def equation_1(positive: Tensor, negatives: Tensor, cvr: Tensor) -> tuple[Tensor, Tensor]:
    """Eq. (1) of paper 1 to the letter: its two sums ``(Loss_cl, Loss_mse)``.

    ``positive`` (B,) and ``negatives`` (B, N) are inner products, ``cvr`` is (B,). Loss_cl has no
    logarithm, no temperature, no positive in the denominator, and as printed it is the quantity to
    make *large*: minimising it pushes every pair with a high CVR apart. ``||a, b||`` is read as
    the absolute difference's square. Kept for docs/PAPER.md and its test; training uses A22.
    """
    share = positive.exp() / negatives.exp().sum(dim=1)
    return (cvr * share).sum(), (cvr - positive).square().sum()
