"""Eq. (4) against a loop, its gradient, and its limits."""

from __future__ import annotations

import math

import pytest
import torch

from csrm_tasks.towers.losses import head_logits, kd_loss, towers_loss


def slow(logits: torch.Tensor, target: torch.Tensor) -> float:
    """Eq. (4) as printed, pair by pair, teacher as target, divided by the number of pairs."""
    total = 0.0
    for z, t in zip(logits.flatten().tolist(), target.flatten().tolist(), strict=True):
        p = 1.0 / (1.0 + math.exp(-z))
        total -= t * math.log(p) + (1.0 - t) * math.log(1.0 - p)
    return total / logits.numel()


def test_equals_the_printed_sum() -> None:
    torch.manual_seed(0)
    logits, target = torch.randn(17, dtype=torch.float64) * 4, torch.rand(17, dtype=torch.float64)
    assert kd_loss(logits, target).item() == pytest.approx(slow(logits, target), abs=1e-12)


def test_probability_is_sigmoid_of_scaled_cosine() -> None:
    cosine = torch.tensor([[-1.0, 1.0], [0.25, 0.0]])
    found = torch.sigmoid(head_logits(cosine, torch.tensor([8.0, 2.0]), torch.tensor([0.0, -1.0])))
    for i in range(2):
        for head, (s, b) in enumerate(((8.0, 0.0), (2.0, -1.0))):
            wanted = 1.0 / (1.0 + math.exp(-(s * cosine[i, head].item() + b)))
            assert found[i, head].item() == pytest.approx(wanted, abs=1e-6)


def test_defect_head_learns_not_irrelevant() -> None:
    logits = torch.tensor([[0.3, 2.0], [-1.0, -3.0]], dtype=torch.float64)
    exact, irrelevant = (torch.tensor(x, dtype=torch.float64) for x in ([0.9, 0.1], [0.0, 0.8]))
    wanted = slow(logits[:, 0], exact) + slow(logits[:, 1], 1 - irrelevant)
    assert towers_loss(logits, exact, irrelevant).item() == pytest.approx(wanted, abs=1e-12)


def test_gradient() -> None:
    torch.manual_seed(1)
    logits = torch.randn(5, 2, dtype=torch.float64, requires_grad=True)
    exact, irrelevant = torch.rand(2, 5, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda z: towers_loss(z, exact, irrelevant), (logits,))


def test_least_where_student_is_teacher_and_finite_far_out() -> None:
    target = torch.tensor([0.2, 0.7], dtype=torch.float64)
    z = torch.logit(target).requires_grad_()
    (gradient,) = torch.autograd.grad(kd_loss(z, target), z)
    assert gradient.abs().max().item() < 1e-12
    assert torch.isfinite(kd_loss(torch.tensor([-500.0, 500.0]), torch.tensor([1.0, 0.0])))
