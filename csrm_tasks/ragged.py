"""Texts tokenised once and kept ragged, so that a batch is two array gathers (numpy only)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.int64]
T = TypeVar("T", np.int32, np.uint32)


class Ragged:
    """Token ids of N texts: one flat int32 array and N + 1 offsets.

    ``lengths`` (N,) of the texts; ``flat`` their ids, one text behind the other.
    """

    def __init__(self, ids: Sequence[Sequence[int]], pad_id: int = 0) -> None:
        """Keep ``ids`` (N lists); shorter rows of a batch are filled up with ``pad_id``."""
        self.lengths: Rows = np.array([len(x) for x in ids], np.int64)
        self._offsets: Rows = np.concatenate([[0], np.cumsum(self.lengths)]).astype(np.int64)
        self.flat = np.fromiter((i for x in ids for i in x), np.int32, int(self._offsets[-1]))
        self.pad_id = pad_id

    def __len__(self) -> int:
        """Return N."""
        return len(self.lengths)

    def ids_of(self, row: int) -> list[int]:
        """Return the token ids of one text."""
        ids: list[int] = self.flat[self._offsets[row] : self._offsets[row + 1]].tolist()
        return ids

    def rows_with(self, ids: int) -> Rows:
        """Return in how many rows each of ``ids`` token ids stands (ids,)."""
        row = np.repeat(np.arange(len(self)), self.lengths)
        found = np.unique(row * ids + self.flat)  # each token of a row once
        return np.bincount(found % ids, minlength=ids).astype(np.int64)

    def padded(self, rows: Rows) -> tuple[Rows, Rows]:
        """Return token ids and attention mask of ``rows``, both (len(rows), longest), int64."""
        lengths = self.lengths[rows]
        columns = np.arange(max(int(lengths.max(initial=0)), 1))
        mask = columns[None, :] < lengths[:, None]  # (B, T)
        ids = np.full(mask.shape, self.pad_id, np.int64)
        ids[mask] = self.flat[(self._offsets[rows][:, None] + columns)[mask]]
        return ids, mask.astype(np.int64)


def length_chunks(lengths: Rows, max_tokens: int) -> Iterator[Rows]:
    """Yield positions in ``lengths`` (N,), shortest first, ≤ ``max_tokens`` padded per chunk.

    Texts of like length share a chunk, so that little is padded.
    """
    order = np.argsort(lengths, kind="stable")
    ranked = lengths[order]
    start = 0
    while start < len(order):
        near = np.maximum(ranked[start : start + max_tokens], 1)
        width = np.arange(1, len(near) + 1) * near
        take = max(int(np.searchsorted(width, max_tokens, side="right")), 1)
        yield order[start : start + take]
        start += take


def map_rows(values: Path, ends: Path, kind: type[T]) -> tuple[npt.NDArray[T], Rows] | None:
    """Map N rows of numbers from disk: one behind the other (T,), and where each ends (N,).

    None where there is no file. Plain arrays over the mapped pages: a request reads them faster.
    """
    if not values.exists():
        return None
    empty = not values.stat().st_size  # nothing can be mapped
    mapped = np.zeros(0, kind) if empty else np.memmap(values, kind, "r")
    return np.asarray(mapped), np.asarray(np.load(ends, mmap_mode="r"))
