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
from csrm_tasks.towers.train import device_of, in_chunks, pair_logits
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
    counts = products.rows_with(int(model.config.vocab_size))
    for side, table in ((model.query, queries), (model.product, products)):
        for tower in trunks_of(side):
            states = _states(tower, table, rng)
            mean = states.mean(0)
            if fitted:
                tower.projection.bias.copy_(-(_of_mean(tower) @ mean))
                states = states - mean
            if tower.words is not None:
                size = float(states.norm(dim=-1).mean())
                _start_words(tower, counts, len(products), size, seed)
    if fitted:
        _fit_biases(model, examples, queries, products, rng)
    model.train(was)


def _start_words(tower: Tower, counts: Rows, texts: int, size: float, seed: int) -> None:
    """Weigh tokens, each held by ``counts`` (V,) of ``texts`` products, by how few hold them.

    What they give is projected to the mean's ``size``, by an orthogonal map of each of its parts,
    the same for heads and towers.
    """
    assert tower.words is not None
    table = tower.encoder.get_input_embeddings().weight
    share = torch.from_numpy(counts / counts.sum()).to(table)
    tower.words.start(token_weights(counts, texts), share @ table)
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
    return in_chunks(
        tower.mean_state, device_of(tower), table.lengths[rows], lambda at: table.batch(rows[at])
    )


def _fit_biases(
    model: TwinTowers, examples: Examples, queries: TokenTable, products: TokenTable,
    rng: np.random.Generator,
) -> None:  # fmt: skip
    """Choose b, 0 so far, by bisection: the mean of σ(s·c + b) grows with it."""
    rows = _some(len(examples), PAIRS, rng)
    logits = pair_logits(model, queries, products, examples.query[rows], examples.product[rows])
    targets = (examples.exact[rows], 1.0 - examples.irrelevant[rows])
    found = [
        _bias(z, float(t.mean()))
        for z, t in zip(logits.double().cpu().numpy().T, targets, strict=True)
    ]
    model.bias.copy_(torch.tensor(found))


def _bias(logits: npt.NDArray[np.float64], mean: float) -> float:
    low, high = -STEEPEST, STEEPEST
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        below = (1.0 / (1.0 + np.exp(-(logits + middle)))).mean() < mean
        low, high = (middle, high) if below else (low, middle)
    return (low + high) / 2


def _some(size: int, most: int, rng: np.random.Generator) -> Rows:
    return np.sort(rng.choice(size, min(size, most), replace=False)).astype(np.int64)
