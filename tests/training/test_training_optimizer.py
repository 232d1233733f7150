"""The encoders' optimiser equals torch's dense AdamW; rows that nobody reads are left alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from csrm_tasks.sections import Rates
from csrm_tasks.training import optimizer as module
from csrm_tasks.training.checkpoints import Checkpoints
from csrm_tasks.training.optimizer import EncoderOptimizer
from csrm_tasks.training.schedule import Schedule
from csrm_tasks.training.vocabulary import BETAS, EPS, MISSED, LazyTable

WIDTH = 3


@dataclass(frozen=True)
class Plan:
    """For each step: its rate, the rows read with a gradient, and those only looked at before."""

    size: int
    rates: list[float]
    touched: list[list[int]]
    looked: list[list[int]]
    scales: list[int]  # gradients of step s are of the order of 10 to this
    decay: float
    seed: int

    def values(self, step: int) -> Tensor:
        """What the gradient of each reading is (n, WIDTH), repeated readings added."""
        generator = torch.Generator().manual_seed(self.seed * 1000 + step)
        normal = torch.randn(len(self.touched[step]), WIDTH, generator=generator).double()
        return normal * 10.0 ** self.scales[step]


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    size, steps = draw(st.integers(1, 9)), draw(st.integers(1, 40))

    def each(one: st.SearchStrategy[object]) -> st.SearchStrategy[list]:
        return st.lists(one, min_size=steps, max_size=steps)

    rows = st.lists(st.integers(0, size - 1), max_size=5)
    return Plan(
        size,
        draw(each(st.floats(0.0, 0.2))),
        draw(each(rows)),
        draw(each(rows)),
        draw(each(st.integers(-10, 2))),
        draw(st.sampled_from([0.0, 0.01, 0.7])),
        draw(st.integers(0, 99)),
    )


def start(plan: Plan, dtype: torch.dtype) -> nn.Embedding:
    torch.manual_seed(plan.seed)
    return nn.Embedding(plan.size, WIDTH).to(dtype)


def dense(plan: Plan, dtype: torch.dtype) -> tuple[Tensor, list[Tensor]]:
    """The slow way: torch's AdamW on the whole table; returns it, and what was looked at."""
    table = start(plan, dtype)
    optimizer = torch.optim.AdamW(
        table.parameters(), lr=0.0, betas=BETAS, eps=EPS, weight_decay=plan.decay
    )
    seen = []
    for step, rate in enumerate(plan.rates):
        seen.append(table(torch.tensor(plan.looked[step], dtype=torch.long)).detach())
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        read = table(torch.tensor(plan.touched[step], dtype=torch.long))
        (read * plan.values(step).to(dtype)).sum().backward()
        optimizer.step()
    return table.weight.detach(), seen


def lazy(plan: Plan, dtype: torch.dtype) -> tuple[Tensor, list[Tensor]]:
    """The same by rows."""
    table = start(plan, dtype)
    rows = LazyTable(table, lambda s: plan.rates[s] if s < len(plan.rates) else 0.0, plan.decay)
    seen = []
    for step in range(len(plan.rates)):
        seen.append(table(torch.tensor(plan.looked[step], dtype=torch.long)).detach())
        read = table(torch.tensor(plan.touched[step], dtype=torch.long))
        (read * plan.values(step).to(dtype)).sum().backward()
        taken = rows.take()
        assert taken is not None
        assert taken[0].tolist() == sorted(set(plan.touched[step]))
        rows.step(*taken)
    rows.release()
    assert not table.sparse
    return table.weight.detach(), seen


@settings(max_examples=300, deadline=None)
@given(plan=plans())
def test_rows_equal_the_dense_optimiser_whenever_they_are_read(plan: Plan) -> None:
    found, seen = lazy(plan, torch.float64)
    wanted, before = dense(plan, torch.float64)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-10)
    for ours, theirs in zip(seen, before, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)


@settings(max_examples=100, deadline=None)
@given(plan=plans())
def test_in_fp32_they_differ_by_rounding(plan: Plan) -> None:
    found, _ = lazy(plan, torch.float32)
    wanted, _ = dense(plan, torch.float32)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("scale", [-9, -2])  # 1e-9: where eps counts
@pytest.mark.parametrize("gap", [MISSED - 1, MISSED + 1, 700])
def test_a_row_that_is_read_once_in_hundreds_of_steps(scale: int, gap: int) -> None:
    steps = 3 + gap
    touched = [[0, 1], [1], *[[2]] * gap, [0, 1]]
    rates = [Schedule(0.01, steps, warmup=steps // 3).rate(s) for s in range(steps)]
    plan = Plan(4, rates, touched, [[]] * steps, [scale] * steps, 0.01, 5)
    found, _ = lazy(plan, torch.float64)
    wanted, _ = dense(plan, torch.float64)
    torch.testing.assert_close(found, wanted, rtol=1e-7, atol=1e-8)
    single, _ = lazy(plan, torch.float32)
    torch.testing.assert_close(single, wanted.float(), rtol=1e-5, atol=1e-6)


class Small(nn.Module):
    """A BERT with a head, in double precision: no gradient is noise."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=60, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
            intermediate_size=24, max_position_embeddings=16, pad_token_id=0,
        )  # fmt: skip
        self.encoder = BertModel(config, add_pooling_layer=False)
        self.head = nn.Linear(16, 2)
        self.scale = nn.Parameter(torch.tensor(3.0))
        self.double()

    def loss(self, step: int) -> Tensor:
        """In two passes, as a batch is encoded in chunks of like length."""
        rng = np.random.default_rng(step)
        torch.manual_seed(step)
        wanted = torch.randn(6, 2).double()
        passes = [self(torch.from_numpy(rng.zipf(1.5, (6, 5 + n)) % 60)) for n in range(2)]
        return sum((self.scale * p - wanted).square().mean() for p in passes)

    def forward(self, ids: Tensor) -> Tensor:
        states = self.encoder(input_ids=ids, attention_mask=(ids != 0).long()).last_hidden_state
        return self.head(states.mean(dim=1))


SCHEDULE = Schedule(0.01, 25, warmup=3)
RATES = Rates(head=3.0, encoder=0.5, vocabulary=2.0)


def plain(model: Small, steps: int) -> None:
    """The slow way: one dense AdamW whose groups are written out."""
    word = model.encoder.embeddings.word_embeddings.weight
    rest = [p for p in model.encoder.parameters() if p is not word]
    groups = [
        {"params": [model.scale], "share": 100.0, "weight_decay": 0.0},
        {"params": list(model.head.parameters()), "share": 3.0},
        {"params": rest, "share": 0.5},
        {"params": [word], "share": 2.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1.0, weight_decay=0.01)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = SCHEDULE.rate(step) * group["share"]
        optimizer.zero_grad()
        model.loss(step).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()


def ours(model: Small) -> EncoderOptimizer:
    apart = {"params": [model.scale], "weight_decay": 0.0, "share": 100.0}
    return EncoderOptimizer(model, SCHEDULE, RATES, [apart])


@pytest.fixture(params=["dense", "lazy"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "lazy":
        monkeypatch.setattr(module, "LAZY_FROM", 1)
    return str(request.param)


def test_a_training_equals_one_dense_adamw_with_its_groups_written_out(path: str) -> None:
    found, wanted = Small(), Small()
    optimizer = ours(found)
    kinds = []
    for step in range(25):
        found.loss(step).backward()
        gradient = found.encoder.embeddings.word_embeddings.weight.grad
        assert gradient is not None
        kinds.append(gradient.is_sparse)
        optimizer.update(step)
        assert all(p.grad is None for p in found.parameters())
    assert set(kinds) == {path == "lazy"}
    optimizer.finish()
    plain(wanted, 25)
    for (name, ours_), theirs in zip(found.named_parameters(), wanted.parameters(), strict=True):
        torch.testing.assert_close(ours_, theirs, rtol=1e-8, atol=1e-9, msg=name)
    found.loss(0).backward()  # a plain model again
    assert not found.encoder.embeddings.word_embeddings.weight.grad.is_sparse


def test_a_small_table_is_trained_to_the_last_bit_as_by_torch() -> None:
    found, wanted = Small().float(), Small().float()
    optimizer = EncoderOptimizer(found, SCHEDULE)
    reference = torch.optim.AdamW(wanted.parameters(), lr=1.0, weight_decay=0.01)
    for step in range(5):
        found.head(torch.ones(16)).sum().backward()
        wanted.head(torch.ones(16)).sum().backward()
        nn.utils.clip_grad_norm_(wanted.parameters(), 1.0)
        reference.param_groups[0]["lr"] = SCHEDULE.rate(step)
        reference.step()
        reference.zero_grad()
        optimizer.update(step)
    for one, other in zip(found.parameters(), wanted.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("killed", range(0, 12, 3))
def test_killed_after_any_step_it_ends_in_the_same_bits(
    path: str, killed: int, tmp_path: Path
) -> None:
    def train(model: Small, until: int, saved_at: Callable[[int], bool]) -> EncoderOptimizer:
        optimizer = ours(model)
        checkpoints = Checkpoints(tmp_path / "c.safetensors")
        begin = (checkpoints.restore(model, optimizer) or {"step": 0})["step"]
        for step in range(begin, until):
            model.loss(step).backward()
            optimizer.update(step)
            if saved_at(step):
                checkpoints.save(model, optimizer, {"step": step + 1})
        return optimizer

    whole, resumed = Small(), Small()
    train(whole, 14, lambda _: False).finish()
    train(Small(), killed + 1, lambda step: step % 2 == killed % 2)
    train(resumed, 14, lambda _: False).finish()
    for one, other in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)


def test_rows_that_nobody_reads_are_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LAZY_FROM", 1)
    model = Small()
    weight = model.encoder.embeddings.word_embeddings.weight
    before = weight.detach().clone()
    optimizer = ours(model)
    for step in range(4):
        model(torch.tensor([[3, 7, 7]])).sum().backward()
        optimizer.update(step)
    others = [r for r in range(60) if r not in (3, 7)]
    assert torch.equal(weight[others], before[others])
    optimizer.catch_up()
    shrunk = math.prod(1 - 2.0 * SCHEDULE.rate(s) * 0.01 for s in range(4))
    torch.testing.assert_close(weight.detach()[others], before[others] * shrunk)


class Tied(Small):
    """Its word embeddings are read past the embedding as well, as an output layer would."""

    def loss(self, step: int) -> Tensor:
        return super().loss(step) + self.encoder.embeddings.word_embeddings.weight.square().sum()


def test_a_table_with_another_use_has_a_dense_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LAZY_FROM", 1)
    found, wanted = Tied(), Tied()
    optimizer = ours(found)
    for step in range(4):
        found.loss(step).backward()
        optimizer.update(step)
    optimizer.finish()
    plain(wanted, 4)
    for one, other in zip(found.parameters(), wanted.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-9)
