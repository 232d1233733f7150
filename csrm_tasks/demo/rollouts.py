"""Whole rollouts, simulated: the real judgement and the real moves on made-up shoppers.

Only the ledger is left out. Everything that is shown here is on generated data.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from statistics import NormalDist, mean

import numpy as np

from csrm_tasks.demo.rollout_shoppers import World, a_day, an_audit, world
from csrm_tasks.release.online import Audit, Evidence, judge
from csrm_tasks.release.rollout import Open, Window, next_move
from csrm_tasks.release.sequential import Difference, Stratum, difference, two_proportions
from csrm_tasks.sections import Rollout

PLAN = Rollout(error_margin=None, latency_ratio=None)  # servers are not simulated
SESSIONS = 20_000  # a day, of a whole rollout
TESTED = 4_000  # a day, of one test of conversion
LIMIT = 60  # days after which a person would long have decided
SCENARIOS = {  # times Defect@5, times the share of exact results
    "better: 0.7 × defects, 1.03 × exact": (0.7, 1.03),
    "the same (A/A)": (1.0, 1.0),
    "2 × defects": (2.0, 1.0),
    "0.85 × exact": (1.0, 0.85),
}


@dataclass(frozen=True)
class Run:
    """How one simulated rollout ended."""

    end: str  # launched, rolled back, or held
    weight: int  # percent of sessions at the end
    days: int
    exposed: int  # sessions that the judged release answered before the end


def simulate(made: World, rng: np.random.Generator, plan: Rollout = PLAN) -> Run:
    """Run one rollout to its end; a hold counts as an end, for a person decides then."""
    state = Open("new", "old", plan, 0, 0, (Window("", 0.0),))
    sessions: list[Stratum] = []
    audit, outcomes, in_step = np.zeros(5, np.int64), [], 0
    for day in range(1, LIMIT + 1):
        in_step += 1
        if state.weight:
            sessions.append(a_day(made, SESSIONS, state.weight / 100, rng))
        audit += [plan.audit_queries, *an_audit(made, plan.audit_queries, rng)]
        evidence = Evidence(tuple(sessions), Audit(*(int(n) for n in audit)))
        outcomes.append(judge(state.current, plan, evidence)[0])
        move = next_move(state, outcomes, in_step)
        if move == "advance":
            state, outcomes, in_step = replace(state, step=state.step + 1), [], 0
        if move in ("abort", "hold") or state.passed:
            end = "launched" if state.passed else {"abort": "rolled back", "hold": "held"}[move]
            return Run(end, state.weight, day, sum(s.treated for s in sessions))
    return Run("held", state.weight, LIMIT, sum(s.treated for s in sessions))


def rollouts(number: int, seed: int = 0) -> dict[str, tuple[World, list[Run]]]:
    """Run ``number`` rollouts of every scenario."""
    found = {}
    for position, (name, made_of) in enumerate(SCENARIOS.items()):
        rng = np.random.default_rng((seed, position))
        made = world(*made_of, rng)
        found[name] = (made, [simulate(made, rng) for _ in range(number)])
    return found


def rollout_rows(found: dict[str, tuple[World, list[Run]]]) -> list[list[str]]:
    """Return a table: what became of each scenario's rollouts."""
    head = [
        "release", "Defect@5", "EM@1", "conversion", "launched", "rolled back", "before 10 %",
        "held", "days", "sessions exposed",
    ]  # fmt: skip
    rows = [head]
    for name, (made, runs) in found.items():
        ends = Counter(r.end for r in runs)
        early = sum(r.end == "rolled back" and r.weight < 10 for r in runs)
        shares = [ends["launched"], ends["rolled back"], early, ends["held"]]
        pairs = (made.defect, made.em, made.conversion)
        rows.append([
            name,
            *(f"{old:.1%} → {new:.1%}" for old, new in pairs),
            *(f"{n / len(runs):.1%}" for n in shares),
            f"{mean(r.days for r in runs):.1f}",
            f"{mean(r.exposed for r in runs):,.0f}",
        ])  # fmt: skip
    return rows


def horizon(base: float, margin: float, alpha: float, power: float = 0.9) -> int:
    """Return the days of a fixed-horizon test, half of the sessions each, that rules ``margin`` out
    with ``power`` when there is no difference.
    """
    z = NormalDist().inv_cdf(1 - alpha / 2) + NormalDist().inv_cdf(power)
    per_arm = 2 * base * (1 - base) * (z / margin) ** 2
    return max(1, round(per_arm / (TESTED / 2) + 0.499))


LOOKS = ("sequential, every day", "fixed horizon, once", "fixed test, every day (wrong)")


def conversion_rows(number: int, seed: int = 0) -> list[list[str]]:
    """Return a table: one test of conversion at 50 %, by three ways of looking."""
    rows = [["fall in conversion", "looking", "rolled back", "passed", "days", "sessions exposed"]]
    alpha, margin = 2 * PLAN.alpha / 4, 0.05
    rng = np.random.default_rng((seed, 99))
    base = world(1.0, 1.0, rng).conversion[0]
    days = horizon(base, margin * base, alpha)
    for fall in (0.0, 0.02, 0.1, 0.2):
        made = World((base, base * (1 - fall)), (0, 0), (0, 0), (0, 0), (0, 0))
        runs = [[a_day(made, TESTED, 0.5, rng) for _ in range(LIMIT)] for _ in range(number)]
        for name in LOOKS:
            ends = [_look(name, run, alpha, margin * base, days) for run in runs]
            took = [day for _, day in ends]
            shares = [mean(end == e for end, _ in ends) for e in ("rolled back", "passed")]
            exposed = mean(took) * TESTED / 2
            rows.append([
                f"{fall:.0%}", name, *(f"{s:.1%}" for s in shares), f"{mean(took):.1f}",
                f"{exposed:,.0f}",
            ])  # fmt: skip
    return rows


def _look(name: str, run: list[Stratum], alpha: float, margin: float, days: int) -> tuple[str, int]:
    """Return how one test ends, and on which day."""
    for day in [days] if name == LOOKS[1] else range(1, LIMIT + 1):
        found: Difference | None
        if name == LOOKS[0]:
            found = difference(run[:day], alpha, PLAN.planned_sessions)
        else:
            found = two_proportions(_sum(run[:day]), alpha)[0]
        assert found is not None
        if found.lo > -margin:
            return "passed", day
        if found.hi < 0:
            return "rolled back", day
    return "undecided", day


def _sum(strata: list[Stratum]) -> Stratum:
    rows = [(s.treated, s.treated_hits, s.control, s.control_hits) for s in strata]
    treated, hits, control, control_hits = (sum(column) for column in zip(*rows, strict=True))
    return Stratum(treated, hits, control, control_hits, strata[0].share)


def markdown(rows: list[list[str]]) -> str:
    """Return a table whose first row is its head."""
    lines = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
