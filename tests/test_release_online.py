"""Online evidence: intervals that hold at every look, the judgement, and simulated rollouts."""

from __future__ import annotations

from dataclasses import replace
from math import sqrt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from csrm_tasks.demo import rollouts
from csrm_tasks.demo.rollout_shoppers import World, a_day, world
from csrm_tasks.release import sequential
from csrm_tasks.release.online import Audit, Check, Evidence, judge
from csrm_tasks.release.sequential import Stratum, boundary, difference, mismatch, paired, rho_for
from csrm_tasks.sections import Rollout, Step

ALPHA = 0.05
EVEN = World((0.1, 0.1), (0, 0), (0, 0), (0, 0), (0, 0))


def test_the_boundary_is_where_the_mixture_of_likelihood_ratios_reaches_one_over_alpha() -> None:
    """The definition of the mixture SPRT, integrated by brute force."""
    variance, rho = 37.0, 5.0
    s = boundary(variance, rho, ALPHA)
    lam = np.linspace(-10, 10, 400_001)
    ratio = np.exp(lam * s - lam**2 * variance / 2) * stats.norm.pdf(lam, 0, 1 / sqrt(rho))
    assert np.trapezoid(ratio, lam) == pytest.approx(1 / ALPHA, rel=1e-6)


def test_rho_makes_the_bound_narrowest_where_it_was_planned() -> None:
    best = boundary(1000, rho_for(1000, ALPHA), ALPHA)
    others = [boundary(1000, rho_for(p, ALPHA), ALPHA) for p in (10, 100, 400, 2500, 10_000)]
    assert best < min(others)
    exact = min(boundary(1000, r, ALPHA) for r in np.geomspace(1, 1000, 2000))
    assert best == pytest.approx(exact, rel=1e-3)


def test_looking_every_day_is_wrong_at_most_alpha_of_the_time_and_a_plain_test_is_not() -> None:
    rng = np.random.default_rng(5)
    false = {"sequential": 0, "plain": 0}
    for _ in range(300):
        days = [a_day(EVEN, 2_000, 0.3, rng) for _ in range(40)]
        seen = [days[: k + 1] for k in range(40)]
        found = [difference(s, ALPHA, 10_000) for s in seen]
        false["sequential"] += any(d is not None and not d.lo < 0 < d.hi for d in found)
        plain = [sequential.two_proportions(rollouts._sum(s), ALPHA)[1] for s in seen]
        false["plain"] += min(plain) < ALPHA
    assert false["sequential"] / 300 <= ALPHA
    assert false["plain"] / 300 > 3 * ALPHA


def test_the_difference_is_mantel_and_haenszels_and_drift_is_no_effect() -> None:
    strata = [Stratum(100, 30, 900, 270, 0.1), Stratum(500, 50, 500, 50, 0.5)]  # 30 %, then 10 %
    found = difference(strata, ALPHA, 1000)
    assert found is not None and found.value == pytest.approx(0)
    pooled = sequential.two_proportions(rollouts._sum(strata))[0]
    assert pooled.value < -0.04  # what a comparison without strata would have said


def test_one_stratums_interval_is_wider_than_the_one_for_a_single_look() -> None:
    s = Stratum(4000, 440, 4000, 400, 0.5)
    once, always = sequential.two_proportions(s)[0], difference([s], ALPHA, 2000)
    assert always is not None and always.lo < once.lo < once.value < once.hi < always.hi


def test_two_proportions_agrees_with_scipy() -> None:
    s = Stratum(400, 60, 500, 50, 0.5)
    found, p = sequential.two_proportions(s)
    table = [[60, 340], [50, 450]]
    assert p == pytest.approx(stats.chi2_contingency(table, correction=False).pvalue)
    one = stats.binomtest(60, 400).proportion_ci(0.95, "wilson")
    other = stats.binomtest(50, 500).proportion_ci(0.95, "wilson")
    assert found.lo == pytest.approx(0.05 - sqrt((0.15 - one.low) ** 2 + (other.high - 0.1) ** 2))
    assert found.hi == pytest.approx(0.05 + sqrt((one.high - 0.15) ** 2 + (0.1 - other.low) ** 2))


@given(st.integers(0, 500), st.integers(0, 500), st.integers(1, 500))
def test_swapping_the_releases_swaps_the_interval(worse: int, better: int, even: int) -> None:
    pairs = worse + better + even
    one, other = (paired(*x, pairs, ALPHA, 50) for x in ((worse, better), (better, worse)))
    assert one is not None and other is not None
    assert (one.value, one.lo, one.hi) == pytest.approx((-other.value, -other.hi, -other.lo))


def test_nothing_to_compare_is_no_interval() -> None:
    assert difference([Stratum(0, 0, 5, 1, 0.1)], ALPHA, 10) is None
    assert difference([], ALPHA, 10) is None and paired(0, 0, 0, ALPHA, 10) is None


def test_a_split_that_loses_sessions_is_noticed_and_a_sound_one_is_not() -> None:
    rng = np.random.default_rng(6)
    sound = [[a_day(EVEN, 20_000, 0.1, rng) for _ in range(20)] for _ in range(200)]
    assert not any(mismatch(s[: k + 1], 0.001, 20_000) for s in sound for k in range(20))
    lossy = [a_day(EVEN, 20_000, 0.1, rng, routed=0.09) for _ in range(5)]
    assert mismatch(lossy, 0.001, 20_000) == pytest.approx(0.09, abs=0.005)
    assert mismatch([Stratum(0, 0, 0, 0, 0.0)], 0.001, 20_000) is None  # shadow


STEP = Step(weight=10, sessions=1000, audits=100, margin=0.1, audit_margin=0.05)
PLAN = Rollout(steps=(STEP,))
GOOD = Evidence(
    (Stratum(100_000, 10_000, 900_000, 90_000, 0.1),),
    Audit(5_000, 200, 200, 200, 200),
    (Stratum(1_000_000, 10, 9_000_000, 90, 0.1),),
    (40.0, 40.0),
)


def outcomes(evidence: Evidence, plan: Rollout = PLAN) -> tuple[str, dict[str, str]]:
    total, checks = judge(plan.steps[0], plan, evidence)
    return total, {c.name: c.outcome for c in checks}


def test_all_evidence_good_is_a_success() -> None:
    total, checks = outcomes(GOOD)
    names = ["sessions", "conversion", "audits", "EM@1", "Defect@5", "errors", "latency"]
    assert (total, list(checks), set(checks.values())) == ("SUCCESS", names, {"SUCCESS"})


@pytest.mark.parametrize(
    ("change", "check", "outcome"),
    [
        ({"sessions": (Stratum(100_000, 8_000, 900_000, 90_000, 0.1),)}, "conversion", "FAILURE"),
        ({"sessions": (Stratum(1000, 100, 9000, 900, 0.1),)}, "conversion", "INCONCLUSIVE"),
        ({"sessions": (Stratum(999, 100, 9001, 900, 0.1),)}, "sessions", "INCONCLUSIVE"),
        ({"sessions": (Stratum(0, 0, 900, 90, 0.1),)}, "sessions", "ERROR"),
        ({"sessions": ()}, "sessions", "ERROR"),
        ({"sessions": (Stratum(90_000, 0, 900_000, 90_000, 0.1),)}, "split", "ERROR"),
        ({"audit": None}, "audits", "INCONCLUSIVE"),
        ({"audit": Audit(1000, 0, 0, 200, 50)}, "Defect@5", "FAILURE"),
        ({"audit": Audit(1000, 200, 50, 0, 0)}, "EM@1", "FAILURE"),
        ({"audit": Audit(200, 20, 20, 20, 20)}, "Defect@5", "INCONCLUSIVE"),
        ({"requests": ()}, "errors", "ERROR"),
        ({"requests": (Stratum(10_000, 100, 90_000, 9, 0.1),)}, "errors", "FAILURE"),
        ({"latency": None}, "latency", "ERROR"),
        ({"latency": (51.0, 40.0)}, "latency", "FAILURE"),
    ],
)
def test_truth_table(change: dict, check: str, outcome: str) -> None:
    total, checks = outcomes(replace(GOOD, **change))
    assert (checks[check], total) == (outcome, outcome)


def test_a_broken_split_says_nothing_of_conversion_and_hides_no_failure() -> None:
    broken = (Stratum(90_000, 0, 900_000, 90_000, 0.1),)
    total, checks = outcomes(replace(GOOD, sessions=broken))
    assert total == "ERROR" and "conversion" not in checks
    assert outcomes(replace(GOOD, sessions=broken, latency=(99.0, 40.0)))[0] == "FAILURE"


def test_what_a_market_does_not_measure_is_not_judged() -> None:
    step = STEP.model_copy(update={"weight": 0, "audits": 0})
    bare = PLAN.model_copy(update={"steps": (step,), "error_margin": None, "latency_ratio": None})
    assert judge(step, bare, Evidence()) == ("SUCCESS", [])
    teacher = Audit(5_000, 0, 0, 2_000, 0)
    assert judge(STEP, PLAN, replace(GOOD, teacher=teacher)) == judge(STEP, PLAN, GOOD)


def test_a_check_is_plain_data() -> None:
    check = Check("x", "SUCCESS", "fine", sequential.Difference(0, -1, 1))
    assert check.as_json()["found"] == {"value": 0, "lo": -1, "hi": 1}


@pytest.fixture(scope="module")
def simulated() -> dict[str, list[rollouts.Run]]:
    return {name: runs for name, (_, runs) in rollouts.rollouts(200).items()}


def test_good_releases_are_launched(simulated: dict[str, list[rollouts.Run]]) -> None:
    runs = next(runs for name, runs in simulated.items() if name.startswith("better"))
    assert {r.end for r in runs} == {"launched"}


def test_equal_releases_are_rarely_rolled_back(simulated: dict[str, list[rollouts.Run]]) -> None:
    runs = next(runs for name, runs in simulated.items() if "A/A" in name)
    assert sum(r.end == "rolled back" for r in runs) / len(runs) <= 0.05


def test_twice_the_defects_never_reach_a_tenth_of_the_traffic(
    simulated: dict[str, list[rollouts.Run]],
) -> None:
    runs = simulated["2 × defects"]
    early = [r for r in runs if r.end == "rolled back" and r.weight < 10]
    assert len(early) / len(runs) >= 0.95


def test_the_made_up_release_has_the_defects_it_was_asked_for() -> None:
    made = world(2.0, 1.0, np.random.default_rng(0))
    assert made.defect == pytest.approx((0.1, 0.2), abs=0.005)
    new, gone = made.defect_moves
    assert new - gone == pytest.approx(made.defect[1] - made.defect[0])
    assert made.conversion[1] < made.conversion[0]
