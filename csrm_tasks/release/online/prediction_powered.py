"""What people judged on a sample, helped by what an LLM says of everything (A58).

    θ(λ) = λ · (total of the LLM's labels on all) + Σ weight · (person − λ · LLM) on the sample

(Angelopoulos, Bates, Fannjiang, Jordan and Zrnic 2023, "Prediction-powered inference"; with λ
tuned, Angelopoulos, Duchi and Zrnic 2023, "PPI++".) Sums are Horvitz and Thompson's over strata
(:mod:`.strata`). Whatever the LLM is worth, θ(λ) is unbiased: what it gets wrong is measured on the
sample and taken out. λ only decides the width: 0 is the classical estimate. It is found on the
other folds of the sample than those that it is used on (cross-fitting), so that it cannot fit the
sample's noise. The searches are themselves a sample of those to come: that is part of the variance.

Differences are rare and jump by a whole query, so a normal interval is a little too narrow: what a
judged difference typically adds to the estimate is added to each side, as a correction for
continuity is.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from csrm_tasks.errors import DataError
from csrm_tasks.release.online.strata import Drawn, Floats, Ints, Population

FOLDS = 5
PRIOR = 4  # queries; chosen so that simulated intervals of rare differences cover


@dataclass(frozen=True)
class Estimate:
    """A mean over the traffic with its interval."""

    value: float
    error: float  # standard
    lo: float
    hi: float
    power: float  # λ, the mean over folds


@dataclass(frozen=True)
class _Sample:
    """The drawn queries as the sums need them; (n,) each."""

    stratum: Ints
    weight: Floats  # traffic over chance
    chance: Floats  # 1: drawn whatever chance says
    people: Floats
    llm: Floats  # 0 where the draw was certain: there people have said all
    likely: Floats  # how likely a difference was expected

    def strata(self, of: NDArray[np.bool_]) -> list[NDArray[np.bool_]]:
        """Return the masks of strata of which chance drew some of ``of``."""
        chosen = of & (self.chance < 1)
        return [chosen & (self.stratum == h) for h in np.unique(self.stratum[chosen])]


def estimate(
    population: Population, drawn: Drawn, people: Floats, llm: Floats | None = None,
    power: float | None = None, alpha: float = 0.05, chance: Floats | None = None,
) -> Estimate:  # fmt: skip
    """Return the traffic's mean of what people would say, and its interval for one look.

    ``people`` (n,): of the drawn queries. ``llm`` (Q,): of all; None: no help. ``power``: λ; None:
    tuned and cross-fitted. ``chance`` (Q,): how likely a model expects people to find a difference;
    None: alike for all. It says in which proportion strata vary before much is seen of them; how
    much they do together is what was seen. A stratum of which nothing is drawn counts as 0: in a
    comparison, that of queries for which both releases show the same. Raises :class:`DataError`
    where no stratum has two queries that chance drew, but some have one.
    """
    traffic, stratum = population.traffic, population.stratum[drawn.query]
    labels = np.zeros(len(traffic)) if llm is None else llm
    certain = drawn.chance >= 1
    likely = np.ones(len(stratum)) if chance is None else chance[drawn.query]
    sample = _Sample(
        stratum, traffic[drawn.query] / drawn.chance, drawn.chance, people,
        np.where(certain, 0.0, labels[drawn.query]), likely,
    )  # fmt: skip
    fold = _folds(stratum)
    every = [tuned(sample, fold != k) if power is None else power for k in range(FOLDS)]
    powers = np.array(every)[fold]  # (n,)
    rest = traffic * labels
    rest[drawn.query[certain]] = 0.0
    totals = np.bincount(population.stratum, rest)[stratum]  # (n,): the LLM's, of its stratum
    numbers = np.bincount(stratum[~certain], minlength=int(stratum.max(initial=0)) + 1)[stratum]
    share = np.where(certain, 0.0, 1 / np.maximum(numbers, 1))  # of the stratum's sample
    parts = people - powers * sample.llm
    value = float((sample.weight * parts + powers * totals * share).sum())
    variance, freedom = _variance(sample, parts)
    spread = max(0.0, float(sample.weight @ people**2) - value**2)
    to_come = spread / float(population.searches.sum())
    mean_power = float(powers.mean()) if len(powers) else 0.0
    error = (variance + to_come) ** 0.5
    from scipy.stats import t as student

    half = error * float(student.ppf(1 - alpha / 2, freedom)) + _step(sample, parts)
    return Estimate(value, error, value - half, value + half, mean_power)


def _step(sample: _Sample, parts: Floats) -> float:
    """Return what a difference that chance drew adds to the sum, as the squares weigh them; where
    none was seen, three queries that show one (the rule of three; Hanley and Lippman-Hand 1983).
    """
    some = sample.chance < 1
    added = np.abs(sample.weight * parts)[some]
    if not added.any():
        return 3 * float(sample.weight[some].mean()) if some.any() else 0.0
    return float(added @ added / added.sum())


def tuned(sample: _Sample, of: NDArray[np.bool_]) -> float:
    """Return the λ of least variance by a part of the sample: Σ cov / Σ var over strata, 0 to 1."""
    covariance = variance = 0.0
    for inside in sample.strata(of):
        weight, n = sample.weight[inside], int(inside.sum())
        added = weight * sample.llm[inside]
        theirs = (added - added.mean()) * n / max(n - 1, 1)
        covariance += float((weight * sample.people[inside]) @ theirs)
        variance += float(added @ theirs)
    return float(np.clip(covariance / variance, 0, 1)) if variance > 0 else 0.0


def _folds(stratum: Ints) -> Ints:
    """Deal each stratum's queries to folds in turn: they come in a random order."""
    fold = np.empty(len(stratum), np.int64)
    for h in np.unique(stratum):
        inside = np.flatnonzero(stratum == h)
        fold[inside] = np.arange(len(inside)) % FOLDS
    return fold


def _variance(sample: _Sample, parts: Floats) -> tuple[float, int]:
    """Return the variance of the sample's sum, and its degrees of freedom.

    Hájek's (1981; Deville 1999): what was likely to be drawn adds less, what was certain nothing.
    Each stratum's own variance has ``PRIOR`` more queries, as expected of it and as all were seen:
    one in which nothing differed so far is not without any, nor one with a single query.
    """
    found = []  # by stratum: n, variance that it adds as seen, and as expected
    for inside in sample.strata(np.ones(len(parts), bool)):
        n, left = int(inside.sum()), 1 - sample.chance[inside]
        added = sample.weight[inside] * parts[inside]
        gaps = added - left @ added / left.sum()
        expected = left @ (sample.weight[inside] ** 2 * sample.likely[inside])
        found.append((n, n / max(n - 1, 1) * float(left @ gaps**2), float(expected)))
    freedom = sum(n - 1 for n, _, _ in found)
    if found and not freedom:
        raise DataError("one query of each stratum was judged: the error needs two of one of them")
    every = sum((n - 1) * expected for n, _, expected in found)
    scale = sum((n - 1) * own for n, own, _ in found) / every if every else 0.0
    variance = sum(
        ((n - 1) * own + PRIOR * scale * expected) / (n - 1 + PRIOR) for n, own, expected in found
    )
    return variance, max(freedom, 1)
