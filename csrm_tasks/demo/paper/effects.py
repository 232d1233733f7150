"""What the study says of each claim at its newest look: effect, two intervals, verdict.

By query: the queries of the seeds resampled together, given these models (A45); where all seeds
are judged by the same queries (one market, trained again), a query is resampled with all that the
seeds say of it. By seed: :func:`.stopping.over_seeds`. The verdict needs both
(:mod:`csrm_tasks.demo.study.verdict`), with the measure's own smallest effect that matters.

Before the first look, and of a claim that a seed in between lacks, nothing is decided.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile

import numpy as np

from csrm_tasks.demo.paper.measures import MEASURES, Measure
from csrm_tasks.demo.paper.plan import CELLS, CLAIMS, Cell, Claim
from csrm_tasks.demo.paper.results import PartResult
from csrm_tasks.demo.paper.stopping import level, look_at, over_seeds
from csrm_tasks.demo.study.verdict import OPEN, verdict
from csrm_tasks.evaluation.metrics import Floats
from csrm_tasks.evaluation.paired import Interval, difference, resample

UNKNOWN = float("nan")
BySeed = Mapping[int, PartResult]  # of one part


@dataclass(frozen=True)
class Effect:
    """One claim; shares or plain figures, never points; positive is what was claimed."""

    claim: Claim
    by_query: Interval
    by_seed: Interval
    seeds: Mapping[int, float]  # effect of every seed that has both arms
    look: int | None  # how many seeds, from the first on, the intervals are of
    verdict: str


def by_part(results: Iterable[PartResult]) -> dict[str, dict[int, PartResult]]:
    """Return the results by part and seed."""
    found: dict[str, dict[int, PartResult]] = {}
    for one in sorted(results, key=lambda r: r.seed):
        found.setdefault(one.part, {})[one.seed] = one
    return found


def first_seeds(seeds: Iterable[int], first: int) -> list[int]:
    """Return ``first`` and those after it without a gap: the order in which seeds are looked at."""
    known = set(seeds)
    return list(takewhile(known.__contains__, range(first, first + len(known) + 1)))


def effect_of(claim: Claim, results: BySeed, first: int, shared: bool) -> Effect | None:
    """Judge a claim; None where no seed has both of its arms. ``shared``: see the module."""
    both = {seed: pair for seed, r in results.items() if (pair := _pair(r, claim)) is not None}
    if not both:
        return None
    what = MEASURES[claim.measure]
    own = {seed: _difference(what, *pair) for seed, pair in both.items()}
    look = look_at(len(first_seeds(own, first)))
    if look is None:
        value = float(np.mean(list(own.values())))
        open_ = Interval(value, UNKNOWN, UNKNOWN)
        return Effect(claim, open_, open_, own, None, OPEN)
    seeds = range(first, first + look)
    spread = over_seeds([own[s] for s in seeds], look)
    if not what.by_query:
        return Effect(claim, spread, spread, own, look, judged(claim, spread))
    pooled = _pooled(what, [both[s] for s in seeds], shared, level(look))
    return Effect(claim, pooled, spread, own, look, judged(claim, pooled, spread))


def _pair(result: PartResult, claim: Claim) -> tuple[Floats, Floats] | None:
    """Return counts of arm and control, row by row of the same query."""
    one, other = (result.of(a, claim.measure) for a in (claim.arm, claim.control))
    if one is None or other is None:
        return None
    if one[0] != other[0]:
        raise ValueError(f"{claim.arm} and {claim.control} were judged by different queries")
    return one[1], other[1]


def _difference(what: Measure, one: Floats, other: Floats) -> float:
    return what.sign * float(what.figure(one.sum(0)) - what.figure(other.sum(0)))


def _pooled(
    what: Measure, pairs: Sequence[tuple[Floats, Floats]], shared: bool, alpha: float
) -> Interval:
    one, other = (
        np.sum(of, axis=0) if shared else np.concatenate(of) for of in zip(*pairs, strict=True)
    )
    found = difference(one, other, what.figure, resample(len(one)), alpha)
    return found if what.sign > 0 else found.negated()


def judged(claim: Claim, *intervals: Interval) -> str:
    """Return what the intervals together decide, by the claim's rule and its measure."""
    return verdict(claim.rule, *intervals, smallest=MEASURES[claim.measure].smallest)


def effects(results: Iterable[PartResult], first: int, shared: bool) -> list[Effect]:
    """Return every claim that some seed has both arms of."""
    parts = by_part(results)
    found = (effect_of(c, parts.get(c.part, {}), first, shared) for c in CLAIMS)
    return [e for e in found if e is not None]


def decided(part: str, results: Iterable[PartResult], first: int, shared: bool) -> bool:
    """Whether every claim of a part is decided: no further seed of it needs to be trained."""
    own = [e for e in effects(results, first, shared) if e.claim.part == part]
    return bool(own) and all(e.verdict != OPEN for e in own)


def cells(results: Iterable[PartResult]) -> list[tuple[Cell, dict[int, float]]]:
    """Return every cell that some seed has, with its figure by seed."""
    parts = by_part(results)
    found = []
    for cell in CELLS:
        figure = MEASURES[cell.measure].figure
        own = {
            seed: float(figure(known[1].sum(0)))
            for seed, r in parts.get(cell.part, {}).items()
            if (known := r.of(cell.arm, cell.measure)) is not None
        }
        if own:
            found.append((cell, own))
    return found
