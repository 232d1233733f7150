"""Exact, resumable training state in one safetensors file, replaced atomically."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

LEAST_SECONDS = 5.0  # between checkpoints …
SHARE = 20.0  # … and so many times what the last one took, which bounds the cost to 5 %


class Checkpoints:
    """Model, optimiser and progress of one training under ``path``; nothing is pickled."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._wait = LEAST_SECONDS
        self._last = time.monotonic()

    def due(self) -> bool:
        """Say whether it is time to save again."""
        return time.monotonic() - self._last >= self._wait

    def save(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, progress: dict[str, Any]
    ) -> None:
        """Write the state; ``progress`` is small JSON."""
        began = time.monotonic()
        tensors = {f"model/{k}": p.detach() for k, p in model.named_parameters()}
        for index, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{index}/{name}": value for name, value in state.items()}
        self._path.parent.mkdir(parents=True, exist_ok=True)
        part = self._path.with_suffix(".part")
        save_file(tensors, part, {"progress": json.dumps(progress)})
        part.replace(self._path)
        self._last = time.monotonic()
        self._wait = max(LEAST_SECONDS, SHARE * (self._last - began))

    def restore(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any] | None:
        """Load the state into both and return its progress, or None where there is none."""
        if not self._path.exists():
            return None
        with safe_open(self._path, framework="pt") as f:
            progress: dict[str, Any] = json.loads(f.metadata()["progress"])
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    parameter.copy_(f.get_tensor(f"model/{name}"))
            states: dict[int, dict[str, Tensor]] = {}
            for key in f.keys():  # noqa: SIM118 (a safetensors file, not a dict)
                if key.startswith("optimizer/"):
                    _, index, name = key.split("/")
                    states.setdefault(int(index), {})[name] = f.get_tensor(key)
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": states, "param_groups": groups})
        return progress
