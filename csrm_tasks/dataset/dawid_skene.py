"""Dawid and Skene's (1979) model of raters, fitted so that no order and no name can matter.

Each rater r has a confusion matrix C_r (K, K): row the true grade, column the given one. EM turns
between the items' posteriors and the confusions. Two deviations from the textbook:

- A rater's rows are shrunk to the mean of all raters, as if they had given :data:`SHRINK` more
  answers of that row as the mean says: a rater of three pairs is no perfect one.
- Posteriors and logarithms are held as whole multiples of 2⁻³², so that a sum is exact and the same
  in whatever order its terms come. EM is unstable where raters contradict each other evenly: there
  the last bit of a float sum, which goes by the order of rows, decides a grade in the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

GRADES = 3  # K
SHRINK = 10.0  # answers per row of a rater's confusion that the mean stands for
SMOOTH = 0.01  # answers per cell of the mean: nothing is impossible
ITERATIONS = 100  # at most; it ends when no posterior moves by more than SETTLED
SETTLED = 1e-6
ONE = 2**32


@dataclass(frozen=True)
class RaterModel:
    """What was found of N items, R raters and K grades."""

    posterior: Floats  # (N, K): how probable each grade is the true one
    confusion: Floats  # (R, K, K), each rater's
    mean: Floats  # (K, K), of all raters


@dataclass(frozen=True)
class FittedVotes:
    """A model of a table of votes."""

    model: RaterModel
    posteriors: pl.DataFrame  # the items' key, grade, p; an item has a row per grade
    raters: dict[str, int]  # name → row of the model's confusion

    def confusion_of(self, raters: pl.Series) -> Floats:
        """Return (V, K, K): of each named rater; of one that the votes did not have the mean."""
        each = np.concatenate([self.model.confusion, self.model.mean[None]])
        numbers = [self.raters.get(name, len(self.raters)) for name in raters.to_list()]
        return np.asarray(each[np.array(numbers, dtype=np.int64)])


def fit_votes(votes: pl.DataFrame, key: Sequence[str]) -> FittedVotes:
    """Fit the model to votes (the items' ``key``, rater, grade)."""
    items = votes.select(key).unique().sort(key).with_row_index("item")
    raters = votes.select("rater").unique().sort("rater").with_row_index("number")
    placed = votes.join(items, on=list(key)).join(raters, on="rater")
    columns = (placed[c].cast(pl.Int64).to_numpy() for c in ("item", "number", "grade"))
    model = fit(*columns)
    by_grade = [
        items.select(*key, pl.lit(g).alias("grade").cast(votes.schema["grade"])).with_columns(
            pl.Series("p", model.posterior[:, g])
        )
        for g in range(GRADES)
    ]
    names = dict(raters.select("rater", "number").iter_rows())
    return FittedVotes(model, pl.concat(by_grade), names)


def fit(item: Ints, rater: Ints, grade: Ints) -> RaterModel:
    """Fit the model to votes (V,): which item, which rater, which grade; each from 0 without gap.

    The same votes in another order, or with raters numbered otherwise, give the same model.
    """
    items, raters = int(item.max()) + 1, int(rater.max()) + 1
    given = np.zeros((items, GRADES), np.int64)
    np.add.at(given, (item, grade), 1)
    posterior = _whole(given / given.sum(axis=1, keepdims=True))  # (N, K), in units of 1/ONE
    confusion, mean = _confusions(posterior, item, rater, grade, raters)
    for _ in range(ITERATIONS):
        before = posterior
        logs = np.zeros((items, GRADES), np.int64)
        np.add.at(logs, item, _whole(np.log(confusion))[rater, :, grade])  # (V, K)
        prior = posterior.sum(axis=0) / (ONE * items)
        logs += _whole(np.log(np.maximum(prior, 1e-12)))
        posterior = _whole(_softmax(logs))
        confusion, mean = _confusions(posterior, item, rater, grade, raters)
        if np.abs(posterior - before).max() <= SETTLED * ONE:
            break
    return RaterModel(posterior / ONE, confusion, mean)


def likelihood(confusion: Floats, item: Ints, grade: Ints, items: int) -> Floats:
    """Return (items, K): how probable an item's votes are under each true grade.

    ``confusion`` (V, K, K): of the rater of each vote.
    """
    logs = np.zeros((items, GRADES))
    np.add.at(logs, item, np.log(confusion[np.arange(len(grade)), :, grade]))
    return np.asarray(np.exp(logs))


def _confusions(
    posterior: Ints, item: Ints, rater: Ints, grade: Ints, raters: int
) -> tuple[Floats, Floats]:
    """Return the raters' confusions (R, K, K), shrunk to their mean, and the mean (K, K)."""
    counts = np.zeros((raters, GRADES, GRADES), np.int64)
    np.add.at(counts.transpose(0, 2, 1), (rater, grade), posterior[item])
    total = counts.sum(axis=0) / ONE + SMOOTH
    mean = total / total.sum(axis=1, keepdims=True)
    shrunk = counts / ONE + SHRINK * mean
    return shrunk / shrunk.sum(axis=2, keepdims=True), mean


def _softmax(logs: Ints) -> Floats:
    exponent = np.exp((logs - logs.max(axis=1, keepdims=True)) / ONE)
    return np.asarray(exponent / exponent.sum(axis=1, keepdims=True))


def _whole(values: Floats) -> Ints:
    return np.rint(values * ONE).astype(np.int64)
