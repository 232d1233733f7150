"""Texts tokenised once and kept ragged, so that a batch is two array gathers (no re-tokenising)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Rows = npt.NDArray[np.int64]


class TokenisedTexts:
    """Token ids of N texts: one flat int32 array and N + 1 offsets."""

    def __init__(self, tokenizer: Any, texts: Sequence[str], max_length: int) -> None:
        """Tokenise ``texts``, each cut to ``max_length`` tokens (special tokens included)."""
        ids: list[list[int]] = []
        if texts:
            ids = tokenizer(list(texts), truncation=True, max_length=max_length)["input_ids"]
        self.lengths: Rows = np.array([len(x) for x in ids], dtype=np.int64)
        self._offsets: Rows = np.concatenate([[0], np.cumsum(self.lengths)])
        self._flat = np.fromiter((t for x in ids for t in x), np.int32, int(self._offsets[-1]))

    def __len__(self) -> int:
        """Return N."""
        return len(self.lengths)

    def batch(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """Return ids and attention mask, both (len(rows), longest) int64; padding is id 0, mask 0.

        The padding id does not matter to a model that honours the mask.
        """
        lengths = self.lengths[rows]
        columns = np.arange(max(int(lengths.max(initial=1)), 1))
        mask = columns[None, :] < lengths[:, None]  # (B, T)
        ids = np.zeros(mask.shape, np.int64)
        ids[mask] = self._flat[(self._offsets[rows, None] + columns)[mask]]
        return torch.from_numpy(ids), torch.from_numpy(mask.astype(np.int64))

    def by_length(self, batch_tokens: int) -> Iterator[Rows]:
        """Yield every row once, in batches of like length of at most ``batch_tokens`` padded."""
        order = np.argsort(self.lengths, kind="stable")
        start = 0
        for end in range(1, len(order) + 1):
            full = end == len(order) or self.lengths[order[end]] * (end + 1 - start) > batch_tokens
            if full:
                yield order[start:end]
                start = end
