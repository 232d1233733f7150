"""Fine-tuning a LoRA adapter on the task mixture, so that it may be killed at any moment (A5, A6).

AdamW with decoupled decay, linear warm-up and linear decay to zero, gradients clipped; the best
adapter on dev is kept; training stops when dev has not improved for ``patience`` evaluations.
Everything random is a function of (seed, step) or in the checkpoint, so a resumed run ends where
an uninterrupted one ends.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from csrm_tasks.errors import CsrmError
from csrm_tasks.llm.checkpoint import (
    Curves,
    Progress,
    Tensors,
    load_checkpoint,
    save_checkpoint,
)
from csrm_tasks.llm.mixture import Draw, Mixture
from csrm_tasks.llm.model import Model, adapter_state
from csrm_tasks.sections import Llm

log = logging.getLogger("csrm")

CLIP = 1.0  # largest gradient norm
REPORT_SECONDS = 15.0


class TrainingError(CsrmError):
    """Training diverged; the message names the step, the task and samples of the batch."""


@dataclass(frozen=True)
class DevScore:
    """Quality on dev."""

    micro_f1: float
    log_loss: float


@dataclass(frozen=True)
class TrainResult:
    """The best adapter on dev and how it came about."""

    adapter: Tensors
    best_step: int
    dev: DevScore
    progress: Progress

    @property
    def curves(self) -> Curves:
        """Values by step: loss per task, dev micro-F1 and log loss."""
        return self.progress.curves


def learning_rate(step: int, config: Llm) -> float:
    """Return the rate of 0-based ``step``: linear warm-up, then linear decay to zero (A5)."""
    warmup = max(1, round(config.warmup * config.steps))
    if step < warmup:
        return config.lr * (step + 1) / warmup
    return config.lr * (config.steps - step) / max(1, config.steps - warmup)


def train(
    model: Model,
    mixture: Mixture,
    config: Llm,
    evaluate: Callable[[], DevScore],
    work: Path,
    checkpoint_seconds: float,
) -> TrainResult:
    """Train the adapter of ``model`` and return the best one on dev.

    Checkpoints go below ``work`` and are continued from. Raises :class:`TrainingError` when a loss
    or gradient is no number; the checkpoint before that step is kept.
    """
    run = _Run(model, mixture, config, work)
    run.resume()
    started = saved = time.monotonic()
    before = run.progress.seconds
    while run.progress.step < config.steps and run.progress.waited < config.patience:
        run.step()
        done = run.progress.step
        run.progress.seconds = before + time.monotonic() - started
        if done % config.evaluate_every == 0 or done == config.steps:
            run.judge(evaluate())
        if time.monotonic() - saved >= checkpoint_seconds:
            run.save()
            saved = time.monotonic()
    assert run.progress.best is not None  # the last step is always evaluated
    f1, minus_loss = run.progress.best
    return TrainResult(run.best, run.progress.best_step, DevScore(f1, -minus_loss), run.progress)


class _Run:
    """The state of one training run."""

    def __init__(self, model: Model, mixture: Mixture, config: Llm, work: Path) -> None:
        self.model, self.mixture, self.config, self.work = model, mixture, config, work
        self.parameters = [p for p in model.causal.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=config.lr, weight_decay=config.weight_decay, fused=True
        )
        self.progress = Progress()
        self.best: Tensors = adapter_state(model)
        self.reported = (time.monotonic(), 0, 0)  # when, at which samples and tokens

    def resume(self) -> None:
        """Continue from the newest checkpoint, if there is one."""
        found = load_checkpoint(self.work, self.model, self.optimizer, self.mixture)
        if found is not None:
            self.progress, self.best = found
            log.info("training resumes at step %d", self.progress.step)
        self.reported = (time.monotonic(), self.progress.samples, self.progress.tokens)

    def save(self) -> None:
        """Write a checkpoint."""
        save_checkpoint(
            self.work, self.model, self.optimizer, self.mixture, self.progress, self.best
        )

    def step(self) -> None:
        """Make one optimizer step over a batch of every task."""
        position = self.mixture.state()
        self.model.causal.train()
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.progress.step, self.config)
        draws = self.mixture.next_step()
        losses = [self._backward(draw, position) for draw in draws]
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, CLIP)
        if not math.isfinite(float(norm)):
            self._stop(draws[0], position, "gradient norm", float(norm))
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.progress.step += 1
        for draw, loss in zip(draws, losses, strict=True):
            self.progress.window.setdefault(f"loss_{draw.task.name}", []).append(loss)
        self._report()

    def _backward(self, draw: Draw, position: dict[str, list[int]]) -> float:
        loss, tokens = draw.loss()
        value = float(loss.detach())
        if not math.isfinite(value):
            self._stop(draw, position, "loss", value)
        scaled: Tensor = loss * draw.scale
        scaled.backward()  # type: ignore[no-untyped-call]
        self.progress.samples += len(draw.at)
        self.progress.tokens += tokens
        return value

    def _stop(self, draw: Draw, position: dict[str, list[int]], what: str, value: float) -> None:
        """Keep what was good until this step, then say which batch was not."""
        self.mixture.load_state(position)
        self.save()
        names = ", ".join(draw.sample_names()[:3])
        raise TrainingError(
            f"{what} is {value} at step {self.progress.step}, task {draw.task.name}, batch of "
            f"{len(draw.at)} starting with {names}; the state before it is kept in {self.work}; "
            "look at these samples or lower llm.lr"
        )

    def judge(self, dev: DevScore) -> None:
        """Record an evaluation and keep the adapter if it is the best so far."""
        p = self.progress
        score = (dev.micro_f1, -dev.log_loss)
        p.waited += 1
        if p.best is None or score > p.best:
            p.best, p.best_step, p.waited = score, p.step, 0
            self.best = adapter_state(self.model)
        means = {name: sum(values) / len(values) for name, values in p.window.items()}
        p.window = {}
        points = means | {"dev_micro_f1": dev.micro_f1, "dev_log_loss": dev.log_loss}
        for name, value in points.items():
            p.curves.setdefault(name, []).append((p.step, value))
        losses = " ".join(f"{name} {value:.4f}" for name, value in means.items())
        log.info(
            "step %d/%d: %s dev micro-F1 %.4f (best %.4f at %d)",
            p.step, self.config.steps, losses, dev.micro_f1, p.best[0], p.best_step,
        )  # fmt: skip

    def _report(self) -> None:
        now, p = time.monotonic(), self.progress
        since, samples, tokens = self.reported
        if now - since < REPORT_SECONDS:
            return
        seconds = now - since
        left = (self.config.steps - p.step) * p.seconds / max(1, p.step)
        log.info(
            "step %d/%d: %.0f samples/s, %.0f tokens/s, at most %s left",
            p.step, self.config.steps, (p.samples - samples) / seconds,
            (p.tokens - tokens) / seconds, f"{int(left) // 60}:{int(left) % 60:02d}",
        )  # fmt: skip
        self.reported = (now, p.samples, p.tokens)
