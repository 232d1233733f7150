"""Training: resumes to the same end after SIGKILL, stops on NaN with the batch named (A5)."""

from __future__ import annotations

import logging
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from safetensors.torch import load_file

from csrm_tasks.errors import ArtifactError
from csrm_tasks.llm.training import finetune as finetune_module
from csrm_tasks.llm.training import train as train_module
from csrm_tasks.llm.training.inputs import FinetuneInputs
from csrm_tasks.llm.training.mixture import Draw
from csrm_tasks.llm.training.train import TrainingError
from csrm_tasks.markets import MarketConfig
from tests.llm_fixtures import make_base, make_given, make_market, run_as
from tests.warm import warm_models

STEPS = 12


@pytest.fixture
def market(tmp_path: Path) -> MarketConfig:
    return make_market(make_base(tmp_path / "base"), steps=STEPS)


@pytest.fixture
def given(tmp_path: Path) -> FinetuneInputs:
    return make_given(tmp_path)


# Trains with a checkpoint after every step and kills itself inside the step after the seventh.
CHILD = """
import os, signal, sys
from pathlib import Path
import torch
from csrm_tasks.errors import ArtifactError
from csrm_tasks.llm.training import finetune as module
from csrm_tasks.llm.training.mixture import Draw
from csrm_tasks.markets import MarketConfig

torch.set_num_threads(1)
market, folder = MarketConfig.model_validate_json(sys.argv[1]), Path(sys.argv[2])
train, loss = module.train, Draw.loss

def killing_loss(draw):
    if (folder / "work-cut" / "checkpoint-7").exists():
        os.kill(os.getpid(), signal.SIGKILL)
    return loss(draw)

module.train = lambda *a: train(*a[:-1], 0.0)
Draw.loss = killing_loss
given = module.FinetuneInputs(folder / "snapshot", folder / "rqa", None, "plain", 0)
(folder / "out-cut").mkdir()
module.finetune(market, given, folder / "out-cut", folder / "work-cut")
"""


def test_training_lowers_the_loss_of_every_task(
    market: MarketConfig, given: FinetuneInputs, tmp_path: Path
) -> None:
    found = run_as("a", market, given, tmp_path, steps=60, evaluate_every=10)
    for name in ("loss_relevance", "loss_mt", "loss_cvr"):
        values = [v for _, v in found.curves[name]]
        assert values[-1] < values[0]
    assert found.facts["best_step"] in [s for s, _ in found.curves["dev_micro_f1"]]
    assert found.facts["dev_micro_f1"] == max(v for _, v in found.curves["dev_micro_f1"])
    assert found.facts["dev_locale"] == "ko-KR"  # no target labels yet
    scores = pl.read_parquet(tmp_path / "out-a" / "dev_scores.parquet")
    predicted = scores.select(pl.concat_list("p0", "p1", "p2").list.arg_max()).to_series()
    assert (predicted == scores["grade"]).mean() == found.facts["dev_micro_f1"]


def test_a_killed_run_resumes_to_what_an_uninterrupted_one_finds(
    market: MarketConfig,
    given: FinetuneInputs,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    whole = run_as("whole", market, given, tmp_path)
    child = warm_models().run(CHILD, market.model_dump_json(), str(tmp_path), env=os.environ)
    assert child.returncode == -signal.SIGKILL, child.stderr
    (tmp_path / "out-cut").rmdir()  # nothing was written
    with caplog.at_level(logging.INFO, "csrm"):
        resumed = run_as("cut", market, given, tmp_path)
    assert "training resumes at step 7" in caplog.text
    assert resumed.curves == whole.curves
    a, b = (
        load_file(tmp_path / f"out-{name}" / "adapter" / "adapter_model.safetensors")
        for name in ("whole", "cut")
    )
    assert a.keys() == b.keys()
    assert all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("name", ["adapter", "best", "optimizer"])
def test_a_truncated_checkpoint_is_passed_over_for_the_one_before_it(
    market: MarketConfig,
    given: FinetuneInputs,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    whole = run_as("whole", market, given, tmp_path)
    real = finetune_module.train
    monkeypatch.setattr(finetune_module, "train", lambda *a: real(*a[:-1], 0.0))
    step = train_module._Run.step

    def stop_at_9(self: train_module._Run, due: bool) -> bool:
        if self.progress.step == 9:
            raise KeyboardInterrupt
        return step(self, due)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(train_module._Run, "step", stop_at_9)
        run_as("cut", market, given, tmp_path)
    work = tmp_path / "work-cut"
    assert sorted(p.name for p in work.iterdir()) == ["checkpoint-8", "checkpoint-9"]
    damaged = work / "checkpoint-9" / f"{name}.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-40])
    (tmp_path / "out-cut").rmdir()
    with caplog.at_level(logging.INFO, "csrm"):
        resumed = run_as("cut", market, given, tmp_path)
    assert "checkpoint-9 cannot be used" in caplog.text
    assert "training resumes at step 8" in caplog.text
    assert resumed.curves == whole.curves


def test_checkpoints_of_which_none_is_whole_stop_the_training(
    market: MarketConfig, given: FinetuneInputs, tmp_path: Path
) -> None:
    work = tmp_path / "work-a" / "checkpoint-5"
    work.mkdir(parents=True)
    (work / "progress.json").write_text('{"progress": {"step"')
    with pytest.raises(ArtifactError, match=r"work-a: no checkpoint .*checkpoint-5.*delete"):
        run_as("a", market, given, tmp_path)


def test_a_loss_that_is_no_number_stops_with_the_batch_named_and_keeps_the_last_good_state(
    market: MarketConfig, given: FinetuneInputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, seen = Draw.loss, []

    def loss(draw: Draw) -> tuple[torch.Tensor, int]:
        value, tokens = real(draw)
        seen.append(draw.sample_names())
        bad = draw.task.name == "cvr" and len(seen) == 3 * 6
        return (value * float("nan") if bad else value), tokens

    monkeypatch.setattr(Draw, "loss", loss)
    with pytest.raises(TrainingError, match=r"nan at step 5, task cvr") as caught:
        run_as("a", market, given, tmp_path)
    assert seen[-1][0] in str(caught.value)
    monkeypatch.undo()
    assert (tmp_path / "work-a" / "checkpoint-5").exists()
    (tmp_path / "out-a").rmdir()
    assert run_as("a", market, given, tmp_path).facts["steps"] == STEPS  # the cause is gone


def test_training_stops_when_dev_no_longer_improves(
    market: MarketConfig, given: FinetuneInputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([0.3, 0.5, 0.5, 0.4, 0.9])
    judge = finetune_module.Judge
    monkeypatch.setattr(judge, "score", lambda self: train_module.DevScore(next(scores, 0.0), 1.0))
    found = run_as("a", market, given, tmp_path, evaluate_every=2, patience=2)
    assert (found.facts["steps"], found.facts["best_step"]) == (8, 4)


def test_dev_is_not_scored_again_where_the_last_state_is_the_best(
    market: MarketConfig, given: FinetuneInputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge, scored = finetune_module.Judge, []

    class Counting(judge):  # type: ignore[misc, valid-type]
        def probabilities(self) -> Any:
            scored.append(len(self._rows))
            return super().probabilities()

    class Forgetful(Counting):
        last = property(lambda self: None, lambda self, value: None)

    for name, kind in (("once", Counting), ("again", Forgetful)):
        monkeypatch.setattr(finetune_module, "Judge", kind)
        run_as(name, market, given, tmp_path, steps=4, evaluate_every=4)
    assert len(scored) == 1 + 2
    once, again = (
        pl.read_parquet(tmp_path / f"out-{name}" / "dev_scores.parquet")
        for name in ("once", "again")
    )
    assert once.equals(again)


def test_prompts_that_were_cut_are_counted_and_reported(
    market: MarketConfig, given: FinetuneInputs, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found = run_as("a", market, given, tmp_path, max_length=30, steps=1, evaluate_every=1)
    assert found.facts["truncated"] > 0
    said = f"{found.facts['truncated']} times a prompt was longer than llm.max_length (30 tokens)"
    assert said in caplog.text


def test_another_seed_is_another_run(
    market: MarketConfig, given: FinetuneInputs, tmp_path: Path
) -> None:
    a = run_as("a", market, given, tmp_path)
    other = market.model_copy(update={"seed": 1})
    b = run_as("b", other, replace(given, arm="b"), tmp_path)
    assert a.curves["loss_relevance"] != b.curves["loss_relevance"]
