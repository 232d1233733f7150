"""Cutting one optimizer step into passes: a share of every batch per process, micro-batches of it.

Every process makes equally many passes over each task's batch, so that they meet at every
collective call. A piece that would be empty is one sample of weight nought instead.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from csrm_tasks.llm.training.mixture import Draw


@dataclass(frozen=True)
class Pass:
    """Some samples of one task's batch, for one forward and backward pass."""

    draw: Draw
    task: int  # position in the mixture
    share: float  # of the task's whole batch; 0: computed for company only


def largest(draws: Sequence[Draw], processes: int) -> int:
    """Return how many samples a process has of the largest batch, at most."""
    return max(-(-len(d.at) // processes) for d in draws)


def passes(draws: Sequence[Draw], size: int, rank: int = 0, processes: int = 1) -> Iterator[Pass]:
    """Yield what process ``rank`` computes of a step, at most ``size`` samples a time.

    Over all processes the pieces of a batch are the batch, each sample once; the shares of a task
    sum to 1, so the mean over its samples stays what it is in one pass (A6).
    """
    for task, draw in enumerate(draws):
        count = -(-len(draw.at) // (processes * size))
        pieces = np.array_split(draw.at, processes * count)
        for at in pieces[rank * count : (rank + 1) * count]:
            kept = at if len(at) else draw.at[:1]
            yield Pass(replace(draw, at=kept), task, len(at) / len(draw.at))
