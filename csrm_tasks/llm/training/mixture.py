"""The task mixture: each step takes a batch of every task, in fixed shares (A6).

With shares relevance 1 : MT 0.1 : CVR 0.5 and a batch of 64, a step is 40 relevance, 4 MT and 20
CVR samples, each task a forward pass of its own. The step's loss is Σ share·weight·mean over the
task's samples of the mean within a sample, so the length of a translation moves nothing but the
translation gradient.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from csrm_tasks.llm.prompt.batching import BatchStream, Epoch, Indices
from csrm_tasks.llm.training.tasks import Task


@dataclass(frozen=True)
class TaskShare:
    """One task of the mixture."""

    task: Task
    share: float  # sampling share relative to the relevance task's 1
    weight: float = 1.0  # loss weight


@dataclass(frozen=True)
class Draw:
    """The batch of one task in one step."""

    task: Task
    scale: float  # share · weight
    epoch: Epoch
    at: Indices

    def loss(self) -> tuple[Tensor, int]:
        """Return the mean loss over the samples, not scaled, and the number of real tokens."""
        return self.task.loss(self.epoch, self.at)

    def sample_names(self) -> list[str]:
        """Name the samples, for an error message."""
        return self.task.sample_names(self.epoch, self.at)


class Mixture:
    """Draws the batches of all tasks, step by step; its position is a small JSON object."""

    def __init__(self, parts: list[TaskShare], batch: int, seed: int) -> None:
        total = sum(p.share for p in parts)
        self._parts = [p for p in parts if p.share > 0]
        self._scales = [p.share / total * p.weight for p in self._parts]
        self._streams = [
            BatchStream(p.task, max(1, round(batch * p.share / total)), seed) for p in self._parts
        ]

    def state(self) -> dict[str, list[int]]:
        """Return epoch and position of every task."""
        return {
            p.task.name: [s.epoch, s.position]
            for p, s in zip(self._parts, self._streams, strict=True)
        }

    def load_state(self, state: Mapping[str, list[int]]) -> None:
        """Continue where :meth:`state` was taken."""
        for part, stream in zip(self._parts, self._streams, strict=True):
            epoch, position = state[part.task.name]
            stream.seek(epoch, position)

    def next_step(self) -> list[Draw]:
        """Return one batch per task."""
        return [
            Draw(part.task, scale, *next(stream))
            for part, scale, stream in zip(self._parts, self._scales, self._streams, strict=True)
        ]
