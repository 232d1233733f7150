"""This process among those that train together, through ``accelerate``; usually the only one.

DDP sums gradients in the backward pass of a module whose ``forward`` it has seen, so a pass over
samples is made inside one: :class:`Losses`. All but a step's last pass skip the sum.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from accelerate import Accelerator
from torch import Tensor

from csrm_tasks.llm.network.model import Model
from csrm_tasks.llm.network.shard import leave_shards_to_fsdp
from csrm_tasks.llm.training.mixture import Draw


class Losses(torch.nn.Module):
    """The trained model, called with samples: returns their mean loss and number of tokens."""

    def __init__(self, causal: torch.nn.Module) -> None:
        super().__init__()
        self.causal = causal  # the tasks of a draw hold the same one

    def forward(self, draw: Draw) -> tuple[Tensor, int]:
        """Return the draw's loss, not scaled, and its number of real tokens."""
        return draw.loss()


class Team:
    """The processes of one training, seen from one of them."""

    def __init__(self, model: Model) -> None:
        self._accelerator = Accelerator(cpu=model.device.type == "cpu")
        self.size: int = self._accelerator.num_processes
        self.rank: int = self._accelerator.process_index
        self._losses = Losses(model.causal)
        if self.size > 1:
            leave_shards_to_fsdp(self._losses)
            self._losses = self._accelerator.prepare_model(self._losses)

    @property
    def leads(self) -> bool:
        """Whether this process writes what they found."""
        return self.rank == 0

    def backward(self, draw: Draw, weight: float, last: bool) -> tuple[float, int]:
        """Add ``weight`` times the gradient of the draw's loss; return loss and tokens.

        ``last``: of this step, after which every process has the sum over all of them.
        """
        alone = self.size == 1
        with nullcontext() if last or alone else self._accelerator.no_sync(self._losses):
            loss, tokens = self._losses(draw)
            scaled: Tensor = loss * (weight * self.size)  # DDP takes the mean over processes
            scaled.backward()  # type: ignore[no-untyped-call]
        return float(loss.detach()), tokens

    def total(self, values: Sequence[float]) -> list[float]:
        """Return the sums over all processes, element by element."""
        if self.size == 1:
            return list(values)
        mine = torch.tensor(values, dtype=torch.float64, device=self._accelerator.device)
        sums: list[float] = self._accelerator.reduce(mine, "sum").tolist()
        return sums

    def wait(self) -> None:
        """Go on when every process is here."""
        self._accelerator.wait_for_everyone()
