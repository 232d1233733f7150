"""Exact, resumable training state: safetensors and JSON only, renamed into place, two kept.

The newest checkpoint may turn out to be damaged (a machine that lost power while its disk was
writing), so the one before it is kept; where none can be used, hours of work are not thrown away
unasked.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from csrm_tasks.errors import ArtifactError

log = logging.getLogger("csrm")

KEPT = 2  # checkpoints: the newest may turn out to be damaged
MIN_SECONDS = 5.0  # between checkpoints …
SHARE = 20.0  # … and so many times what the last one took, which bounds the cost to 5 %
UNUSABLE = (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError)

Tensors = dict[str, Tensor]
Loaded = TypeVar("Loaded")


class Checkpoints:
    """Model, optimiser and progress of one training, in ``{stem of path}-{step}.safetensors``."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._wait = MIN_SECONDS
        self._last = time.monotonic()

    def due(self) -> bool:
        """Say whether it is time to save again."""
        return time.monotonic() - self._last >= self._wait

    def save(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        progress: dict[str, Any],
        extra: Tensors | None = None,
    ) -> None:
        """Write the state; ``progress`` is small JSON with its ``step``, ``extra`` own tensors."""
        began = time.monotonic()
        tensors = {f"model/{k}": p.detach() for k, p in model.named_parameters()}
        tensors |= {f"optimizer/{k}": v for k, v in optimizer_tensors(optimizer).items()}
        tensors |= {f"extra/{k}": v for k, v in (extra or {}).items()}
        self._path.parent.mkdir(parents=True, exist_ok=True)
        part = self._path.with_suffix(".part")
        save_file(tensors, part, {"progress": json.dumps(progress)})
        part.replace(self._path.with_name(f"{self._path.stem}-{progress['step']}.safetensors"))
        for old in self.paths()[KEPT:]:
            old.unlink(missing_ok=True)
        self._last = time.monotonic()
        self._wait = max(MIN_SECONDS, SHARE * (self._last - began))

    def restore(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        extra: Tensors | None = None,
    ) -> dict[str, Any] | None:
        """Load the newest usable state into all three; return its progress, None without any.

        Raises :class:`ArtifactError` where there are checkpoints but none can be used.
        """

        def load(path: Path) -> dict[str, Any]:
            return _load(path, model, optimizer, extra or {})

        return newest_usable(self._path.parent, self.paths(), load)

    def paths(self) -> list[Path]:
        """Return the checkpoints that there are, newest first."""
        return newest_first(self._path.parent.glob(f"{self._path.stem}-*.safetensors"))


def newest_first(paths: Any) -> list[Path]:
    """Sort paths whose stem ends in ``-{step}`` from the last step to the first."""
    return sorted(paths, key=lambda p: int(p.stem.rpartition("-")[2]), reverse=True)


def newest_usable(
    folder: Path, paths: Sequence[Path], load: Callable[[Path], Loaded]
) -> Loaded | None:
    """Return what ``load`` makes of the first of ``paths`` that it can read; None without any.

    A damaged one is reported and passed over. Raises :class:`ArtifactError` naming ``folder`` and
    the remedy where there are paths but none can be used.
    """
    for path in paths:
        try:
            return load(path)
        except UNUSABLE as e:
            reason = " ".join(str(e).split())
            log.warning("checkpoint %s cannot be used and is passed over: %s", path, reason)
    if paths:
        raise ArtifactError(
            f"{folder}: no checkpoint can be used ({', '.join(p.name for p in paths)}; the log has "
            "the reasons); delete this folder to train from the start"
        )
    return None


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> Tensors:
    """Return the optimiser's state as tensors named ``{parameter}.{what}``."""
    state: dict[int, Tensors] = optimizer.state_dict()["state"]
    return {f"{i}.{name}": t for i, values in state.items() for name, t in values.items()}


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: Tensors) -> None:
    """Put back what :func:`optimizer_tensors` returned; rates and the like stay as they are."""
    state: dict[int, Tensors] = {}
    for key, tensor in tensors.items():
        index, _, name = key.partition(".")
        state.setdefault(int(index), {})[name] = tensor
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _load(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, extra: Tensors
) -> dict[str, Any]:
    """Read the whole file before anything is changed: what breaks off changes nothing."""
    with safe_open(path, framework="pt") as f:
        progress: dict[str, Any] = json.loads(f.metadata()["progress"])
        tensors = {key: f.get_tensor(key) for key in f.keys()}  # noqa: SIM118 (not a dict)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(tensors[f"model/{name}"])
        for name, own in extra.items():
            own.copy_(tensors[f"extra/{name}"])
    start = "optimizer/"
    state = {k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)}
    load_optimizer(optimizer, state)
    return progress
