"""What people judged on a sample, helped by what an LLM says of everything (A58).

    θ(λ) = λ · (total of the LLM's labels on all) + Σ weight · (person − λ · LLM) on the sample

(Angelopoulos, Bates, Fannjiang, Jordan and Zrnic 2023, "Prediction-powered inference"; with λ
tuned, Angelopoulos, Duchi and Zrnic 2023, "PPI++".) Sums are Horvitz and Thompson's over strata
(:mod:`.strata`). Whatever the LLM is worth, θ(λ) is unbiased: what it gets wrong is measured on the
sample and taken out. λ only decides the width: 0 is the classical estimate. It is found on the
other folds of the sample than those that it is used on (cross-fitting), so that it cannot fit the
sample's noise. The variance is that of both parts: the searches that the LLM labelled are a sample
of those to come, too.
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

    def strata(self, of: NDArray[np.bool_]) -> list[NDArray[np.bool_]]:
        """Return the masks of strata of which chance drew some of ``of``."""
        chosen = of & (self.chance < 1)
        return [chosen & (self.stratum == h) for h in np.unique(self.stratum[chosen])]


def estimate(
    population: Population, drawn: Drawn, people: Floats, llm: Floats | None = None,
    power: float | None = None, alpha: float = 0.05,
) -> Estimate:  # fmt: skip
    """Return the traffic's mean of what people would say, and its interval for one look.

    ``people`` (n,): of the drawn queries. ``llm`` (Q,): of all; None: no help. ``power``: λ; None:
    tuned and cross-fitted. A stratum of which nothing is drawn counts as 0: in a comparison, that
    of queries for which both releases show the same. Raises :class:`DataError` where no stratum has
    two queries that chance drew, but some have one.
    """
    traffic, stratum = population.traffic, population.stratum[drawn.query]
    labels = np.zeros(len(traffic)) if llm is None else llm
    certain = drawn.chance >= 1
    sample = _Sample(
        stratum, traffic[drawn.query] / drawn.chance, drawn.chance, people,
        np.where(certain, 0.0, labels[drawn.query]),
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
    of_all = float(traffic @ labels)
    labelled = float(traffic @ (labels - of_all) ** 2) / float(population.searches.sum())
    mean_power = float(powers.mean()) if len(powers) else 0.0
    error = (variance + mean_power**2 * labelled) ** 0.5
    from scipy.stats import t as student

    half = error * float(student.ppf(1 - alpha / 2, freedom))
    return Estimate(value, error, value - half, value + half, mean_power)


def tuned(sample: _Sample, of: NDArray[np.bool_]) -> float:
    """Return the λ of least variance by a part of the sample: Σ cov / Σ var over strata, 0 to 1."""
    covariance = variance = 0.0
    for inside in sample.strata(of):
        scale = float(sample.weight[inside] @ sample.weight[inside]) / max(inside.sum() - 1, 1)
        theirs = sample.llm[inside] - sample.llm[inside].mean()
        covariance += scale * float(sample.people[inside] @ theirs)
        variance += scale * float(theirs @ theirs)
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
    Each stratum's own variance has ``PRIOR`` more queries, with the variance of all of them: one in
    which nothing differed so far is not without any, and one with a single query has theirs.
    """
    found = []  # by stratum: n, variance of a query, factor of it in the sum's variance
    for inside in sample.strata(np.ones(len(parts), bool)):
        n, left = int(inside.sum()), 1 - sample.chance[inside]
        gaps = parts[inside] - left @ parts[inside] / left.sum()
        own = n / max(n - 1, 1) * float(left @ gaps**2) / float(left.sum())
        found.append((n, own, float(left @ sample.weight[inside] ** 2)))
    freedom = sum(n - 1 for n, _, _ in found)
    if found and not freedom:
        raise DataError("one query of each stratum was judged: the error needs two of one of them")
    pooled = sum((n - 1) * own for n, own, _ in found) / max(freedom, 1)
    variance = sum(
        ((n - 1) * own + PRIOR * pooled) / (n - 1 + PRIOR) * factor for n, own, factor in found
    )
    return variance, max(freedom, 1)
