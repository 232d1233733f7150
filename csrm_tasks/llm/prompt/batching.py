"""Length-bucketed batches: seeded, resumable at any step, few padding tokens (A11).

An epoch is an order of samples, cut into windows of many batches; inside a window samples are
sorted by length and sliced, and the batches of all windows are shuffled. So a batch holds samples
of one length, and which samples meet is still random. Everything is a function of (seed, epoch),
so a position is two integers. Samples that share a prefix may be kept together
(:mod:`csrm_tasks.llm.network.packed`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from csrm_tasks.llm.prompt.encoding import Ids

Indices = npt.NDArray[np.int64]

WINDOW = 100  # batches that are sorted by length together


@dataclass(frozen=True)
class Epoch:
    """The samples of one epoch; the arrays are aligned."""

    order: Indices  # sample indices; may repeat or leave some out
    lengths: Indices  # tokens of each prompt
    variants: npt.NDArray[np.int8]  # how the task alters each sample this time
    groups: Indices | None = None  # neighbours with one number share a prefix


class EpochSource(Protocol):
    """Anything that can draw an epoch from its number alone."""

    def start_epoch(self, epoch: int) -> Epoch:
        """Draw the samples of one epoch."""
        ...


def bucket(
    lengths: Indices, batch: int, rng: np.random.Generator, groups: Indices | None = None
) -> list[Indices]:
    """Cut positions 0..n-1 into batches of about ``batch``; all positions occur exactly once.

    Batches differ by at most one sample, so none is left over; fewer samples than ``batch`` make
    one batch. Neighbours with the same number in ``groups`` stay neighbours, sorted by the longest
    of them; a batch may end between them.
    """
    n = len(lengths)
    groups = np.arange(n) if groups is None else groups
    first = np.flatnonzero(np.diff(groups, prepend=-1))  # of each group
    group = np.repeat(np.arange(len(first)), np.diff(first, append=n))
    longest = np.maximum.reduceat(lengths, first)
    window = first // (batch * WINDOW)
    order = np.lexsort((group, longest[group], window[group]))
    batches = np.array_split(order, max(1, n // batch))
    return [batches[i] for i in rng.permutation(len(batches))]


def draw_siblings(owners: Indices, most: int, rng: np.random.Generator) -> tuple[Indices, Indices]:
    """Draw a permutation in which samples of one owner stand together, at most ``most`` of them.

    ``owners`` numbers the query of each sample. Returns the order and, aligned with it, which
    group a sample is in. Every sample comes once, whatever ``most`` is, so an epoch holds the
    labels of the data; a batch of B samples holds at least B / ``most`` queries, and its gradient
    is noisier than that of B queries to the degree that labels of one query are alike.
    """
    order = rng.permutation(len(owners))
    order = order[np.argsort(owners[order], kind="stable")]
    first = np.flatnonzero(np.diff(owners[order], prepend=-1))
    size = np.diff(first, append=len(order))
    rank = np.arange(len(order)) - np.repeat(first, size)  # within the owner
    part = rank * np.repeat(-(-size // most), size) // np.repeat(size, size)  # of equal size
    group = np.cumsum((rank == 0) | (np.diff(part, prepend=-1) != 0)) - 1
    key = rng.permutation(int(group[-1]) + 1)[group]
    place = np.argsort(key, kind="stable")
    return order[place], key[place]


def mixed(
    order: Indices, groups: Indices, owners: Indices, families: Indices
) -> tuple[Indices, Indices]:
    """Bring what :func:`draw_siblings` drew of the queries of one family together (LcRL).

    ``order`` and ``groups`` are what it returned, ``owners`` and ``families`` number the query of
    each sample, and which queries are one in several languages. The k-th group of each query of a
    family is put behind the first of these groups. Returns the places to take ``order`` and
    ``groups`` from, and, aligned with them, which united group a sample is in.
    """
    first = np.flatnonzero(np.diff(groups, prepend=-1))  # of each group
    group = np.repeat(np.arange(len(first)), np.diff(first, append=len(order)))
    owner, family = owners[order[first]], families[order[first]]
    by_owner = np.argsort(owner, kind="stable")
    start = np.flatnonzero(np.diff(owner[by_owner], prepend=-1))
    rank = np.empty(len(first), np.int64)
    rank[by_owner] = np.arange(len(first)) - np.repeat(start, np.diff(start, append=len(first)))
    _, at, united = np.unique(
        np.stack([family, rank]), axis=1, return_index=True, return_inverse=True
    )
    key = at[united.reshape(-1)][group]  # where the first of the united groups was drawn
    place = np.argsort(key, kind="stable")
    return place, key[place]


class BatchStream:
    """An endless stream of batches, epoch after epoch: (epoch, positions in its order)."""

    def __init__(self, source: EpochSource, batch: int, seed: int) -> None:
        self._source, self._batch, self._seed = source, batch, seed
        self.epoch, self.position = 0, 0
        self._open()

    def _open(self) -> None:
        self._drawn = self._source.start_epoch(self.epoch)
        rng = np.random.default_rng([self._seed, self.epoch])
        self._batches = bucket(self._drawn.lengths, self._batch, rng, self._drawn.groups)

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


def by_length(lengths: Indices, tokens: int) -> Iterator[Indices]:
    """Cut positions into batches of similar length and at most ``tokens`` padded tokens each."""
    order = np.argsort(-lengths, kind="stable")  # the longest first: running out of memory shows
    start = 0
    while start < len(order):
        size = max(1, tokens // int(lengths[order[start]]))
        yield order[start : start + size]
        start += size


def useful_share(lengths: Indices, batches: Sequence[Indices]) -> float:
    """Return the share of a batch's tokens that are no padding, over all ``batches``."""
    padded = sum(int(lengths[b].max()) * len(b) for b in batches)
    return float(lengths.sum()) / padded
