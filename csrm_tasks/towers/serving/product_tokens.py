"""Products' titles as the second stage reads them, tokenised once and kept beside their vectors.

Mapped from disk as the vectors are: a request touches the tokens of the products it re-ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from csrm_tasks.ragged import map_rows

if TYPE_CHECKING:  # who only names these files needs no tokenizer
    from csrm_tasks.towers.serving.tokens import TokenTable

Ids = npt.NDArray[np.int32]
Places = npt.NDArray[np.int64]

FILES = ("tokens.bin", "token_ends.npy")
CHUNK = 16_384  # titles tokenised at once


@dataclass(frozen=True)
class ProductTokens:
    """Token ids of N products, one behind the other."""

    values: Ids  # (T,)
    ends: Places  # (N,)

    def __len__(self) -> int:
        """Return N."""
        return len(self.ends)

    def of_row(self, row: int) -> list[int]:
        """Return the token ids of one product."""
        ids: list[int] = self.values[self.ends[row - 1] if row else 0 : self.ends[row]].tolist()
        return ids

    @classmethod
    def load(cls, folder: Path) -> ProductTokens | None:
        """Open what :func:`write_tokens` wrote, mapped from disk; None where there is nothing."""
        mapped = map_rows(folder / FILES[0], folder / FILES[1], np.int32)
        return cls(*mapped) if mapped else None


def write_tokens(
    folder: Path, titles: Sequence[str], read: Callable[[Sequence[str]], TokenTable]
) -> None:
    """Write the tokens of product texts as ``read`` reads them."""
    lengths: list[Places] = [np.zeros(0, np.int64)]
    with (folder / FILES[0]).open("wb") as file:
        for start in range(0, len(titles), CHUNK):
            table = read(titles[start : start + CHUNK])
            table.flat.astype("<i4", copy=False).tofile(file)
            lengths.append(table.lengths)
    np.save(folder / FILES[1], np.cumsum(np.concatenate(lengths)))
