"""The stack of the first stage and the cross-encoder, and what dev says of its order.

Logistic regression of "is exact" on both stages' EM logits, over judged dev pairs, which neither
has learnt. What is said of a dev query is said by a stack of other queries (folds), so dev may
judge it. Kept is a second stage by which more pairs of products of one search stand in the right
order, and no fewer searches begin with an exact one. Estimates decide, as with a stack that
teaches (A50); intervals are told. Gold has no part in it: there the gate judges what was kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression

from csrm_tasks.evaluation.measures import share
from csrm_tasks.evaluation.metrics import Floats, Ints
from csrm_tasks.evaluation.ordering import first_hits, ordered_pairs, places_after
from csrm_tasks.evaluation.paired import Interval, difference, interval, resample
from csrm_tasks.evaluation.slices import Mask

FOLDS = 5  # of queries
WORDS = {"ordered": "pairs in the right order", "em_at_1": "EM@1"}


@dataclass(frozen=True)
class Weights:
    """Of both stages' logits in what a product is ranked by."""

    first: float
    cross: float

    def scores(self, first: Floats, cross: Floats) -> Floats:
        """Return the scores (N,) of both stages' EM logits (N,)."""
        return self.first * first + self.cross * cross


@dataclass(frozen=True)
class DevPairs:
    """Judged dev pairs as both stages see them; (N,) each."""

    query: Ints  # numbers of the queries, from 0
    grade: Ints
    em: Floats  # the first stage's probability, which it ranks by
    defect: Mask  # what it leaves out
    first: Floats  # its EM logit
    cross: Floats  # the cross-encoder's

    @property
    def queries(self) -> int:
        """Number of queries."""
        return int(self.query.max(initial=-1)) + 1


@dataclass(frozen=True)
class Judged:
    """Whether a second stage is kept, why, its weights and the figures that say so."""

    kept: bool
    reason: str
    weights: Weights
    facts: Mapping[str, Any]


def fit(first: Floats, cross: Floats, exact: Mask) -> Weights:
    """Fit the weights; one that would be negative is 0, and the other is fitted alone."""
    both = np.stack([first, cross], 1)
    weights = LogisticRegression().fit(both, exact).coef_[0]
    if weights[0] <= 0:
        return Weights(0.0, 1.0)
    return Weights(float(weights[0]), max(0.0, float(weights[1])))


def judge(dev: DevPairs, top: int) -> Judged:
    """Fit a second stage on dev and hold its order against the first stage's."""
    exact, fold = dev.grade == 2, dev.query % FOLDS
    few = _too_few(exact, fold)
    if few:
        return Judged(False, few, Weights(1.0, 0.0), {})
    held_out = np.empty(len(exact))
    for k in range(FOLDS):
        out: Mask = fold == k
        of_others = fit(dev.first[~out], dev.cross[~out], exact[~out])
        held_out[out] = of_others.scores(dev.first[out], dev.cross[out])
    weights = fit(dev.first, dev.cross, exact)
    figures = _figures(dev, held_out, top)
    gain = {name: found[2] for name, found in figures.items()}
    better = gain["ordered"].value > 0 and gain["em_at_1"].value >= 0
    told = "; ".join(f"{WORDS[name]} {_words(*found)}" for name, found in figures.items())
    facts = {
        name: {"first": a.as_json(), "second": b.as_json(), "difference": d.as_json()}
        for name, (a, b, d) in figures.items()
    }
    reason = f"{told}, on {dev.queries} dev queries"
    if not weights.cross:
        return Judged(False, f"the cross-encoder adds nothing on dev: {reason}", weights, facts)
    return Judged(better, reason, weights, facts)


def _figures(
    dev: DevPairs, second: Floats, top: int
) -> dict[str, tuple[Interval, Interval, Interval]]:
    """Return by figure: the first stage's, the second's, and the difference, paired by query."""
    draws = resample(dev.queries)
    place = [
        places_after(dev.query, dev.em, scores, dev.defect, most)
        for scores, most in ((dev.em, 0), (second, top))
    ]
    found = {}
    for name, count in (("ordered", ordered_pairs), ("em_at_1", first_hits)):
        one, other = (count(dev.query, p, dev.grade, dev.queries) for p in place)
        found[name] = (
            interval(one, share, draws),
            interval(other, share, draws),
            difference(other, one, share, draws),
        )
    return found


def _too_few(exact: Mask, fold: Ints) -> str | None:
    if len(np.unique(fold)) < FOLDS:
        return f"too few judged dev queries for {FOLDS} folds"
    lacking = any(len(np.unique(exact[fold != k])) < 2 for k in range(FOLDS))
    return (
        "too few dev pairs that are exact, or that are not: a fold's rest has none"
        if lacking
        else None
    )


def _words(first: Interval, second: Interval, gain: Interval) -> str:
    return (
        f"{first.value:.3f} → {second.value:.3f}, {gain.value:+.3f} "
        f"[{gain.lo:+.3f}, {gain.hi:+.3f}]"
    )
