"""The lexical channel of a tower: which tokens a text holds, beside what the encoder makes of them.

A brand, a colour or a model number is matched by its letters. An encoder's mean of states says what
a text is about, and needs very many pairs before it keeps such words apart. So a tower projects,
beside that mean,

    u(text) = Σ_t w_t · e'_t / √(Σ_t w_t²),       e'_t = (e_t - m) / ‖e_t - m‖
    v(text) = Σ_t v_t · b_t / √(Σ_t v_t²),        b_t = √H · e'_t ∘ P e'_{t+1}
                                                  v_t = √(w_t · w_{t+1})

where e_t is the token's row of the table (H numbers), m the mean row of the market's tokens, w_t
the token's learnt weight and P a rotation by one place. Rows of different tokens are nearly
orthogonal in a few hundred dimensions, and so are products of them, so u(query) · u(product) is
nearly the weight of the tokens that both have, and v(query) · v(product) that of the neighbours: a
term match within one dense vector, without a table of n-grams. Compare densified lexical
representations (Lin & Lin 2021, arXiv:2112.04666) and n-grams bound by products (Joshi et al. 2016,
arXiv:1412.7026). Weights start as inverse document frequencies.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

LEAST_IDF = 0.05  # of a token that every product has: it may still be learnt


class WordChannel(nn.Module):
    """Maps the table's rows of a text's tokens to u and v above, one behind the other."""

    PARTS = 2  # times the width of a row

    def __init__(self, vocabulary: int, hidden: int) -> None:
        """Take rows of ``hidden`` numbers of ``vocabulary`` tokens."""
        super().__init__()
        self.weight = nn.Embedding(vocabulary, 1)  # log w_t
        nn.init.zeros_(self.weight.weight)
        self.mean: Tensor
        self.register_buffer("mean", torch.zeros(hidden))

    def forward(self, rows: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """Map the table's rows (B, T, H) of ``ids`` (B, T) to (B, 2 H), in fp32."""
        log_weight = self.weight(ids).squeeze(-1)  # (B, T)
        each = F.normalize(rows - self.mean, dim=-1)
        neighbours = each[:, :-1] * each[:, 1:].roll(1, -1) * each.shape[-1] ** 0.5
        both = ((log_weight[:, :-1] + log_weight[:, 1:]) / 2).exp() * mask[:, 1:]
        return torch.cat([_sum(each, log_weight.exp() * mask), _sum(neighbours, both)], dim=-1)

    @torch.no_grad()
    def start(self, weight: Tensor, mean: Tensor) -> None:
        """Start from token weights (V,) and the mean row (hidden,)."""
        self.weight.weight.copy_(weight.log().unsqueeze(-1))
        self.mean.copy_(mean)


def _sum(vectors: Tensor, weight: Tensor) -> Tensor:
    """Return (B, H), the sum of vectors (B, T, H) by weights (B, T), over the weights' norm."""
    size = weight.square().sum(dim=1, keepdim=True).clamp(min=1e-12).sqrt()
    total: Tensor = (vectors * weight.unsqueeze(-1)).sum(dim=1) / size
    return total


def token_weights(counts: npt.NDArray[np.int64], texts: int) -> Tensor:
    """Return inverse document frequencies (V,) of tokens that ``counts`` (V,) of ``texts`` hold."""
    idf = np.log((texts + 1.0) / (counts + 1.0))
    return torch.from_numpy(np.maximum(idf, LEAST_IDF).astype(np.float32))
