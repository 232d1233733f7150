"""Probabilities of grades beside the pairs that they are of. Light: no torch here."""

from __future__ import annotations

import numpy as np
import polars as pl

from csrm_tasks.llm.scoring.calibration import Floats, apply_temperature
from csrm_tasks.records import SCORED

PROBABILITIES = ("p0", "p1", "p2")


def tempered(scored: pl.DataFrame, temperature: float) -> pl.DataFrame:
    """Return scored pairs with p0, p1, p2 at another temperature, as a share of the one they have.

    At 1 the very same; else equal to scoring at that temperature but for the rounding of p to fp32.
    """
    if temperature == 1.0:
        return scored
    probabilities = scored.select(PROBABILITIES).to_numpy().astype(np.float64)
    return with_probabilities(
        scored.drop(PROBABILITIES), apply_temperature(probabilities, temperature)
    )


def with_probabilities(pairs: pl.DataFrame, probabilities: Floats) -> pl.DataFrame:
    """Append p0, p1, p2 (N, K ≤ 3) to ``pairs`` as float32."""
    missing = np.zeros((len(probabilities), len(PROBABILITIES) - probabilities.shape[1]))
    table = np.hstack([probabilities, missing])
    return pairs.with_columns(
        pl.Series(c, table[:, k]).cast(SCORED[c]) for k, c in enumerate(PROBABILITIES)
    )
