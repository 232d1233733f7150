"""Length-bucketed batches: seeded, resumable at any step, few padding tokens (A11).

An epoch is an order of samples, cut into windows of many batches; inside a window samples are
sorted by length and sliced, and the batches of all windows are shuffled. So a batch holds samples
of one length, and which samples meet is still random. Everything is a function of (seed, epoch),
so a position is two integers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from csrm_tasks.llm.encoding import Ids

Indices = npt.NDArray[np.int64]

WINDOW = 100  # batches that are sorted by length together


@dataclass(frozen=True)
class Epoch:
    """The samples of one epoch; the arrays are aligned."""

    order: Indices  # sample indices; may repeat or leave some out
    lengths: Indices  # tokens of each prompt
    variants: npt.NDArray[np.int8]  # how the task alters each sample this time


class EpochSource(Protocol):
    """Anything that can draw an epoch from its number alone."""

    def start_epoch(self, epoch: int) -> Epoch:
        """Draw the samples of one epoch."""
        ...


def bucket(lengths: Indices, batch: int, rng: np.random.Generator) -> list[Indices]:
    """Cut positions 0..n-1 into batches of about ``batch``; all positions occur exactly once.

    Batches differ by at most one sample, so none is left over; fewer samples than ``batch`` make
    one batch.
    """
    n = len(lengths)
    span = batch * WINDOW
    windows = [start + np.argsort(lengths[start : start + span], kind="stable")
               for start in range(0, n, span)]  # fmt: skip
    batches = np.array_split(np.concatenate(windows), max(1, n // batch))
    return [batches[i] for i in rng.permutation(len(batches))]


class BatchStream:
    """An endless stream of batches, epoch after epoch: (epoch, positions in its order)."""

    def __init__(self, source: EpochSource, batch: int, seed: int) -> None:
        self._source, self._batch, self._seed = source, batch, seed
        self.epoch, self.position = 0, 0
        self._open()

    def _open(self) -> None:
        self._drawn = self._source.start_epoch(self.epoch)
        rng = np.random.default_rng([self._seed, self.epoch])
        self._batches = bucket(self._drawn.lengths, self._batch, rng)

    def seek(self, epoch: int, position: int) -> None:
        """Continue as if ``position`` batches of ``epoch`` had been taken."""
        self.epoch, self.position = epoch, position
        self._open()

    def __iter__(self) -> Iterator[tuple[Epoch, Indices]]:
        return self

    def __next__(self) -> tuple[Epoch, Indices]:
        if self.position == len(self._batches):
            self.seek(self.epoch + 1, 0)
        self.position += 1
        return self._drawn, self._batches[self.position - 1]


def pad(rows: Sequence[Ids], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return ids (B, T), padded on the right with 0, and lengths (B,).

    The padding id does not matter: no real token attends to what stands behind it.
    """
    lengths = np.fromiter((len(r) for r in rows), np.int64, len(rows))
    ids = np.zeros((len(rows), int(lengths.max())), np.int64)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
    return torch.from_numpy(ids).to(device), torch.from_numpy(lengths).to(device)


def useful_share(lengths: Indices, batches: Sequence[Indices]) -> float:
    """Return the share of a batch's tokens that are no padding, over all ``batches``."""
    padded = sum(int(lengths[b].max()) * len(b) for b in batches)
    return float(lengths.sum()) / padded
