"""Temperature on dev, and what it does to the expected calibration error (A30)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl
from scipy.optimize import minimize_scalar

Floats = npt.NDArray[np.float64]

SMALLEST = 1e-12  # a probability that float32 rounded to 0 is not impossible


def apply_temperature(probabilities: Floats, temperature: float) -> Floats:
    """Return softmax(log p / T) by row; (N, K) in, (N, K) out. T=1 changes nothing."""
    logits = np.log(np.maximum(probabilities, SMALLEST)) / temperature
    exponent = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(exponent / exponent.sum(axis=1, keepdims=True))


def log_loss(probabilities: Floats, labels: npt.NDArray[np.int64]) -> float:
    """Return the mean negative log-likelihood of ``labels`` (N,)."""
    chosen = probabilities[np.arange(len(labels)), labels]
    return float(-np.log(np.maximum(chosen, SMALLEST)).mean())


def fit_temperature(probabilities: Floats, labels: npt.NDArray[np.int64]) -> float:
    """Return the temperature in [0.05, 20] with the least log loss on dev."""

    def loss(log_t: float) -> float:
        return log_loss(apply_temperature(probabilities, float(np.exp(log_t))), labels)

    found = minimize_scalar(loss, bounds=(np.log(0.05), np.log(20.0)), method="bounded")
    return float(np.exp(found.x))


def expected_calibration_error(
    probabilities: Floats, labels: npt.NDArray[np.int64], bins: int = 15
) -> float:
    """Return Σ share · |accuracy − confidence| over equal-width bins of the top probability."""
    top = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == labels
    index = np.clip(np.ceil(top * bins).astype(int) - 1, 0, bins - 1)
    surplus = np.bincount(index, weights=right - top, minlength=bins)  # n · (accuracy − confidence)
    return float(np.abs(surplus).sum() / len(labels))


@dataclass(frozen=True)
class Calibration:
    """A temperature and what it changes on the set it was fitted on."""

    temperature: float
    ece_before: float
    ece_after: float
    log_loss_before: float
    log_loss_after: float


def calibrate(dev_scores: Path, out: Path) -> Calibration:
    """Fit the temperature on a model's dev scores and write them again, calibrated, to ``out``."""
    table = pl.read_parquet(dev_scores)
    before = table.select("p0", "p1", "p2").to_numpy().astype(np.float64)
    labels = table["grade"].to_numpy().astype(np.int64)
    temperature = fit_temperature(before, labels)
    after = apply_temperature(before, temperature)
    table.with_columns(
        pl.Series(f"p{k}", after[:, k]).cast(pl.Float32) for k in range(after.shape[1])
    ).write_parquet(out)
    return Calibration(
        temperature,
        expected_calibration_error(before, labels),
        expected_calibration_error(after, labels),
        log_loss(before, labels),
        log_loss(after, labels),
    )
