"""What changes from step to step of a training: the learning rate, and the randomness (A5)."""

from __future__ import annotations

import math

import numpy as np
import torch

from csrm_tasks.sections import Llm


def learning_rate(step: int, config: Llm) -> float:
    """Return the rate of 0-based ``step``: linear warm-up, then linear or cosine to zero (A5)."""
    warmup = max(1, round(config.warmup * config.steps))
    if step < warmup:
        return config.lr * (step + 1) / warmup
    left = (config.steps - step) / max(1, config.steps - warmup)
    if config.schedule == "cosine":
        left = (1.0 - math.cos(math.pi * left)) / 2.0
    return config.lr * left


def seed_step(seed: int, step: int, rank: int) -> None:
    """Make what follows (dropout) a function of these three alone."""
    (state,) = np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)
    torch.manual_seed(int(state))
