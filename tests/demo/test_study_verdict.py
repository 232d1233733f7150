"""The one rule by which every study judges a claim."""

from __future__ import annotations

from typing import Any

import pytest

from csrm_tasks.demo.paper.effects import judged
from csrm_tasks.demo.paper.plan import CLAIMS, Claim
from csrm_tasks.demo.study.verdict import SMALLEST, verdict
from csrm_tasks.evaluation.paired import Interval


@pytest.mark.parametrize(
    ("rule", "intervals", "expected"),
    [
        ("gain", [(0.001, 0.02), (0.002, 0.03)], "holds"),
        ("gain", [(0.0, 0.02), (0.002, 0.03)], "not decided"),
        ("gain", [(-0.02, SMALLEST / 2), (-0.03, SMALLEST / 2)], "does not hold"),
        ("gain", [(0.001, 0.02), (-0.002, 0.03)], "not decided"),
        ("gain", [(-0.02, SMALLEST / 2), (-0.03, 2 * SMALLEST)], "not decided"),
        ("no loss", [(-SMALLEST / 2, 0.02), (-SMALLEST / 2, 0.03)], "holds"),
        ("no loss", [(-SMALLEST / 2, 0.02), (-2 * SMALLEST, 0.03)], "not decided"),
        ("no loss", [(-0.02, -0.001), (-0.03, -0.001)], "does not hold"),
        ("bar", [(0.9, 0.95), (0.91, 1.0)], "holds"),
        ("bar", [(0.89, 0.95), (0.91, 1.0)], "not decided"),
        ("bar", [(0.7, 0.89), (0.6, 0.88)], "does not hold"),
        ("bar", [(0.95, 0.99), (float("nan"), float("nan"))], "not decided"),
    ],
)
def test_the_rules(rule: Any, intervals: list[tuple[float, float]], expected: str) -> None:
    assert verdict(rule, *(Interval((a + b) / 2, a, b) for a, b in intervals), bar=0.9) == expected


MT, SD3 = (next(c for c in CLAIMS if c.arm == arm and c.measure == "micro_f1")
           for arm in ("mt", "sd3"))  # fmt: skip


@pytest.mark.parametrize(
    ("claim", "bounds", "expected"),
    [
        (MT, (0.001, 0.02), "holds"), (MT, (-0.02, 0.004), "does not hold"),
        (MT, (-0.02, 0.006), "not decided"), (SD3, (-0.004, 0.02), "holds"),
        (SD3, (-0.03, -0.001), "does not hold"), (SD3, (-0.006, 0.01), "not decided"),
    ],
)  # fmt: skip
def test_the_claims_of_the_papers(claim: Claim, bounds: tuple[float, float], expected: str) -> None:
    sure = Interval(0.0, 0.0001, 0.0002) if expected == "holds" else Interval(0, -0.9, -0.8)
    wide = Interval(sum(bounds) / 2, *bounds)
    assert judged(claim, wide, sure if expected != "not decided" else wide) == expected


def test_a_measure_has_a_smallest_effect_of_its_own() -> None:
    little = Interval(0.001, -0.001, 0.003)
    assert verdict("gain", little, little) == "does not hold"
    assert verdict("gain", little, little, smallest=0.002) == "not decided"
    assert verdict("no loss", little, smallest=0.0005) == "not decided"
    assert verdict("no loss", little) == "holds"
