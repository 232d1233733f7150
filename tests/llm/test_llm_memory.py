"""One optimizer step in less memory: micro-batches, checkpointed layers, out of memory (A6)."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from csrm_tasks.llm.network import model as model_module
from csrm_tasks.llm.prompt.batching import Epoch
from csrm_tasks.llm.training import finetune as finetune_module
from csrm_tasks.llm.training.accumulate import passes
from csrm_tasks.llm.training.finetune import Finetuned
from csrm_tasks.llm.training.inputs import FinetuneInputs
from csrm_tasks.llm.training.mixture import Draw
from csrm_tasks.llm.training.train import OutOfMemoryError
from csrm_tasks.markets import MarketConfig
from tests.llm_fixtures import make_base, make_given, make_market, run_as


@pytest.fixture(autouse=True)
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Train in fp64: Adam's first steps make a gradient's rounding as large as the gradient."""
    monkeypatch.setattr(model_module, "choose_dtype", lambda device, width: torch.float64)


@pytest.fixture
def market(tmp_path: Path) -> MarketConfig:
    lora = {"r": 4, "alpha": 8, "dropout": 0.0}  # a mask would depend on how a batch is cut
    return make_market(make_base(tmp_path / "base"), steps=6, evaluate_every=3, lora=lora)


@pytest.fixture
def given(tmp_path: Path) -> FinetuneInputs:
    return make_given(tmp_path)


def assert_equal_runs(folder: Path, a: Finetuned, b: Finetuned) -> None:
    """The runs called a and b have the same curves and adapters, to the fp32 head's rounding."""
    assert a.curves.keys() == b.curves.keys()
    for name, curve in a.curves.items():
        assert np.allclose(curve, b.curves[name], rtol=1e-4, atol=1e-5), name
    one, two = (
        load_file(folder / f"out-{name}" / "adapter" / "adapter_model.safetensors")
        for name in ("a", "b")
    )
    assert one.keys() == two.keys()
    for key in one:
        assert torch.allclose(one[key], two[key], rtol=1e-3, atol=2e-5), key


@pytest.mark.parametrize(
    "how", [{"micro_batch": 3}, {"micro_batch": 1}, {"gradient_checkpointing": True}]
)
def test_a_step_in_less_memory_is_the_same_step(
    market: MarketConfig, given: FinetuneInputs, tmp_path: Path, how: dict[str, object]
) -> None:
    whole = run_as("a", market, given, tmp_path)
    cut = run_as("b", market, given, tmp_path, **how)
    assert_equal_runs(tmp_path, whole, cut)
    assert cut.facts["micro_batch"] == how.get("micro_batch")
    assert cut.facts["halved_at"] is None


def failing(monkeypatch: pytest.MonkeyPatch, fails: Iterator[bool]) -> list[int]:
    """Let passes run out of memory as ``fails`` says; return the sizes that were tried."""
    real, sizes = Draw.loss, []

    def loss(draw: Draw) -> tuple[torch.Tensor, int]:
        sizes.append(len(draw.at))
        if next(fails):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return real(draw)

    monkeypatch.setattr(Draw, "loss", loss)
    return sizes


def test_out_of_memory_is_tried_again_with_half_the_samples_a_pass(
    market: MarketConfig,
    given: FinetuneInputs,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    whole = run_as("a", market, given, tmp_path)
    passes_a_step = 3
    fails = (n == 2 * passes_a_step + 1 for n in range(1000))  # in the third step, its second task
    sizes = failing(monkeypatch, fails)
    found = run_as("b", market, given, tmp_path)
    assert_equal_runs(tmp_path, whole, found)
    largest = max(sizes[:passes_a_step])
    assert found.facts["halved_at"] == 2
    assert found.facts["micro_batch"] == -(-largest // 2) == max(sizes[2 * passes_a_step + 2 :])
    assert (
        f"step 2 with passes of {largest} samples; from here on {-(-largest // 2)}," in caplog.text
    )
    assert found.params["micro_batch"] is None  # what was asked for


def test_a_second_time_out_of_memory_is_an_error_that_keeps_the_state(
    market: MarketConfig,
    given: FinetuneInputs,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with monkeypatch.context() as patch:
        failing(patch, (n in (4, 20) for n in range(1000)))
        with pytest.raises(OutOfMemoryError, match=r"step \d with passes of 6 .*llm.micro_batch"):
            run_as("b", market, given, tmp_path)
    with caplog.at_level(logging.INFO, "csrm"):
        found = run_as("b", market, given, tmp_path)
    assert "training resumes at step" in caplog.text
    assert found.facts["steps"] == 6
    assert found.facts["halved_at"] == 1


def test_other_runtime_errors_are_not_taken_for_a_lack_of_memory(
    market: MarketConfig, given: FinetuneInputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loss(draw: Draw) -> tuple[torch.Tensor, int]:
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(Draw, "loss", loss)
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        run_as("a", market, given, tmp_path)


@pytest.mark.parametrize("processes", [1, 2, 3, 8])
@pytest.mark.parametrize("size", [1, 3, 64])
def test_pieces_of_a_batch_are_the_batch_and_every_process_makes_as_many_passes(
    processes: int, size: int
) -> None:
    epoch = Epoch(np.arange(40), np.ones(40, np.int64), np.zeros(40, np.int8))
    rng = np.random.default_rng(0)
    draws = [Draw(None, 1.0, epoch, rng.permutation(40)[:n]) for n in (40, 4, 20, 1)]  # type: ignore[arg-type]
    parts = [[*passes(draws, size, rank, processes)] for rank in range(processes)]
    assert len({tuple(p.task for p in own) for own in parts}) == 1
    for task, draw in enumerate(draws):
        own = [p for of_rank in parts for p in of_rank if p.task == task]
        assert all(0 < len(p.draw.at) <= size for p in own)
        counted = np.concatenate([p.draw.at for p in own if p.share])
        assert sorted(counted) == sorted(draw.at)
        assert sum(p.share for p in own) == pytest.approx(1.0)
        for p in own:
            assert p.share in (0.0, len(p.draw.at) / len(draw.at))


def test_finetune_checkpoints_layers_only_where_asked(
    market: MarketConfig, given: FinetuneInputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    real = finetune_module.train

    def spy(model, *more):  # type: ignore[no-untyped-def]
        layers = model.causal.base_model.layers
        seen.append([layer.gradient_checkpointing for layer in layers])
        return real(model, *more)

    monkeypatch.setattr(finetune_module, "train", spy)
    run_as("a", market, given, tmp_path, steps=1, evaluate_every=1)
    run_as("b", market, given, tmp_path, steps=1, evaluate_every=1, gradient_checkpointing=True)
    assert seen == [[False, False], [True, False]]
