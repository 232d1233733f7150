"""Temperature on dev, fitted through the raters' confusion, and what it does to the ECE (A30, A49).

Most dev labels come from one rater, who errs. A model that is right is then wrong by the labels as
often as they err, and a temperature fitted on them as they are makes it too modest. The loss here
is that of p·C against the label instead, C the confusion of its rater; what is served is p.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl
from scipy.optimize import minimize_scalar

from csrm_tasks.dataset.opinions import LIKELIHOOD, MIN_RATED, opinions, several_rated
from csrm_tasks.errors import DataError
from csrm_tasks.evaluation.metrics import BINS, calibration_error, confidence_bins

Floats = npt.NDArray[np.float64]

MIN_AGREED = 50  # dev pairs with a consensus below which nothing is said to help
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


def votes_log_loss(probabilities: Floats, likelihood: Floats) -> float:
    """Return the mean of −log Σ_k p(k)·P(votes | k), the log loss of what the raters said.  # A49

    ``probabilities`` (N, K) of the true grade, ``likelihood`` (N, K) of a pair's votes under each:
    of one vote g that is C[:, g], and the loss that of p·C. Where C is the identity it is
    :func:`log_loss`.
    """
    seen = (probabilities * likelihood).sum(axis=1)
    return float(-np.log(np.maximum(seen, SMALLEST)).mean())


def fit_temperature(probabilities: Floats, likelihood: Floats) -> float:
    """Return the temperature in [0.05, 20] with the least :func:`votes_log_loss` on dev.  # A49"""

    def loss(log_t: float) -> float:
        return votes_log_loss(apply_temperature(probabilities, float(np.exp(log_t))), likelihood)

    least = minimize_scalar(loss, bounds=(np.log(0.05), np.log(20.0)), method="bounded")
    return float(np.exp(least.x))


def expected_calibration_error(probabilities: Floats, labels: npt.NDArray[np.int64]) -> float:
    """Return the ECE of ``probabilities`` (N, K) against ``labels`` (N,)."""
    which, confidence, hit = confidence_bins(probabilities, labels)
    surplus: Floats = np.bincount(which, weights=hit - confidence, minlength=BINS).astype(
        np.float64
    )
    return float(calibration_error(surplus, np.array(len(labels), np.float64)))


@dataclass(frozen=True)
class Calibration:
    """A temperature, where it comes from, and what it changes on dev pairs with a consensus."""

    temperature: float  # that is served; 1 unless the fitted one helps
    temperature_fitted: float | None  # None: the raters' confusion is not known
    calibration: str  # why it is what it is, in words
    multi_rated_pairs: int  # of dev's locales, train and dev, that the confusions come from
    consensus_pairs: int  # of dev
    ece_before: float | None = None  # on consensus pairs; None where too few can judge
    ece_after: float | None = None
    log_loss_before: float | None = None  # likewise
    log_loss_after: float | None = None


def calibrate(dev_scores: Path, votes: pl.DataFrame, out: Path) -> Calibration:
    """Fit the temperature on a model's dev scores and write them again, calibrated, to ``out``.

    ``votes``: VOTES of the snapshot that the model was trained on. It is fitted through the raters'
    confusion, judged on dev pairs with a consensus, and served only where it helps there: lower ECE
    and no higher log loss (A49). A column ``consensus`` (null: none) is added to the scores. Raises
    :class:`DataError` where the votes are of another snapshot.
    """
    table = pl.read_parquet(dev_scores)
    before = table.select("p0", "p1", "p2").to_numpy().astype(np.float64)
    known = table.select("pair_id").join(
        opinions(votes), on="pair_id", how="left", maintain_order="left"
    )
    calibration = _choose(before, known, _several(table, votes))
    after = apply_temperature(before, calibration.temperature)
    table.with_columns(
        *(pl.Series(f"p{k}", after[:, k]).cast(pl.Float32) for k in range(after.shape[1])),
        known["consensus"],
    ).write_parquet(out)
    return calibration


def _several(table: pl.DataFrame, votes: pl.DataFrame) -> int:
    """Return the pairs with several raters in the dev locale that has the fewest."""
    of_dev = votes.join(table, on="pair_id", how="semi")
    if of_dev["pair_id"].n_unique() != table["pair_id"].n_unique():
        raise DataError("dev scores name pairs without votes; give select_llm its models' snapshot")
    several = several_rated(votes)
    return min((several[x] for x in of_dev["locale"].unique()), default=0)


def _choose(p: Floats, known: pl.DataFrame, several: int) -> Calibration:
    """Decide on the temperature of ``p`` (N, K); ``known`` has the opinions on the same rows."""
    agreed = known["consensus"].is_not_null().to_numpy()
    n = int(agreed.sum())
    if several < MIN_RATED:
        return Calibration(
            1.0, None,
            f"the raters' confusion is not known: {several} pairs of train and dev have two raters "
            f"or more, {MIN_RATED} are needed",
            several, n,
        )  # fmt: skip
    fitted = fit_temperature(p, known.select(LIKELIHOOD).to_numpy())
    if n < MIN_AGREED:
        return Calibration(
            1.0, fitted,
            f"no judge: {n} dev pairs have a consensus of two raters or more, {MIN_AGREED} are "
            "needed",
            several, n,
        )  # fmt: skip
    labels = known["consensus"].drop_nulls().to_numpy().astype(np.int64)
    sides = [p[agreed], apply_temperature(p[agreed], fitted)]
    ece = [expected_calibration_error(side, labels) for side in sides]
    loss = [log_loss(side, labels) for side in sides]
    helps = ece[1] < ece[0] and loss[1] <= loss[0]
    words = (
        f"T {fitted:.3f} {'helps' if helps else 'is dropped, it does not help'}: ECE {ece[0]:.4f} "
        f"without it, {ece[1]:.4f} with it, log loss {loss[0]:.4f} and {loss[1]:.4f}, on {n} dev "
        "pairs with a consensus"
    )
    served = int(helps)
    return Calibration(
        fitted if helps else 1.0, fitted, words, several, n,
        ece[0], ece[served], loss[0], loss[served],
    )  # fmt: skip
