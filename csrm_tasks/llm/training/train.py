"""Fine-tuning a LoRA adapter on the task mixture, so that it may be killed at any moment (A5, A6).

AdamW with decoupled decay, linear warm-up and linear decay to zero, gradients clipped; the best
adapter on dev is kept; training stops when dev has not improved for ``patience`` evaluations.
Everything random is a function of (seed, step, process), so a resumed run ends where an
uninterrupted one ends, and a step that ran out of memory is made again as it was.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

from csrm_tasks.errors import CsrmError
from csrm_tasks.llm.network.model import Model, adapter_state
from csrm_tasks.llm.training.accumulate import largest, passes
from csrm_tasks.llm.training.checkpoint import Curves, LlmProgress, load_checkpoint, save_checkpoint
from csrm_tasks.llm.training.mixture import Draw, Mixture
from csrm_tasks.llm.training.parallel import Team
from csrm_tasks.sections import Llm
from csrm_tasks.training.checkpoints import Tensors
from csrm_tasks.training.heap import Heap
from csrm_tasks.training.schedule import seed_step, warmed

log = logging.getLogger("csrm")

CLIP = 1.0  # largest gradient norm
REPORT_SECONDS = 15.0
HALVED = "halved.json"  # left by one of several processes that ran out of memory


class TrainingError(CsrmError):
    """Training diverged; the message names the step, the task and samples of the batch."""


class OutOfMemoryError(TrainingError):
    """A pass does not fit into memory, nor does one of half as many samples."""


@dataclass(frozen=True)
class DevScore:
    """Quality on dev, by which the best state is chosen: micro-F1, then log loss."""

    micro_f1: float | None  # None: nothing is classified, and the loss decides
    log_loss: float
    others: Mapping[str, float] = field(default_factory=dict)  # for the curves


@dataclass(frozen=True)
class TrainResult:
    """The best adapter on dev and how it came about."""

    adapter: Tensors
    best_step: int
    dev: DevScore
    progress: LlmProgress

    @property
    def curves(self) -> Curves:
        """Values by step: loss per task, gradient norm, rate, dev micro-F1 and log loss."""
        return self.progress.curves


def train(
    model: Model,
    mixture: Mixture,
    config: Llm,
    seed: int,
    evaluate: Callable[[], DevScore],
    work: Path,
    checkpoint_seconds: float,
) -> TrainResult:
    """Train the adapter of ``model`` and return the best one on dev.

    Checkpoints go below ``work`` and are continued from. Raises :class:`TrainingError` when a loss
    or gradient is no number; the checkpoint before that step is kept.
    """
    run = _Run(model, mixture, config, seed, work)
    run.resume()
    started = saved = time.monotonic()
    before = run.progress.seconds
    while run.progress.step < config.steps and run.progress.waited < config.patience:
        due = run.step(time.monotonic() - saved >= checkpoint_seconds)
        done = run.progress.step
        run.progress.seconds = before + time.monotonic() - started
        if done % config.evaluate_every == 0 or done == config.steps:
            run.record_evaluation(evaluate())
        if due:
            run.save()
            saved = time.monotonic()
    assert run.progress.best is not None  # the last step is always evaluated
    f1, minus_loss = run.progress.best
    return TrainResult(run.best, run.progress.best_step, DevScore(f1, -minus_loss), run.progress)


class _Run:
    """The state of one training run."""

    def __init__(self, model: Model, mixture: Mixture, config: Llm, seed: int, work: Path) -> None:
        self.model, self.mixture, self.config, self.work = model, mixture, config, work
        self.seed = seed
        self.team = Team(model)
        self.parameters = [p for p in model.causal.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=config.lr, weight_decay=config.weight_decay, fused=True
        )
        self.schedule = warmed(config.lr, config.steps, config.warmup, config.schedule)
        self.progress = LlmProgress(micro_batch=config.micro_batch)
        self.best: Tensors = adapter_state(model)
        self.reported = (time.monotonic(), 0, 0)  # when, at which samples and tokens
        self.heap = Heap()

    def resume(self) -> None:
        """Continue from the newest checkpoint, if there is one."""
        last = load_checkpoint(self.work, self.model, self.optimizer, self.mixture)
        if last is not None:
            self.progress, self.best = last
            log.info("training resumes at step %d", self.progress.step)
        if (self.work / HALVED).exists():
            halved = json.loads((self.work / HALVED).read_text(encoding="utf-8"))
            self.progress.micro_batch, self.progress.halved_at = halved
        self.reported = (time.monotonic(), self.progress.samples, self.progress.tokens)

    def save(self) -> None:
        """Write a checkpoint."""
        if self.team.leads:
            save_checkpoint(
                self.work, self.model, self.optimizer, self.mixture, self.progress, self.best
            )

    def step(self, due: bool) -> bool:
        """Make one optimizer step over a batch of every task.

        ``due``: this process wants a checkpoint. Returns whether any does, the same in all.
        """
        position = self.mixture.state()
        draws = self.mixture.next_step()
        sums = self._gradients(draws)
        while sums is None:
            self._halve(draws, position)
            sums = self._gradients(draws)
        *losses, samples, tokens, wanted = self.team.total([*sums, float(due)])
        self._update(draws, losses, position)
        self.progress.step += 1
        self.progress.samples += round(samples)
        self.progress.tokens += round(tokens)
        self._note({f"loss_{d.task.name}": loss for d, loss in zip(draws, losses, strict=True)})
        self._report()
        self.heap.trim()
        return wanted > 0

    def _gradients(self, draws: Sequence[Draw]) -> list[float] | None:
        """Return :meth:`_accumulate`, or None where it runs out of memory."""
        try:
            return self._accumulate(draws)
        except (RuntimeError, MemoryError) as e:
            if not (isinstance(e, MemoryError) or should_reduce_batch_size(e)):
                raise
        self.optimizer.zero_grad(set_to_none=True)
        clear_device_cache(garbage_collection=True)
        return None

    def _accumulate(self, draws: Sequence[Draw]) -> list[float]:
        """Add up the step's gradients; return this process' part of losses, samples, tokens."""
        team = self.team
        self.model.causal.train()
        seed_step(self.seed, self.progress.step, team.rank)
        size = self.progress.micro_batch or largest(draws, team.size)
        todo = [*passes(draws, size, team.rank, team.size)]
        losses, samples, tokens = [0.0] * len(draws), 0, 0
        for i, part in enumerate(todo):
            weight = part.draw.scale * part.share
            loss, real = team.backward(part.draw, weight, last=i == len(todo) - 1)
            if part.share:
                losses[part.task] += loss * part.share
                samples, tokens = samples + len(part.draw.at), tokens + real
        return [*losses, samples, tokens]

    def _update(
        self, draws: Sequence[Draw], losses: Sequence[float], position: dict[str, list[int]]
    ) -> None:
        """Apply the gradients, unless a loss or their norm is no number."""
        for draw, loss in zip(draws, losses, strict=True):
            if not math.isfinite(loss):
                self._stop(draw, position, "loss", loss)
        norm = float(torch.nn.utils.clip_grad_norm_(self.parameters, CLIP))
        if not math.isfinite(norm):
            self._stop(draws[0], position, "gradient norm", norm)
        rate = self.schedule.rate(self.progress.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self._note({"gradient_norm": norm, "learning_rate": rate})
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def _note(self, values: Mapping[str, float]) -> None:
        """Keep values of this step; their means become points of the curves."""
        for name, value in values.items():
            self.progress.window.setdefault(name, []).append(value)

    def _halve(self, draws: Sequence[Draw], position: dict[str, list[int]]) -> None:
        """Take half as many samples a pass from this step on; once in a training.

        Others of several processes wait for this one, so it cannot repeat the step: it leaves word
        of the new size, and all are started again
        (:func:`csrm_tasks.llm.training.launch.run_training`).
        """
        p, team = self.progress, self.team
        size = p.micro_batch or largest(draws, team.size)
        message = f"out of memory at step {p.step} with passes of {size} samples"
        if size == 1 or p.halved_at is not None:
            self.mixture.load_state(position)
            self.save()
            raise OutOfMemoryError(
                f"{message}{', half of what was asked for' if p.halved_at is not None else ''}; "
                "lower llm.micro_batch or llm.max_length, or set llm.gradient_checkpointing"
            )
        p.micro_batch, p.halved_at = -(-size // 2), p.step
        if team.size > 1:
            text = json.dumps([p.micro_batch, p.halved_at])
            (self.work / HALVED).write_text(text, encoding="utf-8")
            raise OutOfMemoryError(message)
        log.warning("%s; from here on %d, and twice as many of them", message, p.micro_batch)

    def _stop(self, draw: Draw, position: dict[str, list[int]], what: str, value: float) -> None:
        """Keep what was good until this step, then say which batch was not."""
        self.mixture.load_state(position)
        self.save()
        self.team.wait()
        names = ", ".join(draw.sample_names()[:3])
        raise TrainingError(
            f"{what} is {value} at step {self.progress.step}, task {draw.task.name}, batch of "
            f"{len(draw.at)} starting with {names}; the state before it is kept in {self.work}; "
            "look at these samples or lower llm.lr"
        )

    def record_evaluation(self, dev: DevScore) -> None:
        """Record an evaluation and keep the adapter if it is the best so far."""
        p = self.progress
        own = (dev.micro_f1 or 0.0, dev.log_loss) if self.team.leads else (0.0, 0.0)
        f1, loss = self.team.total(own)  # one decision for all
        score = (f1, -loss)
        p.waited += 1
        if p.best is None or score > p.best:
            p.best, p.best_step, p.waited = score, p.step, 0
            self.best = adapter_state(self.model)
        means = {name: sum(values) / len(values) for name, values in p.window.items()}
        p.window = {}
        points = means | {"dev_micro_f1": f1, "dev_log_loss": loss} | dict(dev.others)
        what, value, best = "micro-F1", f1, p.best[0]
        if dev.micro_f1 is None:
            del points["dev_micro_f1"]
            what, value, best = "log loss", loss, -p.best[1]
        for name, point in points.items():
            p.curves.setdefault(name, []).append((p.step, point))
        losses = " ".join(f"{n} {mean:.4f}" for n, mean in means.items() if "loss" in n)
        log.info(
            "step %d/%d: %s dev %s %.4f (best %.4f at %d)",
            p.step, self.config.steps, losses, what, value, best, p.best_step,
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
