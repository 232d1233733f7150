"""How often the gate errs, by simulation: pairs of models of known quality, judged by it.

Two models answer the same judged pairs. A pair is as difficult for one as for the other: a share
``alike`` of their answers is drawn together, as retrained models mostly agree. The gates of one
simulation share their queries, hence their bootstrap resamples; nothing loops over queries.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from csrm_tasks.evaluation.gate import GateEvidence, decide
from csrm_tasks.evaluation.metrics import Floats, Ints, confusion_by_query
from csrm_tasks.evaluation.slices import Mask
from csrm_tasks.sections import Gate

PLANTED = "category planted"


@dataclass(frozen=True)
class Scene:
    """What is simulated: sizes, and how good both models truly are."""

    queries: int = 200
    per_query: int = 8
    right: float = 0.75  # true share of right answers of the champion
    loss: float = 0.0  # by how much the candidate's share is lower
    alike: float = 0.7  # share of answers that both give
    slice_loss: float = 0.0  # the same, more, within the slice
    slice_share: float = 0.0  # share of queries that are in the slice PLANTED


@dataclass(frozen=True)
class Rates:
    """Shares of simulated gates."""

    gates: int
    passed: float
    failed: float
    superior: float  # micro-F1 alone was said to be better (or no worse, by the policy's mode)


def scenes(policy: Gate, queries: int) -> dict[str, tuple[Scene, Gate]]:
    """Return what the policy is tried on, on ``queries`` judged queries, by what is asked.

    Floors and baselines are left out: they are no matter of chance here.
    """
    bare = policy.model_copy(update={"floors": {}, "not_below": (), "slices": ()})
    strict = bare.model_copy(update={"mode": "superiority"})
    lax = bare.model_copy(update={"mode": "non_inferiority"})
    planted = {"slices": (PLANTED,), "slice_margin": 0.005, "margin": 0.05}
    usual = Scene(queries=queries)
    return {
        "equal models, superiority: passes (at most alpha)": (usual, strict),
        "worse by just the margin, non-inferiority: passes (at most alpha)": (
            replace(usual, loss=policy.margin), lax,
        ),
        "equal models, non-inferiority: passes (power)": (usual, lax),
        "two points lost in one slice of 9,600 pairs, margin 0.5: fails": (
            Scene(queries=600, per_query=20, slice_loss=0.02, slice_share=0.8),
            lax.model_copy(update=planted),
        ),
    }  # fmt: skip


def rates(scene: Scene, policy: Gate, gates: int, seed: int = 0) -> Rates:
    """Judge ``gates`` simulated candidates and return how often each outcome came."""
    verdicts = [decide(a, b, policy) for a, b in evidence(scene, gates, seed)]
    outcomes = [v.outcome for v in verdicts]
    first = [next(c for c in v.checks if c.name == policy.metric).outcome for v in verdicts]
    return Rates(
        gates,
        outcomes.count("PASS") / gates,
        outcomes.count("FAIL") / gates,
        first.count("PASS") / gates,
    )


def evidence(scene: Scene, gates: int, seed: int) -> Iterator[tuple[GateEvidence, GateEvidence]]:
    """Yield candidate and champion of each gate."""
    query = np.repeat(np.arange(scene.queries), scene.per_query)
    inside = query < scene.slice_share * scene.queries
    names = tuple(map(str, range(scene.queries)))
    for rng in np.random.default_rng(seed).spawn(gates):
        grade = rng.integers(0, 3, len(query))
        lower = scene.right - scene.loss - scene.slice_loss * inside
        together = rng.random(len(query)) < scene.alike
        shared, wrong = rng.random(len(query)), 1 + rng.integers(0, 2, len(query))
        sides = []
        for right in (lower, np.full(len(query), scene.right)):
            own = np.where(together, shared, rng.random(len(query)))
            said = np.where(own < right, grade, (grade + wrong) % 3)
            sides.append(_counted(said, grade, query, inside, names))
        yield sides[0], sides[1]


def _counted(
    said: Ints, grade: Ints, query: Ints, inside: Mask, names: tuple[str, ...]
) -> GateEvidence:
    def table(keep: Mask | slice, of: int | None = None) -> Floats:
        truth, answer = grade[keep], said[keep]
        if of is not None:
            truth, answer = (truth == of).astype(np.int64), (answer == of).astype(np.int64)
        k = 3 if of is None else 2
        return confusion_by_query(truth, answer, query[keep], len(names), k)

    whole = slice(None)
    counts = {"relevance": table(whole), "em": table(whole, 2), "defect": table(whole, 0)}
    return GateEvidence("simulated", names, counts, {PLANTED: table(inside)})
