"""Texts as the retriever reads them, tokenised once, and batches of like length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from csrm_tasks.ragged import Ragged, Rows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

USEFUL = 0.96  # share of a batch's tokens that must be real
SMALL_TOKENS = 256  # below which a batch is filled up all the same


class TokenisedTexts(Ragged):
    """Token ids of N texts as the retriever reads them."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_length: int
    ) -> None:
        """Tokenise ``texts``, each cut to ``max_length`` tokens with all that is added to it."""
        ids: list[list[int]] = []
        if texts:
            ids = tokenizer(list(texts), truncation=True, max_length=max_length)["input_ids"]
        super().__init__(ids)

    def batch(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """Return ids and attention mask, both (len(rows), longest) int64; padding is id 0, mask 0.

        The padding id does not matter to a model that honours the mask.
        """
        ids, mask = self.padded(rows)
        return torch.from_numpy(ids), torch.from_numpy(mask)

    def by_length(self, batch_tokens: int) -> Iterator[Rows]:
        """Yield every row once, in batches of like length of at most ``batch_tokens`` padded.

        A batch also ends where the next, longer row would leave too much padding (A11), unless it
        is still too small to be worth a call.
        """
        order = np.argsort(self.lengths, kind="stable")
        start, real = 0, 0
        for end, length in enumerate(self.lengths[order].tolist()):
            padded = length * (end + 1 - start)
            wasteful = real + length < USEFUL * padded and padded > SMALL_TOKENS
            if end > start and (padded > batch_tokens or wasteful):
                yield order[start:end]
                start, real = end, 0
            real += length
        if len(order):
            yield order[start:]
