"""How many sessions a decision takes: interleaving against the session split, on made-up shoppers.

Both are looked at after the same numbers of sessions by the product's own tests, at the same alpha,
and decide when the interval excludes 0. Every session counts, whether anything was clicked or not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import mean

import numpy as np
from scipy.stats import binomtest

from csrm_tasks.demo.study.interleaved_shoppers import Market, conversion, interleaved, market
from csrm_tasks.release.online.checks import PLANNED
from csrm_tasks.release.online.preference import Preferences, preference
from csrm_tasks.release.online.sequential import Difference, Stratum, difference
from csrm_tasks.sections import Rollout

ALPHA = 0.05
LIVE = 0.15  # what the live ranker knows of what is relevant
RANKERS = {"much better": 1.0, "better": 0.4, "worse": -0.3}
LOOKS = np.unique(np.round(50 * 1.04 ** np.arange(230))).astype(np.int64)  # up to 400,000 sessions
BATCH = 20_000  # sessions drawn at once
EQUAL_SESSIONS = 2_000  # of a run between equal releases


@dataclass(frozen=True)
class Size:
    """How much is simulated."""

    products: int = 2_000
    queries: int = 800
    truth: int = 1_000_000  # sessions by which conversions are known
    runs: int = 200  # of every difference and way
    equal_runs: int = 2_000


QUICK = Size(products=600, queries=150, truth=40_000, runs=8, equal_runs=40)


@dataclass(frozen=True)
class Decision:
    """How one test ended."""

    sessions: int
    sign: int  # 1: the new ranker is better; −1: worse; 0: undecided


def rows(size: Size, seed: int = 0) -> tuple[list[list[str]], dict[str, float]]:
    """Return the table of sessions to a decision, and its figures by name."""
    made = market(size.products, size.queries, seed)
    head = ["new ranker", "conversion", "test", "sessions to a decision", "right", "wrong"]
    table, figures = [head], dict[str, float]()
    for name, knows in RANKERS.items():
        rng = np.random.default_rng((seed, len(table)))
        rates = _truth(made, knows, size.truth, rng)
        sign = 1 if rates[1] > rates[0] else -1
        ways: dict[str, Callable[[], Decision]] = {
            "session split": lambda r=rates, g=rng: split_run(r, g),  # type: ignore[misc]
            "interleaving": lambda k=knows, g=rng: interleaved_run(made, k, g),  # type: ignore[misc]
        }
        taken = {}
        for way, run in ways.items():
            ends = [run() for _ in range(size.runs)]
            taken[way] = mean(e.sessions for e in ends)
            right, wrong = (mean(e.sign == s for e in ends) for s in (sign, -sign))
            text = f"{rates[0]:.2%} → {rates[1]:.2%}"
            table.append([name, text, way, f"{taken[way]:,.0f}", f"{right:.1%}", f"{wrong:.1%}"])
        figures[f"sessions_ratio_{name.replace(' ', '_')}"] = (
            taken["session split"] / taken["interleaving"]
        )
    return table, figures


def equal_rows(size: Size, seed: int = 0) -> tuple[list[list[str]], dict[str, float]]:
    """Return how often equal rankers are called different by interleaving, with the 95 % upper
    limit of that share (Clopper and Pearson 1934).
    """
    made = market(size.products, size.queries, seed)
    rng = np.random.default_rng((seed, 7))
    ends = [interleaved_run(made, LIVE, rng, EQUAL_SESSIONS) for _ in range(size.equal_runs)]
    wrong = sum(e.sign != 0 for e in ends)
    limit = binomtest(wrong, len(ends), alternative="less").proportion_ci(0.95).high
    head = ["equal rankers (A/A)", "runs", "called different", "share", "at most (95 %)", "alpha"]
    row = ["interleaving", f"{len(ends):,}", str(wrong), f"{wrong / len(ends):.2%}"]
    return [head, [*row, f"{limit:.2%}", f"{ALPHA:.0%}"]], {"equal_error": wrong / len(ends)}


def _truth(
    made: Market, knows: float, sessions: int, rng: np.random.Generator
) -> tuple[float, float]:
    batches = [
        conversion(made, (LIVE, knows), BATCH, rng) for _ in range(max(1, sessions // BATCH))
    ]
    return mean(b[0] for b in batches), mean(b[1] for b in batches)


def split_run(rates: tuple[float, float], rng: np.random.Generator) -> Decision:
    """Split sessions in halves until conversion decides; independent sessions are binomial."""
    seen, hits = np.zeros(2, np.int64), np.zeros(2, np.int64)
    for until in LOOKS.tolist():
        more = rng.multinomial(until - seen.sum(), [0.5, 0.5])
        seen, hits = seen + more, hits + rng.binomial(more, rates)
        stratum = Stratum(int(seen[1]), int(hits[1]), int(seen[0]), int(hits[0]), 0.5)
        found = difference([stratum], ALPHA, Rollout().planned_sessions)
        if sign := _sign(found):
            return Decision(until, sign)
    return Decision(int(LOOKS[-1]), 0)


def interleaved_run(
    made: Market, knows: float, rng: np.random.Generator, limit: int = int(LOOKS[-1])
) -> Decision:
    """Interleave all sessions until the preference decides, or ``limit`` sessions are over."""
    so_far, before = Preferences(), 0
    for until in [n for n in LOOKS.tolist() if n < limit] + [limit]:
        drawn = interleaved(made, (LIVE, knows), until - before, rng)
        so_far += Preferences.of(zip(drawn.next.tolist(), drawn.stable.tolist(), strict=True))
        if sign := _sign(preference(so_far, ALPHA, PLANNED)):
            return Decision(until, sign)
        before = until
    return Decision(limit, 0)


def _sign(found: Difference | None) -> int:
    if found is None:
        return 0
    return int(found.lo > 0) - int(found.hi < 0)
