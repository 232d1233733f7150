"""The learning rate of a step (A5, A31), and the randomness of a step.

- LLM: :func:`warmed` by ``llm.warmup`` and ``llm.schedule`` (linear or cosine).
- Retriever (EBR): warmed for 6 % of the steps, linear.
- Towers, short query tower, cross-encoder: :class:`Schedule`, warmed for ``towers.warmup`` of the
  steps, by default none, linear from ``towers.lr`` to ``towers.lr_end``.
- Encoder baseline: warmed for a tenth of the steps, linear; the head from a peak of its own.

The demo's base models (``demo/bases/``) cool down by rules of their own, once they have learnt.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch


@dataclass(frozen=True)
class Schedule:
    """From zero up to ``peak`` in ``warmup`` steps, then down to ``end``, reached at ``until``."""

    peak: float
    until: int  # step at which the rate is `end`: the last one, or the one after it
    end: float = 0.0
    warmup: int = 0  # steps
    shape: Literal["linear", "cosine"] = "linear"  # of the way down

    def rate(self, step: int) -> float:
        """Return the learning rate of ``step``, counted from 0."""
        if step < self.warmup:
            return self.peak * (step + 1) / self.warmup
        span = self.until - self.warmup
        left = (self.until - step) / span if span > 0 else 1.0
        if self.shape == "cosine":
            left = (1.0 - math.cos(math.pi * left)) / 2.0
        return self.end + (self.peak - self.end) * left


def warmed(
    peak: float, steps: int, share: float, shape: Literal["linear", "cosine"] = "linear"
) -> Schedule:
    """Return the usual schedule: warm-up for a share of the steps, then to zero after the last."""
    return Schedule(peak, steps, warmup=max(1, round(share * steps)), shape=shape)


def seed_step(seed: int, step: int, rank: int) -> None:
    """Make what follows (dropout) a function of these three alone."""
    (state,) = np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)
    torch.manual_seed(int(state))
