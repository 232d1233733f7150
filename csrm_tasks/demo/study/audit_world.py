"""Audits of made-up releases, drawn plainly, by strata, with an LLM's help: width and coverage.

Pages are those of :mod:`.rollout_shoppers`; a query's traffic falls with its rank. An LLM sees each
product's grade through noise and gives probabilities (its micro-F1 and its F1 of defects are about
the demo LLM's); a useless one sees noise alone; without one, every product has the same. A
judgement is one product graded for one query: what both pages show is graded once. Letters Q
queries, R ranks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from csrm_tasks.demo.study.rollout_shoppers import EXACT, _grades
from csrm_tasks.ranking import TOP
from csrm_tasks.release.online.allocation import Before, by_strata, numbers
from csrm_tasks.release.online.expected import MEASURES, Expected, Measure, by_measure, expected
from csrm_tasks.release.online.prediction_powered import Estimate, estimate
from csrm_tasks.release.online.strata import Drawn, Floats, Ints, Population, draw

ALPHA = 0.05
JUDGEMENTS = 3_000  # products graded in one audit
PILOT = 550  # queries of the audit before, drawn plainly for as much, that the allocation is from
KEPT = 0.9  # of the results are the same product at the same rank: a week's retraining
SEES = (2.0, 1.0, 1.0)  # how far each grade moves an LLM's score, in deviations of its noise
CONFIDENT = 1.5  # deviations of a useless LLM's scores
SEARCHES = 200_000  # labelled by the LLM
NORMAL = 1.96  # errors that the textbook's interval of the plain draw has on each side
NONE = "none"


@dataclass(frozen=True)
class Size:
    """How much is simulated."""

    queries: int = 20_000
    audits: int = 2_000


QUICK = Size(queries=8_000, audits=300)


@dataclass(frozen=True)
class AuditWorld:
    """What people and LLMs would say of every query: judged release minus control."""

    searches: Ints  # (Q,)
    cost: Ints  # (Q,), distinct products on both pages
    people: Mapping[Measure, Floats]  # (Q,)
    llm: Mapping[str, Mapping[Measure, Expected]]  # LLM → measure


def audit_world(queries: int, rng: np.random.Generator) -> AuditWorld:
    """Draw a world in which the judged release has 0.85 × the defects and 1.02 × the exact ones."""
    drawn = rng.random((queries, TOP))
    moved = rng.random((queries, TOP)) >= KEPT
    other = np.where(moved, rng.random((queries, TOP)), drawn)
    control = _grades(drawn, 0.1, EXACT)
    judged = np.where(moved, _grades(other, 0.085, EXACT * 1.02), control)
    traffic = 1.0 / (np.arange(queries) + 5.0) ** 0.9
    people: dict[Measure, Floats] = {
        "EM@1": (judged[:, 0] == 2).astype(float) - (control[:, 0] == 2),
        "Defect@5": (judged == 0).any(axis=1).astype(float) - (control == 0).any(axis=1),
    }
    llm = {
        name: by_measure(expected(_pages(chances, moved), "judged", "control"))
        for name, chances in _llms(control, judged, moved, rng).items()
    }
    searches = np.ceil(SEARCHES * traffic / traffic.sum()).astype(np.int64)
    return AuditWorld(searches, TOP + moved.sum(axis=1), people, llm)


def _llms(
    control: Ints, judged: Ints, moved: NDArray[np.bool_], rng: np.random.Generator
) -> dict[str, Floats]:
    """Return each LLM's probabilities of the grades, control first, (2, Q, R, 3)."""
    prior = np.log(np.bincount(control.ravel(), minlength=3) / control.size)
    grades, sees = np.eye(3)[np.stack([control, judged])], np.array(SEES)
    found: dict[str, Floats] = {}
    for name in ("as good as ours", "useless"):
        noise = rng.normal(size=grades.shape)
        noise[1] = np.where(moved[..., None], noise[1], noise[0])  # the same product's score
        if name == "useless":  # says something, and it means nothing
            found[name] = prior + CONFIDENT * noise
        else:
            found[name] = prior + sees * (noise + sees * grades) - sees**2 / 2
    found[NONE] = np.broadcast_to(prior, grades.shape)
    chances = {name: np.exp(s - s.max(axis=-1, keepdims=True)) for name, s in found.items()}
    return {name: c / c.sum(axis=-1, keepdims=True) for name, c in chances.items()}


def _pages(chances: Floats, moved: NDArray[np.bool_]) -> pl.DataFrame:
    """Return pages as :func:`expected` reads them; of (2, Q, R, 3) probabilities."""
    queries, ranks = moved.shape
    same = np.broadcast_to(np.arange(ranks), moved.shape)
    products = np.stack([same, np.where(moved, same + ranks, same)])
    return pl.DataFrame({
        "release": np.repeat(["control", "judged"], queries * ranks),
        "query_id": np.tile(np.repeat(np.arange(queries), ranks), 2),
        "rank": np.tile(np.arange(ranks) + 1, 2 * queries),
        "product_id": products.ravel(),
        "exact": chances[..., 2].ravel(), "irrelevant": chances[..., 0].ravel(),
    })  # fmt: skip


@dataclass(frozen=True)
class Way:
    """One way to audit."""

    by_strata: bool
    llm: str


WAYS = {
    "plain draw": Way(False, NONE),
    "strata": Way(True, NONE),
    "strata, LLM": Way(True, "as good as ours"),
    "plain draw, LLM": Way(False, "as good as ours"),
    "strata, useless LLM": Way(True, "useless"),
}


def simulate(
    made: AuditWorld, way: Way, audits: int, rng: np.random.Generator
) -> dict[Measure, list[Estimate]]:
    """Return the estimates of so many audits by measure, each allocated by an audit before it."""
    plain = Population(made.searches, np.zeros(len(made.searches), np.int64))
    said = made.llm[way.llm]
    population = by_strata(made.searches, made.cost, said) if way.by_strata else plain
    found: dict[Measure, list[Estimate]] = {m: [] for m in MEASURES}
    for _ in range(audits):
        before = draw(plain, np.array([PILOT]), rng)
        number = np.array([PILOT])
        if way.by_strata:
            shown = _before(made, population, said, before)
            number = numbers(population, made.cost, said, shown, JUDGEMENTS)
        drawn = draw(population, number, rng)
        for m in MEASURES:
            found[m].append(
                estimate(
                    population, drawn, made.people[m][drawn.query], said[m].difference,
                    alpha=ALPHA, chance=said[m].chance if way.by_strata else None,
                )
            )  # fmt: skip
    return found


def _before(
    made: AuditWorld, population: Population, said: Mapping[Measure, Expected], drawn: Drawn
) -> Before:
    """Return what the audit before showed."""
    at = drawn.query
    size = np.ones(len(made.searches)) if population.size is None else population.size
    return Before(
        population.stratum[at], size[at], population.traffic[at] / drawn.chance,
        {m: made.people[m][at] for m in MEASURES},
        {m: Expected(said[m].difference[at], said[m].chance[at]) for m in MEASURES},
    )  # fmt: skip


def rows(size: Size, seed: int = 0) -> tuple[list[list[str]], dict[str, float]]:
    """Return the table of widths and coverage, and its figures by name.

    Widths are compared with the plain draw's interval of the same kind, and with the textbook's,
    which has no correction and covers a little less than it should.
    """
    made = audit_world(size.queries, np.random.default_rng((seed, 11)))
    table = [[
        "measure", "audit", "true difference", "mean half-width", "to plain", "to textbook",
        "covered", "λ",
    ]]  # fmt: skip
    figures: dict[str, float] = {}
    traffic = made.searches / made.searches.sum()
    plain: dict[str, tuple[float, float]] = {}
    for place, (name, way) in enumerate(WAYS.items()):
        found = simulate(made, way, size.audits, np.random.default_rng((seed, 12, place)))
        for measure, estimates in found.items():
            truth = float(traffic @ made.people[measure])
            width = float(np.mean([(e.hi - e.lo) / 2 for e in estimates]))
            textbook = NORMAL * float(np.mean([e.error for e in estimates]))
            covered = float(np.mean([e.lo <= truth <= e.hi for e in estimates]))
            of_plain = plain.setdefault(measure, (width, textbook))
            to_plain, to_textbook = (width / one for one in of_plain)
            power = float(np.mean([e.power for e in estimates]))
            table.append([
                measure, name, f"{truth:+.2%}", f"{width:.2%}", f"{to_plain:.2f}",
                f"{to_textbook:.2f}", f"{covered:.1%}", f"{power:.2f}",
            ])  # fmt: skip
            key = f"{measure}_{name}".replace(" ", "_").replace(",", "")
            figures |= {f"width_{key}": to_plain, f"covered_{key}": covered}
            figures[f"textbook_{key}"] = to_textbook
    return table, figures
