"""Training the towers: batches grouped by query, every distinct text of a batch encoded once.

The loss is :func:`csrm_tasks.towers.losses.towers_loss`.

A batch of 64 queries × 16 products (A31) is 1024 pairs, but at most 64 query texts and far fewer
than 1024 different titles where queries share products. Encoding is what costs, so texts are
deduplicated within the batch, sorted by length, encoded in few chunks of like length, and the
pairs are gathered from the vectors. Texts are tokenised once for the whole run.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from csrm_tasks.ragged import length_chunks
from csrm_tasks.sections import Rates, Towers
from csrm_tasks.towers.examples import Examples, batches
from csrm_tasks.towers.losses import head_logits, towers_loss
from csrm_tasks.towers.model import TwinTowers
from csrm_tasks.towers.serving.tokens import TokenTable
from csrm_tasks.training.checkpoints import Checkpoints
from csrm_tasks.training.optimizer import EncoderOptimizer
from csrm_tasks.training.schedule import Schedule

log = logging.getLogger("csrm")

Rows = npt.NDArray[np.int64]
Logits = Callable[[Any, TokenTable, TokenTable, Rows, Rows], Tensor]  # pairs of rows → (P, 2)

HEAD = ("scale", "bias")  # of the towers' heads (A28)
HEAD_LR = 100.0  # scale and bias are four numbers that must travel far: their share of the rate
CHUNKS = 4  # chunks of like length that a batch's texts are encoded in …
MIN_TOKENS = 1024  # … unless they would be smaller than what a forward pass costs anyway
REPORTS = 20  # progress lines and curve points of one training


@dataclass(frozen=True)
class TrainPlan:
    """How long and how fast; see the ``towers`` section of a market."""

    steps: int
    batch_queries: int
    batch_products: int
    lr: float
    lr_end: float
    seed: int
    rates: Rates = field(default_factory=Rates)
    warmup: float = 0.0  # share of the steps

    @classmethod
    def of(cls, config: Towers, seed: int, products: int | None = None) -> TrainPlan:
        """Return a market's plan; ``products``: of each query of a step, if not as it says."""
        return cls(
            config.steps, config.batch_queries, products or config.batch_products,
            config.lr, config.lr_end, seed, config.rates, config.warmup,
        )  # fmt: skip

    @property
    def schedule(self) -> Schedule:
        """Linear, after the warm-up, from ``lr`` to ``lr_end`` in the last step (A31)."""
        warm = round(self.warmup * self.steps)
        return Schedule(self.lr, self.steps - 1, self.lr_end, warm)


@dataclass
class TowerProgress:
    """What a checkpoint remembers besides tensors."""

    step: int = 0
    pairs: int = 0
    seconds: float = 0.0
    loss: float = 0.0  # mean since the last report
    since: int = 0
    curve: list[tuple[int, float]] = field(default_factory=list)


def train(
    model: nn.Module,
    examples: Examples,
    queries: TokenTable,
    products: TokenTable,
    plan: TrainPlan,
    checkpoint: Path,
    dtype: torch.dtype = torch.float32,
    logits_of: Logits | None = None,
) -> TowerProgress:
    """Train ``model`` in place on the device it lies on and return what happened.

    ``queries`` and ``products`` hold the texts of ``examples``; ``logits_of`` is how ``model``
    judges pairs of them, by default :func:`pair_logits` of twin towers. With ``dtype`` bf16 the
    encoders' matrix products are taken in it; weights, residual sums and loss stay fp32 (A13).
    Killed and started again with the same arguments it ends in the same weights: the batch and the
    dropout of a step depend on the seed and the step's number alone, the rest is in ``checkpoint``.
    """
    judge: Logits = logits_of or pair_logits
    device = device_of(model)
    optimizer = _optimizer(model, plan)
    checkpoints = Checkpoints(checkpoint)
    progress = TowerProgress(**(checkpoints.restore(model, optimizer) or {}))
    if progress.step:
        log.info("towers: resumed at step %d of %d", progress.step, plan.steps)
    stream = batches(
        examples.query, examples.product, plan.batch_queries, plan.batch_products, plan.seed
    )
    targets = torch.from_numpy(np.stack([examples.exact, examples.irrelevant], 1))  # (P, 2)
    model.train()
    began = time.monotonic() - progress.seconds
    for rows in islice(stream, progress.step, plan.steps):
        torch.manual_seed(plan.seed * 1_000_003 + progress.step)  # dropout
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            logits = judge(model, queries, products, examples.query[rows], examples.product[rows])
        target = targets[torch.from_numpy(rows)].to(device)
        loss = towers_loss(logits, target[:, 0], target[:, 1])
        _step(optimizer, loss, progress.step)
        progress.seconds = time.monotonic() - began
        _note(progress, float(loss.detach()), len(rows), plan.steps)
        if checkpoints.due():
            checkpoints.save(model, optimizer, progress.__dict__)
    optimizer.finish()
    model.eval()
    return progress


def pair_logits(
    model: TwinTowers, queries: TokenTable, products: TokenTable, query: Rows, product: Rows
) -> Tensor:
    """Return logits (P, 2) of pairs of text rows; each distinct text is encoded once."""
    q, q_at = np.unique(query, return_inverse=True)
    p, p_at = np.unique(product, return_inverse=True)
    q_vectors = _pick(encode_rows(model.query, queries, q), q_at)  # (P, 2, dim)
    p_vectors = _pick(encode_rows(model.product, products, p), p_at)
    return head_logits((q_vectors * p_vectors).sum(-1), model.scale, model.bias)


def encode_rows(tower: nn.Module, table: TokenTable, rows: Rows) -> Tensor:
    """Encode texts (len(rows), 2, dim), in the order given."""
    return in_chunks(tower, device_of(tower), table.lengths[rows], lambda at: table.batch(rows[at]))


def in_chunks(
    run: Callable[[Tensor, Tensor], Tensor], device: torch.device, lengths: Rows,
    batch: Callable[[Rows], tuple[Rows, Rows]],
) -> Tensor:  # fmt: skip
    """Run ``run`` on rows of ``lengths`` (N,) tokens in chunks of like length; (N, …), in order.

    ``batch`` gives token ids and mask of the rows at the positions that it is asked for; they are
    brought to ``device``.
    """
    budget = -(-int(lengths.sum()) // CHUNKS)
    parts, order = [], []
    for at in length_chunks(lengths, max(budget, MIN_TOKENS)):
        ids, mask = batch(at)
        parts.append(run(torch.from_numpy(ids).to(device), torch.from_numpy(mask).to(device)))
        order.append(at)
    return _pick(torch.cat(parts), np.argsort(np.concatenate(order)))


def device_of(module: nn.Module) -> torch.device:
    """Return where the weights of ``module`` lie."""
    return next(module.parameters()).device


def _pick(values: Tensor, rows: Rows) -> Tensor:
    """Return ``values[rows]``, whose gradient several threads sum in the same order every time."""
    return values.index_select(0, torch.from_numpy(rows).to(values.device))


def _optimizer(model: nn.Module, plan: TrainPlan) -> EncoderOptimizer:
    named = dict(model.named_parameters())
    heads = [p for name in HEAD if (p := named.get(name)) is not None and p.requires_grad]
    apart = {"params": heads, "weight_decay": 0.0, "share": HEAD_LR}
    return EncoderOptimizer(model, plan.schedule, plan.rates, [apart])


def _step(optimizer: EncoderOptimizer, loss: Tensor, step: int) -> None:
    torch.autograd.backward(loss)
    optimizer.update(step)


def _note(progress: TowerProgress, loss: float, pairs: int, steps: int) -> None:
    progress.step += 1
    progress.pairs += pairs
    progress.loss += (loss - progress.loss) / (progress.step - progress.since)
    if progress.step % max(steps // REPORTS, 1) == 0 or progress.step == steps:
        progress.curve.append((progress.step, progress.loss))
        log.info(
            "towers: step %d of %d, loss %.4f, %.0f pairs/s", progress.step, steps, progress.loss,
            progress.pairs / max(progress.seconds, 1e-9),
        )  # fmt: skip
        progress.loss, progress.since = 0.0, progress.step
