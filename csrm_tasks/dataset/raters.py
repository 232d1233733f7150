"""How far raters agree: Krippendorff's α by locale, and each rater against the consensus."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from csrm_tasks.dataset.consensus import PAIR, current_votes
from csrm_tasks.records import Grade

SEVERAL = 3  # raters of a pair from which its consensus says something about one of them


def rater_report(ratings: pl.DataFrame, consensus: pl.DataFrame) -> dict[str, Any]:
    """Return per locale alpha (null where undefined), pairs, ratings, ties, raters' confusions.

    ``ratings`` as in :func:`csrm_tasks.dataset.consensus.current_votes`, ``consensus`` as made of
    them. ``pairs`` and ``ratings`` are of pairs with two or more raters, ``ties`` those of them
    whose grade was decided by the rule for ties. A rater's ``confusion`` is (3, 3) counts, row the
    consensus and column what was said, over pairs with :data:`SEVERAL` raters or more; of two who
    differ nobody knows who is right.
    """
    votes = current_votes(ratings).select(*PAIR, "grade", "rater", "nameless")
    judged = votes.join(consensus.rename({"grade": "true"}), on=PAIR)
    report = {}
    for (locale,), part in sorted(judged.group_by("locale"), key=lambda item: str(item[0])):
        doubly = part.filter(pl.col("raters") > 1)
        report[str(locale)] = {
            "alpha": ordinal_alpha(_value_counts(doubly)),
            "pairs": doubly.select(PAIR).n_unique() if doubly.height else 0,
            "ratings": doubly.height,
            "ties": doubly.filter("tied").select(PAIR).n_unique() if doubly.height else 0,
            "raters": _confusions(part.filter((pl.col("raters") >= SEVERAL) & ~pl.col("nameless"))),
        }
    return report


def ordinal_alpha(counts: npt.NDArray[np.int64]) -> float | None:
    """Return Krippendorff's α with the ordinal metric, rounded to 12 decimals.

    ``counts`` (N, V): how many raters gave unit n the v-th of the ordered values. None when no
    unit was rated twice or only one value was ever used: then α is not defined.
    """
    import krippendorff

    paired = counts[counts.sum(axis=1) > 1]
    if np.count_nonzero(paired.sum(axis=0)) < 2:
        return None
    return round(float(krippendorff.alpha(value_counts=paired, level_of_measurement="ordinal")), 12)


def _value_counts(votes: pl.DataFrame) -> npt.NDArray[np.int64]:
    """Return (pairs, 3): how often each grade was given."""
    said = (
        votes.group_by(PAIR).agg((pl.col("grade") == g).sum().alias(g.name) for g in Grade)
    ).sort(PAIR)
    made: npt.NDArray[np.int64] = said.select(g.name for g in Grade).to_numpy().astype(np.int64)
    return made


def _confusions(votes: pl.DataFrame) -> list[dict[str, Any]]:
    """Return rater, ratings, accuracy and confusion, by rater."""
    confusions = []
    for (rater,), part in sorted(votes.group_by("rater"), key=lambda item: str(item[0])):
        table = np.zeros((3, 3), dtype=np.int64)
        np.add.at(table, (part["true"].to_numpy(), part["grade"].to_numpy()), 1)
        accuracy = round(float(table.trace() / table.sum()), 6)
        confusions.append({
            "rater": rater, "ratings": part.height, "accuracy": accuracy,
            "confusion": table.tolist(),
        })  # fmt: skip
    return confusions
