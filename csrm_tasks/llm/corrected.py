"""Human labels learnt through the confusion of who gave them: forward correction (A51, A49).

A rater errs, and a model that learns what raters say learns to err as they do. Here the model's p
is of the true grade, and what is compared with the given label is p·C, C the rater's confusion
(row: true grade, column: given one). So a label that is often wrong is learnt as one that is.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from csrm_tasks.dataset.opinions import LIKELIHOOD, MIN_RATED, opinions
from csrm_tasks.dataset.tables import table

log = logging.getLogger("csrm")

Floats = npt.NDArray[np.float32]
Indices = Sequence[int] | npt.NDArray[np.int64]
ROUNDS = 500  # of EM, whose steps shrink from one to the next
TINY = 1e-12


@dataclass(frozen=True)
class Corrected:
    """The targets of N rows of K labels in two parts, whose sum over labels is 1 in each row."""

    votes: Floats  # (N, K), in proportion to P(votes | true label); sums to their share α
    rest: Floats  # (N, K), a teacher's soft label times 1 − α, or labels that nobody gave

    def __len__(self) -> int:
        return len(self.votes)

    def take(self, at: Indices) -> Corrected:
        """Return the rows ``at``."""
        return Corrected(self.votes[at], self.rest[at])


def as_they_are(targets: Floats) -> Corrected:
    """Return targets that no rater gave: their cross-entropy is what it was."""
    return Corrected(np.zeros_like(targets), targets)


def one_after_the_other(parts: Sequence[Corrected]) -> Corrected:
    """Return all rows of ``parts``."""
    return Corrected(*(np.concatenate([getattr(p, n) for p in parts]) for n in ("votes", "rest")))


def seen_through_raters(pairs: pl.DataFrame, snapshot: Path, targets: Floats) -> Floats:
    """Return P(votes | true grade) of each pair, (N, 3), scaled to sum to 1.

    A pair of a locale whose raters' confusion is not known
    (:data:`csrm_tasks.dataset.opinions.MIN_RATED`) has its row of ``targets``, the grade as given.
    """
    known = pairs.select("pair_id").join(
        opinions(table(snapshot, "votes")), on="pair_id", how="left", maintain_order="left"
    )
    found = known.select(LIKELIHOOD).to_numpy()
    found = found / found.sum(axis=1, keepdims=True)
    unknown = np.isnan(found)
    log.log(
        logging.WARNING if unknown.all() else logging.INFO,
        "llm.noise_correction: %d of %d train pairs have raters whose confusion is known (a locale "
        "with %d pairs that several have rated); the others are learnt as they are",
        int((~unknown[:, 0]).sum()), len(found), MIN_RATED,
    )  # fmt: skip
    return np.where(unknown, targets, found).astype(np.float32)


def corrected_loss(probabilities: npt.NDArray[np.float64], rows: Corrected) -> float:
    """Return the mean over rows of −α·log Σₖ pₖ·votesₖ/α − Σₖ restₖ·log pₖ; p is (N, K).  # A51

    α is the sum of the row's votes. Where these are of one label, it is cross-entropy.
    """
    share = rows.votes.sum(axis=1, dtype=np.float64)
    seen = (probabilities * rows.votes).sum(axis=1) / share.clip(TINY)
    losses = share * np.log(seen.clip(TINY))
    losses += (rows.rest * np.log(probabilities.clip(TINY))).sum(axis=1)
    return float(-losses.mean())


def best_answers(rows: Corrected, alike: bool) -> npt.NDArray[np.float64]:
    """Return the probabilities with the least :func:`corrected_loss`: each row's own, (N, K).

    ``alike``: the best that are the same in all rows, which is what the labels' shares come to.
    The loss is convex, and EM falls to its least value.
    """
    n, classes = rows.votes.shape
    answers = np.full((n, classes), 1.0 / classes)
    share = rows.votes.sum(axis=1, keepdims=True, dtype=np.float64)
    for _ in range(ROUNDS):
        seen = answers * rows.votes
        answers = share * seen / seen.sum(axis=1, keepdims=True).clip(TINY) + rows.rest
        if alike:
            answers = np.broadcast_to(answers.mean(axis=0), answers.shape)
    return answers
