"""One tower: token ids to unit vectors per head; with one trunk or one for each head (A27, A29)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from csrm_tasks.towers.words import WordChannel

if TYPE_CHECKING:
    from transformers import PreTrainedModel

HEADS = ("em", "defect")


class Tower(nn.Module):
    """One side: token ids to unit vectors of ``heads`` heads, by one trunk."""

    def __init__(
        self, encoder: PreTrainedModel, dim: int, heads: int = len(HEADS), lexical: bool = False
    ) -> None:
        """``lexical``: with a :class:`WordChannel`, which waits for its start."""
        super().__init__()
        self.encoder = encoder
        hidden = int(encoder.config.hidden_size)
        self.words = WordChannel(int(encoder.config.vocab_size), hidden) if lexical else None
        # One for both, so that an export finds one product of a text to keep in fp32.
        parts = 1 + (WordChannel.PARTS if lexical else 0)
        self.projection = nn.Linear(parts * hidden, heads * dim)
        self.dim, self.heads = dim, heads

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Map ids and mask (B, T) to vectors (B, heads, dim) of length 1, in fp32 always."""
        read = self.mean_state(input_ids, attention_mask)
        with torch.autocast(read.device.type, enabled=False):  # s·c magnifies a cosine's rounding
            if self.words is not None:
                rows = self.encoder.get_input_embeddings()(input_ids)
                read = torch.cat([read, self.words(rows, input_ids, attention_mask)], dim=-1)
            return F.normalize(self.projection(read).view(-1, self.heads, self.dim), dim=-1)

    def mean_state(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Map ids and mask (B, T) to the mean of the encoder's last states (B, hidden)."""
        states = self.encoder(input_ids=input_ids, attention_mask=attention_mask)
        return token_mean(states.last_hidden_state, attention_mask)


class SplitTower(nn.Module):
    """One side with a trunk for each head, as the paper has it: twice the work (A29)."""

    def __init__(self, trunks: Sequence[Tower]) -> None:
        super().__init__()
        self.trunks = nn.ModuleList(trunks)
        self.dim = trunks[0].dim

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Map ids and mask (B, T) to vectors (B, 2, dim), each of length 1, in fp32 always."""
        return torch.cat([trunk(input_ids, attention_mask) for trunk in self.trunks], dim=1)


AnyTower = Tower | SplitTower


def trunks_of(side: AnyTower) -> list[Tower]:
    """Return a side's trunks: one for both heads, or one for each."""
    return [side] if isinstance(side, Tower) else [cast(Tower, t) for t in side.trunks]


def token_mean(hidden: Tensor, chosen: Tensor) -> Tensor:
    """Return the mean of the states (B, T, H) at ``chosen`` tokens (B, T), 0 or 1: (B, H)."""
    real = chosen.unsqueeze(-1).to(hidden.dtype)  # (B, T, 1)
    mean: Tensor = (hidden * real).sum(dim=1) / real.sum(dim=1).clamp(min=1.0)
    return mean
