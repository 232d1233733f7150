"""Checkpoints that a killed run continues from: safetensors and JSON only, renamed into place."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from csrm_tasks.llm.network.model import Model, adapter_state, set_adapter_state
from csrm_tasks.llm.training.mixture import Mixture
from csrm_tasks.training.checkpoints import (
    KEPT,
    Tensors,
    load_optimizer,
    newest_first,
    newest_usable,
    optimizer_tensors,
)

Curves = dict[str, list[tuple[int, float]]]


@dataclass
class LlmProgress:
    """Where a training run stands; JSON."""

    step: int = 0  # optimizer steps done
    best_step: int = 0
    best: tuple[float, float] | None = None  # dev micro-F1, minus dev log loss
    waited: int = 0  # evaluations since the best one
    seconds: float = 0.0  # spent training, over all attempts
    samples: int = 0
    tokens: int = 0
    curves: Curves = field(default_factory=dict)
    window: dict[str, list[float]] = field(default_factory=dict)  # losses since the last evaluation
    micro_batch: int | None = None  # samples of one pass at most
    halved_at: int | None = None  # the step that ran out of memory


def save_checkpoint(
    folder: Path,
    model: Model,
    optimizer: torch.optim.Optimizer,
    mixture: Mixture,
    progress: LlmProgress,
    best: Tensors,
) -> None:
    """Write ``checkpoint-{step}`` below ``folder``; the one before it is kept, older ones go."""
    part = folder / "part"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    save_file(adapter_state(model), str(part / "adapter.safetensors"))
    save_file(best, str(part / "best.safetensors"))
    save_file(optimizer_tensors(optimizer), str(part / "optimizer.safetensors"))
    text = json.dumps({"progress": asdict(progress), "data": mixture.state()})
    (part / "progress.json").write_text(text, encoding="utf-8")
    target = folder / f"checkpoint-{progress.step}"
    shutil.rmtree(target, ignore_errors=True)
    part.rename(target)
    for path in _checkpoints(folder)[KEPT:]:
        shutil.rmtree(path, ignore_errors=True)


def load_checkpoint(
    folder: Path, model: Model, optimizer: torch.optim.Optimizer, mixture: Mixture
) -> tuple[LlmProgress, Tensors] | None:
    """Put the newest whole checkpoint back; None where there is none.

    A damaged one is reported and passed over for the one before it. Raises :class:`ArtifactError`
    where there are checkpoints but none can be used: hours of work are not thrown away unasked.
    """
    return newest_usable(
        folder, _checkpoints(folder), lambda path: _load(path, model, optimizer, mixture)
    )


def _load(
    path: Path, model: Model, optimizer: torch.optim.Optimizer, mixture: Mixture
) -> tuple[LlmProgress, Tensors]:
    saved = json.loads((path / "progress.json").read_text(encoding="utf-8"))
    adapter = load_file(str(path / "adapter.safetensors"))
    best = load_file(str(path / "best.safetensors"))
    state = load_file(str(path / "optimizer.safetensors"))
    progress = LlmProgress(**saved["progress"])
    progress.best = None if progress.best is None else (progress.best[0], progress.best[1])
    progress.curves = {k: [(s, v) for s, v in curve] for k, curve in progress.curves.items()}
    set_adapter_state(model, adapter)
    load_optimizer(optimizer, state)
    mixture.load_state(saved["data"])
    return progress, best


def _checkpoints(folder: Path) -> list[Path]:
    return newest_first(folder.glob("checkpoint-*"))
