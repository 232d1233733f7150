"""The EBR's losses against loops, in float64, at their limits; and eq. (1) as printed (A22)."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from csrm_tasks.retrieval.losses import (
    contrastive_loss,
    equation_1,
    false_negatives,
    margin_mse_loss,
    mse_loss,
    within_query_kl,
)


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


def _lists(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Cosines and CVRs of 6 queries and 7 titles: most not scored, one query with 1, one with 0."""
    generator = torch.Generator().manual_seed(seed)
    cosine = torch.rand(6, 7, generator=generator, dtype=torch.float64) * 2 - 1
    teacher = torch.rand(6, 7, generator=generator, dtype=torch.float64)
    teacher[torch.rand(6, 7, generator=generator) < 0.5] = torch.nan
    teacher[3], teacher[4, 1:], teacher[4, 0] = torch.nan, torch.nan, 0.4
    return cosine, teacher


def _margin_loop(cosine: Tensor, teacher: Tensor) -> float:
    found = []
    for c, t in zip(cosine.tolist(), teacher.tolist(), strict=True):
        scored = [i for i, value in enumerate(t) if not math.isnan(value)]
        found += [((c[i] - c[j]) - (t[i] - t[j])) ** 2 for i in scored for j in scored if i < j]
    return sum(found) / len(found)


def _kl_loop(cosine: Tensor, teacher: Tensor, temperature: float) -> float:
    found = []
    for c, t in zip(cosine.tolist(), teacher.tolist(), strict=True):
        scored = [i for i, value in enumerate(t) if not math.isnan(value)]
        if len(scored) < 2:
            continue
        p, q = (
            [math.exp(t[i] / temperature) for i in scored],
            [math.exp(c[i] / temperature) for i in scored],
        )
        found.append(
            sum(a / sum(p) * math.log(a / sum(p) / (b / sum(q))) for a, b in zip(p, q, strict=True))
        )
    return sum(found) / len(found)


@pytest.mark.parametrize("seed", [0, 1])
def test_losses_within_a_query_equal_their_loops(seed: int) -> None:
    case = _lists(seed)
    assert margin_mse_loss(*case).item() == pytest.approx(_margin_loop(*case), rel=1e-12)
    for temperature in (0.05, 1.0):
        expected = pytest.approx(_kl_loop(*case, temperature), rel=1e-12)
        assert within_query_kl(*case, temperature).item() == expected


def test_gradients_within_a_query_are_right_and_only_of_what_was_scored() -> None:
    cosine, teacher = _lists(2)
    cosine.requires_grad_()
    teacher.requires_grad_()
    assert torch.autograd.gradcheck(lambda c: margin_mse_loss(c, teacher), (cosine,))
    assert torch.autograd.gradcheck(lambda c: within_query_kl(c, teacher, 0.5), (cosine,))
    lone = teacher.isnan() | ((~teacher.isnan()).sum(dim=1, keepdim=True) < 2)
    for loss in (margin_mse_loss(cosine, teacher), within_query_kl(cosine, teacher, 0.5)):
        (gradient,) = torch.autograd.grad(loss, cosine)
        assert (gradient[lone] == 0).all()
        assert (gradient[~lone] != 0).all()
        assert gradient.sum(dim=1).abs().max() < 1e-12  # a query's cosines may all move together
    assert not margin_mse_loss(cosine.detach(), teacher).requires_grad


def test_limits_of_the_losses_within_a_query() -> None:
    cosine, teacher = _lists(3)
    right = teacher.nan_to_num(0.7) + torch.arange(6)[:, None] / 10  # right but for a constant
    assert margin_mse_loss(right, teacher).item() == pytest.approx(0.0, abs=1e-15)
    assert within_query_kl(right, teacher, 0.05).item() == pytest.approx(0.0, abs=1e-12)
    for nothing in (torch.full_like(teacher, torch.nan), teacher[3:5]):
        own = cosine[: len(nothing)].clone().requires_grad_()
        for loss in (margin_mse_loss(own, nothing), within_query_kl(own, nothing, 0.05)):
            assert loss.item() == 0.0
            (gradient,) = torch.autograd.grad(loss, own)
            assert (gradient == 0).all()
    sharp = within_query_kl(cosine.float(), teacher.float(), 1e-3)  # no overflow, no NaN
    assert sharp.isfinite()


def test_false_negatives_are_those_above_a_share_of_the_positive() -> None:
    cosine, positive, _, _ = _case(9)
    for share in (0.0, 0.5, 1.0):
        found = false_negatives(cosine, positive, share)
        for b, own in enumerate(positive.tolist()):
            bar = cosine[b, own].item()
            for p in range(9):
                expected = p != own and bar > 0 and cosine[b, p].item() > share * bar
                assert found[b, p].item() is expected
    assert false_negatives(cosine, positive, 0.5).any()
    assert not false_negatives(-cosine.abs(), positive, 0.5).any()


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
