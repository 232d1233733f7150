"""Whole rollouts, simulated: the real judgement and the real moves on made-up shoppers and servers.

Only the ledger is left out. A day is looked at in the next morning, so that every change of shares
falls into a day. Everything that is shown here is on generated data.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from statistics import NormalDist, mean

import numpy as np
from scipy.stats import binomtest

from csrm_tasks.demo.study import rollout_servers
from csrm_tasks.demo.study.rollout_servers import QUARTERS, Servers, joined
from csrm_tasks.demo.study.rollout_shoppers import World, a_day, an_audit, world
from csrm_tasks.release.online.checks import CHECKS, Audit, OnlineEvidence, evaluate_step
from csrm_tasks.release.online.sequential import Difference, Stratum, difference, two_proportions
from csrm_tasks.release.online.served import Served
from csrm_tasks.release.rollout import CurrentRollout, ShareWindow, next_move
from csrm_tasks.sections import Rollout

PLAN = Rollout()
SESSIONS = 20_000  # a day, of a whole rollout
FEW = 500
TESTED = 4_000  # a day, of one test of conversion
LIMIT = 60  # days after which a person would long have decided
CHANGED = 0.25  # of a day is over when the day before has been looked at and the shares change
ALIKE = Servers()


@dataclass(frozen=True)
class Scenario:
    """A release to be judged."""

    defects: float = 1.0  # times the control's Defect@5
    exact: float = 1.0  # times its share of exact results
    servers: Servers = ALIKE
    sessions: int = SESSIONS  # a day
    plan: Rollout = PLAN
    insisting: bool = False  # whether a person takes every held rollout to its next step

    @property
    def equal(self) -> bool:
        """Whether it is no worse and no better than the control."""
        made = (self.defects, self.exact, self.servers.slower, self.servers.failing)
        return made == (1.0, 1.0, 1.0, 0.0)


SCENARIOS = {
    "better: 0.7 × defects, 1.03 × exact": Scenario(0.7, 1.03),
    "the same (A/A)": Scenario(),
    "the same, an incident a day": Scenario(servers=Servers(incidents=1.0)),
    f"the same, {FEW} sessions a day, insisted on": Scenario(
        sessions=FEW, plan=PLAN.model_copy(update={"max_days": 7}), insisting=True
    ),
    "2 × defects": Scenario(2.0),
    "0.85 × exact": Scenario(1.0, 0.85),
    "1.6 × the time": Scenario(servers=Servers(slower=1.6)),
    "0.5 % more requests fail": Scenario(servers=Servers(failing=0.005)),
}


@dataclass(frozen=True)
class Run:
    """How one simulated rollout ended."""

    end: str  # launched, rolled back, or held
    weight: int  # percent of sessions at the end
    days: int
    exposed: int  # sessions that the judged release answered before the end


def simulate(
    made: World, rng: np.random.Generator, scenario: Scenario = SCENARIOS["the same (A/A)"]
) -> Run:
    """Run one rollout to its end. A hold counts as an end, unless a person insists."""
    plan = scenario.plan
    state = CurrentRollout("new", "old", plan, 0, 0, (ShareWindow("", 0.0),))
    sessions: list[Stratum] = []
    served: list[Served] = []
    audit, outcomes, since, before = np.zeros(5, np.int64), [], 0.0, 0.0
    for day in range(1, LIMIT + 1):
        share = state.weight / 100
        for part, of_day in ((before, CHANGED), (share, 1 - CHANGED)):
            if part:
                sessions.append(a_day(made, round(scenario.sessions * of_day), part, rng))
        shares = np.where(np.arange(QUARTERS) < CHANGED * QUARTERS, before, share)
        served.append(rollout_servers.a_day(scenario.servers, scenario.sessions, shares, day, rng))
        audit += [plan.audit_queries, *an_audit(made, plan.audit_queries, rng)]
        evidence = OnlineEvidence(tuple(sessions), Audit(*(int(n) for n in audit)), joined(served))
        outcomes.append(evaluate_step(state.current, plan, evidence)[0])
        move, before = next_move(state, outcomes, day - since), share
        if move == "advance" or (move == "hold" and scenario.insisting):
            move = "advance"
            state, outcomes = replace(state, step=state.step + 1), []
            since = day + CHANGED
        if move in ("abort", "hold") or state.passed:
            end = "launched" if state.passed else {"abort": "rolled back", "hold": "held"}[move]
            return Run(end, state.weight, day, sum(s.treated for s in sessions))
    return Run("held", state.weight, LIMIT, sum(s.treated for s in sessions))


def rollouts(number: int, seed: int = 0) -> dict[str, tuple[World, list[Run]]]:
    """Run ``number`` rollouts of every scenario."""
    worlds: dict[tuple[float, float], World] = {}
    found = {}
    for position, (name, scenario) in enumerate(SCENARIOS.items()):
        rng = np.random.default_rng((seed, position))
        pages = scenario.defects, scenario.exact
        if pages not in worlds:
            worlds[pages] = world(*pages, rng)
        made = worlds[pages]
        found[name] = (made, [simulate(made, rng, scenario) for _ in range(number)])
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


def false_rows(found: dict[str, tuple[World, list[Run]]]) -> list[list[str]]:
    """Return a table: how many of the equal releases were rolled back, with the 95 % upper limit
    of that share (Clopper and Pearson 1934).
    """
    rows = [["equal release", "rollouts", "rolled back", "at most (95 %)", "alpha"]]
    for name in (n for n in found if SCENARIOS[n].equal):
        ends = [run.end == "rolled back" for run in found[name][1]]
        limit = binomtest(sum(ends), len(ends), alternative="less").proportion_ci(0.95).high
        numbers = [f"{len(ends):,}", str(sum(ends)), f"{limit:.2%}", f"{PLAN.alpha:.0%}"]
        rows.append([name, *numbers])
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
    alpha, margin = 2 * PLAN.alpha / CHECKS, 0.05
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
