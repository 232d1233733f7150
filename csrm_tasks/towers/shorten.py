"""Teaching a cut query tower the vectors of the full one, without labels (A34).

The product tower and its vectors stay, so what a short query tower must match is the full one's
vectors: the loss is the mean over heads of 1 - cosine to them. A logit is off by s·‖q - q'‖ at
most, whatever the product. Texts are queries of all locales, none of dev and gold.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from csrm_tasks.towers.depth import own_parameters
from csrm_tasks.towers.serving.tokens import TokenTable
from csrm_tasks.towers.tower import AnyTower, trunks_of
from csrm_tasks.towers.train import REPORTS, TrainPlan, encode_rows
from csrm_tasks.training.checkpoints import Checkpoints
from csrm_tasks.training.optimizer import EncoderOptimizer

log = logging.getLogger("csrm")

Vectors = npt.NDArray[np.float32]
MAX_LOSS = 0.02  # of F1 on dev by either head: a short tower that loses more does not serve


@dataclass
class ShortenProgress:
    """What a checkpoint remembers besides tensors."""

    step: int = 0
    curve: list[tuple[int, float]] = field(default_factory=list)


def distil(
    short: AnyTower, queries: TokenTable, wanted: Vectors, plan: TrainPlan, checkpoint: Path
) -> ShortenProgress:
    """Train ``short`` in place towards ``wanted`` (N, 2, dim), the full tower's query vectors.

    Without dropout: the batch of a step depends on the seed and its number alone, so that a killed
    run, started again with the same arguments, ends in the same weights.
    """
    own = nn.ParameterList([p for trunk in trunks_of(short) for p in own_parameters(trunk)])
    short.requires_grad_(False).eval()
    own.requires_grad_(True)
    optimizer = EncoderOptimizer(short, plan.schedule, plan.rates)
    checkpoints = Checkpoints(checkpoint)
    progress = ShortenProgress(**(checkpoints.restore(own, optimizer) or {}))
    size = min(plan.batch_queries, len(queries))
    while progress.step < plan.steps:
        rng = np.random.default_rng([plan.seed, progress.step])
        rows = rng.choice(len(queries), size, replace=False)
        target = torch.from_numpy(wanted[rows])
        loss = cosine_loss(encode_rows(short, queries, rows), target)
        torch.autograd.backward(loss)
        optimizer.update(progress.step)
        _note(progress, float(loss.detach()), plan.steps)
        if checkpoints.due():
            checkpoints.save(own, optimizer, progress.__dict__)
    return progress


def cosine_loss(vectors: Tensor, wanted: Tensor) -> Tensor:
    """Mean over texts and heads of 1 - cosine; both (N, 2, dim) of unit vectors."""
    return 1.0 - (vectors * wanted).sum(-1).mean()


def _note(progress: ShortenProgress, loss: float, steps: int) -> None:
    progress.step += 1
    if progress.step % max(steps // REPORTS, 1) == 0 or progress.step == steps:
        progress.curve.append((progress.step, loss))
        log.info("short query tower: step %d of %d, 1 - cosine %.4f", progress.step, steps, loss)
