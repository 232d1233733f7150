"""What dev says of a teacher: whether a stack is kept (A50), and whether the gate would refuse it.

Gold decides neither: it is the release gate's alone. Intervals resample dev queries (A45).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from csrm_tasks.evaluation.gold import Counts, Gold, Predictions, counts
from csrm_tasks.evaluation.measures import MEASURES, share
from csrm_tasks.evaluation.metrics import Floats
from csrm_tasks.evaluation.paired import Interval, difference, interval, resample
from csrm_tasks.sections import COMPARED, Gate

SMALLEST = 1e-12  # probability that a float rounded to 0


@dataclass(frozen=True)
class Kept:
    """Whether a stack teaches, why, and the figures that say so."""

    kept: bool
    reason: str
    facts: Mapping[str, Any]


def answers(p: Floats, dev: Gold) -> Counts:
    """Return the counts of probabilities ``p`` (N, 3) of dev's pairs, as gold's are counted."""
    said, expected = p.argmax(1), p @ np.array([0.0, 1.0, 2.0])
    return counts(Predictions("", "llm", "", said == 2, said == 0, expected, said, p), dev)


def losses(p: Floats, dev: Gold) -> Floats:
    """Return the log loss of each query's pairs, summed, and their number, (Q, 2)."""
    loss = -np.log(np.maximum(p[np.arange(dev.pairs), dev.grade], SMALLEST))
    sums = [np.bincount(dev.query, weights, dev.queries) for weights in (loss, np.ones(dev.pairs))]
    return np.stack(sums, 1).astype(np.float64)


def judge_stack(dev: Gold, llm: Floats, alone: Floats, stack: Floats) -> Kept:
    """Say whether the stack is better than the LLM, by cross-fitted probabilities (N, 3) on dev.

    ``alone`` is a stack of the LLM's logits only, fitted alike: without it, a mere recalibration
    on dev's labels would look like evidence. The stack is kept where its log loss is lower than
    that and than the LLM's own, and its micro-F1 no lower. Estimates decide, as between rounds
    (A17): dev has few queries, and of two teachers one has to be taken; intervals are told.
    """
    weights = resample(dev.queries)
    tables = {name: answers(p, dev) for name, p in (("llm", llm), ("stack", stack))}
    loss = {name: losses(p, dev) for name, p in (("llm", llm), ("alone", alone), ("stack", stack))}
    evidence = difference(loss["stack"], loss["alone"], share, weights)
    gains = {"log_loss": difference(loss["stack"], loss["llm"], share, weights)}
    for name in COMPARED:
        family, metric = MEASURES[name]
        one, other = (tables[side][family] for side in ("stack", "llm"))
        gains[name] = difference(one, other, metric, weights)
    better = evidence.value < 0 and gains["log_loss"].value < 0
    words = (
        f"log loss {_words(gains['log_loss'], '+')} and micro-F1 {_words(gains['micro_f1'], '+')} "
        f"against the LLM, log loss {_words(evidence, '+')} against a stack without lexical "
        f"evidence, on {dev.queries} dev queries"
    )
    facts = {
        "figures": {name: _figures(table) for name, table in tables.items()},
        "log_loss": {name: float(share(table.sum(0))) for name, table in loss.items()},
        "evidence_log_loss": evidence.as_json(),
        "stack_minus_llm": {name: gain.as_json() for name, gain in gains.items()},
    }
    return Kept(better and gains["micro_f1"].value >= 0, words, facts)


def _figures(table: Counts) -> dict[str, float | None]:
    found = {name: float(MEASURES[name][1](table[MEASURES[name][0]].sum(0))) for name in COMPARED}
    return {name: value if np.isfinite(value) else None for name, value in found.items()}


def refusals(
    dev: Gold, teacher: Floats, baselines: Mapping[str, Floats], policy: Gate
) -> Iterator[str]:
    """Say in what the teacher is surely below the gate's floors or baselines on dev, a line each.

    ``teacher`` and ``baselines`` by name: probabilities (N, 3) of dev's pairs. Surely: by the whole
    interval, since dev has few queries and its labels err. Floors of towers are none of a teacher.
    """
    weights, own = resample(dev.queries), answers(teacher, dev)
    for name, least in sorted(policy.floors.items()):
        family, metric = MEASURES[name]
        if family == "relevance":
            found = interval(own[family], metric, weights, policy.alpha)
            if found.hi < least:
                yield f"{name} {_words(found)} is below {least:.3f}"
    for baseline, measures in policy.compared.items():
        if baseline not in baselines:
            continue
        theirs = answers(baselines[baseline], dev)
        for name in measures:
            family, metric = MEASURES[name]
            diff = difference(own[family], theirs[family], metric, weights, policy.alpha)
            if diff.hi < 0:
                yield f"{name} is {_words(diff, '+')} against {baseline}"


def _words(found: Interval, sign: str = "") -> str:
    return f"{found.value:{sign}.3f} [{found.lo:{sign}.3f}, {found.hi:{sign}.3f}]"
