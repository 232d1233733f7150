"""The EBR's losses against loops, in float64, at their limits; and eq. (1) as printed (A22)."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from csrm_tasks.retrieval.losses import contrastive_loss, equation_1, mse_loss


def _case(seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    cosine = torch.rand(5, 9, generator=generator, dtype=torch.float64) * 2 - 1
    positive = torch.tensor([0, 1, 1, 3, 8])
    allowed = torch.rand(5, 9, generator=generator) > 0.3
    weight = torch.rand(5, generator=generator, dtype=torch.float64)
    return cosine, positive, allowed, weight


def _loop(cosine: Tensor, positive: Tensor, allowed: Tensor, weight: Tensor, t: float) -> float:
    total = 0.0
    for b in range(len(cosine)):
        good = math.exp(cosine[b, positive[b]].item() / t)
        bad = sum(
            math.exp(cosine[b, p].item() / t)
            for p in range(cosine.shape[1])
            if allowed[b, p] and p != positive[b]
        )
        total += -weight[b].item() * math.log(good / (good + bad))
    return total / weight.sum().item()


@pytest.mark.parametrize("temperature", [0.05, 1.0])
def test_contrastive_equals_the_loop(temperature: float) -> None:
    case = _case()
    expected = pytest.approx(_loop(*case, temperature), rel=1e-12)
    assert contrastive_loss(*case, temperature).item() == expected


def test_gradients_are_right() -> None:
    cosine, positive, allowed, weight = _case(1)
    cosine.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda c: contrastive_loss(c, positive, allowed, weight, 0.5), (cosine,)
    )
    assert torch.autograd.gradcheck(lambda c: mse_loss(c[:, 0], weight), (cosine,))
    assert torch.autograd.gradcheck(lambda c: equation_1(c[:, 0], c[:, 1:], weight)[0], (cosine,))
    assert torch.autograd.gradcheck(lambda c: equation_1(c[:, 0], c[:, 1:], weight)[1], (cosine,))


def test_no_gradient_flows_through_the_cvr() -> None:
    cosine, positive, allowed, weight = _case(2)
    cosine.requires_grad_()
    weight.requires_grad_()
    loss = contrastive_loss(cosine, positive, allowed, weight, 0.1) + mse_loss(cosine[:, 0], weight)
    loss.backward()
    assert weight.grad is None
    assert cosine.grad is not None


def test_forbidden_negatives_get_no_gradient() -> None:
    cosine, positive, allowed, weight = _case(3)
    cosine.requires_grad_()
    contrastive_loss(cosine, positive, allowed, weight, 0.1).backward()
    assert cosine.grad is not None
    outside = ~allowed
    outside[torch.arange(5), positive] = False
    assert (cosine.grad[outside] == 0).all()
    assert (cosine.grad[torch.arange(5), positive] < 0).all()


def test_limits_of_the_weight() -> None:
    cosine, positive, allowed, weight = _case(4)
    given = contrastive_loss(cosine, positive, allowed, weight, 0.1)
    doubled = contrastive_loss(cosine, positive, allowed, 2 * weight, 0.1)
    assert doubled.item() == pytest.approx(given.item())  # divided by the sum of weights
    only = torch.zeros_like(weight)
    only[2] = 0.3
    one = contrastive_loss(cosine[2:3], positive[2:3], allowed[2:3], only[2:3], 0.1)
    assert contrastive_loss(cosine, positive, allowed, only, 0.1).item() == pytest.approx(
        one.item()
    )
    assert contrastive_loss(cosine, positive, allowed, torch.zeros_like(weight), 0.1).item() == 0.0


def test_without_any_negative_there_is_nothing_to_learn() -> None:
    cosine, positive, _, weight = _case(5)
    nothing = torch.zeros(5, 9, dtype=torch.bool)
    assert contrastive_loss(cosine, positive, nothing, weight, 0.05).item() == 0.0


def test_mse_equals_the_loop() -> None:
    cosine, _, _, weight = _case(6)
    got = mse_loss(cosine[:, 0], weight).item()
    assert got == pytest.approx(
        sum((w - c) ** 2 for w, c in zip(weight, cosine[:, 0], strict=True)) / 5
    )


def test_equation_1_is_what_the_paper_prints() -> None:
    cosine, _, _, cvr = _case(7)
    contrast, squares = equation_1(cosine[:, 0], cosine[:, 1:], cvr)
    total = other = 0.0
    for b in range(5):
        bottom = sum(math.exp(c) for c in cosine[b, 1:].tolist())
        total += cvr[b].item() * math.exp(cosine[b, 0].item()) / bottom
        other += (cvr[b].item() - cosine[b, 0].item()) ** 2
    assert contrast.item() == pytest.approx(total)
    assert squares.item() == pytest.approx(other)


def test_minimising_equation_1_as_printed_parts_a_converting_pair() -> None:
    """Why A22 departs from the paper: the printed sum falls as the positive's score falls."""
    cosine, positive, allowed, cvr = _case(8)
    cosine.requires_grad_()
    printed = equation_1(cosine[:, 0], cosine[:, 1:], cvr)[0]
    (gradient,) = torch.autograd.grad(printed, cosine)
    assert (gradient[:, 0] > 0).all()  # descent makes the positive's cosine smaller
    ours = contrastive_loss(cosine, torch.zeros_like(positive), allowed, cvr, 0.05)
    (gradient,) = torch.autograd.grad(ours, cosine)
    assert (gradient[:, 0] <= 0).all()
