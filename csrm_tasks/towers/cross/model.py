"""The cross-encoder: one tower that reads query and title together (paper 1, future work).

    query tokens + title tokens → encoder, every token seeing both texts
         → mean over the query's tokens, mean over the title's → projection of each per head
         → cosine → s·c + b: logits (B, 2); heads: exact match, not defect

Twin towers give up that a title's tokens see the query, so that a product is embedded once; here
each pair costs a run of the encoder. It learns the same soft labels with the same loss. What it
says is read out as from twin towers (A27-A29), not by a linear layer on one mean: so it starts from
what the base knows of likeness, and does not have to learn to compare.

The texts stand one after the other as each tower reads it, special tokens included, so that both
are tokenised once, not once a pair.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from csrm_tasks.errors import ConfigError
from csrm_tasks.ragged import length_chunks
from csrm_tasks.towers.losses import head_logits
from csrm_tasks.towers.model import start_equal
from csrm_tasks.towers.serving.tokens import TokenTable
from csrm_tasks.towers.tower import HEADS, token_mean
from csrm_tasks.towers.train import device_of, in_chunks
from csrm_tasks.training.encoders import load_encoder, longest

Rows = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]

BATCH_TOKENS = 4096  # padded tokens of one inference batch


class CrossEncoder(nn.Module):
    """Token ids of pairs to the logits of both heads."""

    def __init__(self, encoder: Any, *, dim: int | None, scale: float, learn_scale: bool) -> None:
        super().__init__()
        self.encoder = encoder
        width = int(encoder.config.hidden_size)
        self.dim = dim or width
        self.query = nn.Linear(width, len(HEADS) * self.dim)
        self.product = nn.Linear(width, len(HEADS) * self.dim)
        self.scale = nn.Parameter(torch.full((len(HEADS),), scale), requires_grad=learn_scale)
        self.bias = nn.Parameter(torch.zeros(len(HEADS)), requires_grad=learn_scale)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Map ids (B, T) to logits (B, 2), in fp32 always.

        ``attention_mask`` (B, T) says whose a token is: 0 padding, 1 the query's, 2 the title's.
        """
        real = (attention_mask > 0).long()
        hidden = self.encoder(input_ids=input_ids, attention_mask=real).last_hidden_state
        with torch.autocast(hidden.device.type, enabled=False):
            query = self._unit(self.query(token_mean(hidden, attention_mask == 1)))
            product = self._unit(self.product(token_mean(hidden, attention_mask == 2)))
            return head_logits((query * product).sum(-1), self.scale, self.bias)

    def _unit(self, projected: Tensor) -> Tensor:
        return F.normalize(projected.view(-1, len(HEADS), self.dim), dim=-1)  # (B, 2, dim)

    @classmethod
    def from_base(
        cls, name: str, *, dim: int | None, scale: float, learn_scale: bool, tokens: int, seed: int
    ) -> CrossEncoder:
        """Start from a pretrained encoder that must read ``tokens`` tokens; ``dim`` as towers'.

        Raises :class:`ConfigError` when it cannot be loaded, or reads fewer.
        """
        encoder = load_encoder("towers.encoder", name)
        most = longest(encoder.config)
        if tokens > most:
            raise ConfigError(
                f"towers.query_tokens and title_tokens are {tokens} together, but {name!r} reads "
                f"{most} at once; lower one of them, or set controls.cross_encoder and "
                "second_stage.enabled to false"
            )
        model = cls(encoder, dim=dim, scale=scale, learn_scale=learn_scale)
        start_equal(model.query, model.product, dim, torch.Generator().manual_seed(seed))
        return model


def cross_logits(
    model: CrossEncoder, queries: TokenTable, products: TokenTable, query: Rows, product: Rows
) -> Tensor:
    """Return logits (P, 2) of pairs of text rows, encoded in chunks of like length."""
    lengths = queries.lengths[query] + products.lengths[product]
    return in_chunks(
        model, device_of(model), lengths,
        lambda at: queries.joined(products, query[at], product[at]),
    )  # fmt: skip


@torch.inference_mode()
def cross_probabilities(
    model: CrossEncoder, queries: TokenTable, products: TokenTable, query: Rows, product: Rows
) -> Floats:
    """Return (P, 2): probability of exact match and of defect."""
    good: Floats = np.zeros((len(query), len(HEADS)), np.float32)
    for at in length_chunks(queries.lengths[query] + products.lengths[product], BATCH_TOKENS):
        logits = cross_logits(model, queries, products, query[at], product[at])
        good[at] = torch.sigmoid(logits).cpu().numpy()
    return np.stack([good[:, 0], 1.0 - good[:, 1]], axis=1)
