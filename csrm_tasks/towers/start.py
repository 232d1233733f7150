"""What towers start from beside their base: fitted to a market's own texts before the first step.

All of it is a function of the model, the examples and a seed, so that a resumed training starts
from the same.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from csrm_tasks.towers.examples import Examples
from csrm_tasks.towers.model import TwinTowers
from csrm_tasks.towers.serving.tokens import TokenTable
from csrm_tasks.towers.tower import Tower, trunks_of
from csrm_tasks.towers.train import encode_rows, in_chunks
from csrm_tasks.towers.words import token_weights

TEXTS, PAIRS = 512, 1024  # that means and biases are taken of, at most
STEEPEST = 60.0  # bound of a bias
HALVINGS = 60

Rows = npt.NDArray[np.int64]


@torch.inference_mode()
def start(
    model: TwinTowers, examples: Examples, queries: TokenTable, products: TokenTable, seed: int,
    *, fitted: bool,
) -> None:  # fmt: skip
    """Start the lexical channels of ``model``, in place, and with ``fitted`` centre it (A28).

    Centring takes the mean state of each tower's texts from its states, so that first cosines are
    those of what tells texts apart; b is then such that each head's mean probability is the mean
    target, in place of 0.
    """
    was, rng = model.training, np.random.default_rng([seed, len(examples)])
    model.eval()
    for side, table in ((model.query, queries), (model.product, products)):
        for tower in trunks_of(side):
            states = _states(tower, table, rng)
            mean = states.mean(0)
            if fitted:
                tower.projection.bias.copy_(-(_of_mean(tower) @ mean))
                states = states - mean
            if tower.words is not None:
                _start_words(tower, products, float(states.norm(dim=-1).mean()), seed)
    if fitted:
        _fit_biases(model, examples, queries, products, rng)
    model.train(was)


def _start_words(tower: Tower, products: TokenTable, size: float, seed: int) -> None:
    """Weigh tokens by how few products hold them; project what they give to the mean's ``size``.

    That projection is an orthogonal map of each of their parts, the same for heads and towers.
    """
    assert tower.words is not None
    table = tower.encoder.get_input_embeddings().weight
    counts = products.rows_with(len(table))
    share = torch.from_numpy(counts / counts.sum()).to(table)
    tower.words.start(token_weights(counts, len(products)), share @ table)
    generator = torch.Generator().manual_seed(seed)
    parts = [
        nn.init.orthogonal_(torch.empty(tower.dim, table.shape[1]), generator=generator)
        for _ in range(tower.words.PARTS)
    ]
    matrix = size * torch.cat(parts, dim=1)  # (dim, parts · hidden)
    tower.projection.weight[:, table.shape[1] :] = matrix.repeat(tower.heads, 1)


def _of_mean(tower: Tower) -> Tensor:
    """Return the projection's columns that read the mean state (heads · dim, hidden)."""
    return tower.projection.weight[:, : tower.encoder.config.hidden_size]


def _states(tower: Tower, table: TokenTable, rng: np.random.Generator) -> Tensor:
    """Return the mean states (N, hidden) of at most :data:`TEXTS` texts."""
    rows = _some(len(table), TEXTS, rng)
    return in_chunks(_MeanStates(tower), table.lengths[rows], lambda at: table.batch(rows[at]))


class _MeanStates(nn.Module):
    """A tower up to the mean of its encoder's states."""

    def __init__(self, tower: Tower) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Map ids and mask (B, T) to (B, hidden)."""
        return self.tower.mean_state(input_ids, attention_mask)


def _fit_biases(
    model: TwinTowers, examples: Examples, queries: TokenTable, products: TokenTable,
    rng: np.random.Generator,
) -> None:  # fmt: skip
    """Choose b by bisection: the mean of σ(s·c + b) grows with it."""
    rows = _some(len(examples), PAIRS, rng)
    cosine = _cosines(model, examples, queries, products, rows)  # (P, 2)
    targets = (examples.exact[rows], 1.0 - examples.irrelevant[rows])
    scales = model.scale.tolist()
    found = [
        _bias(s * c.astype(np.float64), float(t.mean()))
        for s, c, t in zip(scales, cosine.T, targets, strict=True)
    ]
    model.bias.copy_(torch.tensor(found))


def _cosines(
    model: TwinTowers, examples: Examples, queries: TokenTable, products: TokenTable, rows: Rows
) -> npt.NDArray[np.float32]:
    vectors = []
    for side, table, texts in (
        (model.query, queries, examples.query[rows]),
        (model.product, products, examples.product[rows]),
    ):
        distinct, at = np.unique(texts, return_inverse=True)
        vectors.append(encode_rows(side, table, distinct).cpu().numpy()[at])
    cosine: npt.NDArray[np.float32] = np.einsum("phd,phd->ph", *vectors)
    return cosine


def _bias(logits: npt.NDArray[np.float64], mean: float) -> float:
    low, high = -STEEPEST, STEEPEST
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        below = (1.0 / (1.0 + np.exp(-(logits + middle)))).mean() < mean
        low, high = (middle, high) if below else (low, middle)
    return (low + high) / 2


def _some(size: int, most: int, rng: np.random.Generator) -> Rows:
    return np.sort(rng.choice(size, min(size, most), replace=False)).astype(np.int64)
