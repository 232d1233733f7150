"""Audits of made-up releases, drawn plainly, by strata, with an LLM's help: width and coverage.

Pages are those of :mod:`.rollout_shoppers`; a query's traffic falls with its rank. An LLM sees each
product's grade through noise and gives probabilities (its micro-F1 and its F1 of defects are about
the demo LLM's); a useless one sees noise alone. A judgement is one product graded for one query:
what both pages show is graded once. Letters Q queries, R ranks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from csrm_tasks.demo.study.rollout_shoppers import EXACT, _grades
from csrm_tasks.ranking import TOP
from csrm_tasks.release.online.prediction_powered import Estimate, estimate
from csrm_tasks.release.online.strata import Floats, Ints, Population, allocate, draw, strata

ALPHA = 0.05
JUDGEMENTS = 3_000  # products graded in one audit
PILOT = 550  # queries of the audit before, drawn plainly for as much, that the allocation is from
PRIOR = 10  # queries that the mean over strata stands for in it
FLOOR = 30  # queries of each stratum
KEPT = 0.9  # of the results are the same product at the same rank: a week's retraining
SEES = (2.0, 1.0, 1.0)  # how far each grade moves an LLM's score, in deviations of its noise
SUSPECTED = (0.6, 0.9)  # quantiles of the difference in defects that an LLM expects
SEARCHES = 200_000  # labelled by the LLM
MEASURES = ("EM@1", "Defect@5")


@dataclass(frozen=True)
class Size:
    """How much is simulated."""

    queries: int = 20_000
    audits: int = 2_000


QUICK = Size(queries=4_000, audits=150)


@dataclass(frozen=True)
class AuditWorld:
    """What people and LLMs would say of every query: judged release minus control."""

    searches: Ints  # (Q,)
    differs: Ints  # (Q,): 0 the same five, 1 others below the first, 2 another first
    cost: Ints  # (Q,), distinct products on both pages
    people: dict[str, Floats]  # measure → (Q,)
    llm: dict[str, dict[str, Floats]]  # LLM → measure → (Q,)


def audit_world(queries: int, rng: np.random.Generator) -> AuditWorld:
    """Draw a world in which the judged release has 0.85 × the defects and 1.02 × the exact ones."""
    drawn = rng.random((queries, TOP))
    moved = rng.random((queries, TOP)) >= KEPT
    other = np.where(moved, rng.random((queries, TOP)), drawn)
    control = _grades(drawn, 0.1, EXACT)
    judged = np.where(moved, _grades(other, 0.085, EXACT * 1.02), control)
    traffic = 1.0 / (np.arange(queries) + 5.0) ** 0.9
    llm = {
        name: _llm(control, judged, moved, sees, rng)
        for name, sees in (("as good as ours", SEES), ("useless", (0.0, 0.0, 0.0)))
    }
    people = {
        "EM@1": (judged[:, 0] == 2).astype(float) - (control[:, 0] == 2),
        "Defect@5": (judged == 0).any(axis=1).astype(float) - (control == 0).any(axis=1),
    }
    differs = np.where(moved[:, 0], 2, moved.any(axis=1).astype(np.int64))
    searches = np.ceil(SEARCHES * traffic / traffic.sum()).astype(np.int64)
    return AuditWorld(searches, differs, TOP + moved.sum(axis=1), people, llm)


def _llm(
    control: Ints,
    judged: Ints,
    moved: NDArray[np.bool_],
    sees: tuple[float, ...],
    rng: np.random.Generator,
) -> dict[str, Floats]:
    """Return what an LLM's probabilities say of the differences."""
    prior = np.bincount(control.ravel(), minlength=3) / control.size
    noise = rng.normal(size=(2, *control.shape, 3))
    noise[1] = np.where(moved[..., None], noise[1], noise[0])  # the same product, the same score
    chances = []
    for grades, seen in zip((control, judged), noise, strict=True):
        score = np.log(prior) + sees * (seen + sees * np.eye(3)[grades]) - np.square(sees) / 2
        chance = np.exp(score - score.max(axis=-1, keepdims=True))
        chances.append(chance / chance.sum(axis=-1, keepdims=True))
    exact = [c[:, 0, 2] for c in chances]
    defect = [1 - (1 - c[..., 0]).prod(axis=1) for c in chances]
    if not any(sees):  # says something, and it means nothing
        exact = [rng.random(len(control)) for _ in range(2)]
        defect = [rng.random(len(control)) for _ in range(2)]
    return {"EM@1": exact[1] - exact[0], "Defect@5": defect[1] - defect[0]}


@dataclass(frozen=True)
class Way:
    """One way to audit."""

    by_strata: bool
    llm: str | None


WAYS = {
    "plain draw": Way(False, None),
    "strata": Way(True, None),
    "strata, LLM": Way(True, "as good as ours"),
    "plain draw, LLM": Way(False, "as good as ours"),
    "strata, useless LLM": Way(True, "useless"),
}


def simulate(
    made: AuditWorld, way: Way, audits: int, rng: np.random.Generator
) -> dict[str, list[Estimate]]:
    """Return the estimates of so many audits by measure, each allocated by an audit before it."""
    plain = Population(made.searches, np.zeros(len(made.searches), np.int64))
    population = plain
    if way.by_strata:
        population = Population(made.searches, strata(made.searches, _kinds(made, way.llm)))
    sizes = np.bincount(population.stratum)
    costs = np.bincount(population.stratum, plain.traffic * made.cost) / population.shares
    alike = np.bincount(population.stratum, made.differs) == 0  # nothing to be judged there
    floors = np.where(alike & way.by_strata, 0, FLOOR)
    found: dict[str, list[Estimate]] = {m: [] for m in MEASURES}
    for _ in range(audits):
        before = draw(plain, np.array([PILOT]), rng).query
        said = [made.people[m][before] for m in MEASURES]
        spread = _deviations(said, population.stratum[before], len(sizes)) * (floors > 0)
        numbers = allocate(JUDGEMENTS, population.shares, spread, sizes, costs, floors)
        drawn = draw(population, numbers, rng)
        for m in MEASURES:
            llm = made.llm[way.llm][m] if way.llm else None
            found[m].append(
                estimate(population, drawn, made.people[m][drawn.query], llm, alpha=ALPHA)
            )
    return found


def _kinds(made: AuditWorld, llm: str | None) -> Ints:
    """Return how the pages of each query differ, and, with an LLM, how much of a difference in
    defects it expects: a class below each of ``SUSPECTED`` among those that differ.
    """
    if llm is None:
        return made.differs
    suspected = np.abs(made.llm[llm]["Defect@5"])
    limits = np.quantile(suspected[made.differs > 0], SUSPECTED)
    classes = np.searchsorted(limits, suspected)
    return np.asarray(made.differs + 3 * classes * (made.differs > 0), np.int64)


def _deviations(said: list[Floats], stratum: Ints, count: int) -> Floats:
    """Return each stratum's standard deviation in the last audit, of all measures together, each
    in units of its own; shrunk to that of all queries, so that a stratum in which nothing differed
    is not taken for one without variance.
    """
    n = np.bincount(stratum, minlength=count)
    together = np.zeros(count)
    for values in said:
        mean = np.bincount(stratum, values, count) / np.maximum(n, 1)
        squares = np.bincount(stratum, (values - mean[stratum]) ** 2, count)
        spread = max(float(values.var()), 1 / len(values))
        together += (squares / spread + PRIOR) / (n + PRIOR)
    return np.asarray(np.sqrt(together))


def rows(size: Size, seed: int = 0) -> tuple[list[list[str]], dict[str, float]]:
    """Return the table of widths and coverage, and its figures by name."""
    made = audit_world(size.queries, np.random.default_rng((seed, 11)))
    table = [["measure", "audit", "true difference", "mean half-width", "to plain", "covered", "λ"]]
    figures: dict[str, float] = {}
    traffic = made.searches / made.searches.sum()
    plain: dict[str, float] = {}
    for place, (name, way) in enumerate(WAYS.items()):
        found = simulate(made, way, size.audits, np.random.default_rng((seed, 12, place)))
        for measure, estimates in found.items():
            truth = float(traffic @ made.people[measure])
            width = float(np.mean([(e.hi - e.lo) / 2 for e in estimates]))
            covered = float(np.mean([e.lo <= truth <= e.hi for e in estimates]))
            to_plain = width / plain.setdefault(measure, width)
            power = float(np.mean([e.power for e in estimates]))
            table.append([
                measure, name, f"{truth:+.2%}", f"{width:.2%}", f"{to_plain:.2f}",
                f"{covered:.1%}", f"{power:.2f}",
            ])  # fmt: skip
            key = f"{measure}_{name}".replace(" ", "_").replace(",", "")
            figures |= {f"width_{key}": to_plain, f"covered_{key}": covered}
    return table, figures
