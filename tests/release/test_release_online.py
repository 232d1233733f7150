"""Online evidence: intervals that hold at every look, the judgement, and simulated rollouts."""

from __future__ import annotations

from dataclasses import replace
from math import sqrt

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import stats

from csrm_tasks.demo.study import rollouts
from csrm_tasks.demo.study.rollout_shoppers import World, a_day, world
from csrm_tasks.release.online import sequential
from csrm_tasks.release.online.checks import Audit, OnlineCheck, OnlineEvidence, evaluate_step
from csrm_tasks.release.online.sequential import (
    Stratum,
    boundary,
    difference,
    difference_in_bursts,
    mismatch,
    paired,
    rho_for,
)
from csrm_tasks.release.online.served import Served, bucket_of, upper_ms
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


counts = st.lists(
    st.tuples(*[st.integers(0, 60)] * 4).map(
        lambda row: (max(row[:2]), min(row[:2]), max(row[2:]), min(row[2:]))
    ),
    max_size=12,
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(counts)
def test_requests_are_compared_as_mantel_and_haenszel_would_with_the_greater_variance(
    rows: list[tuple[int, int, int, int]],
) -> None:
    """Against sums written out; two rows make one quarter of an hour."""
    counts_K4 = np.array(rows, np.int64).reshape(-1, 4)
    found = difference_in_bursts(counts_K4, np.arange(len(rows)) // 2, ALPHA, 100)
    both = [r for r in rows if r[0] and r[2]]
    if not both:
        assert found is None
        return
    total = model = 0.0
    more = [0.0] * len(rows)  # failures than by the window's common share, by quarter
    for k, (n1, h1, n0, h0) in enumerate(rows):
        n, h = n1 + n0, h1 + h0
        if n1 and n0:
            total += n1 * n0 / n
            more[k // 2] += h1 - n1 * h / n
            model += n1 * n0 * h * (n - h) / (n * n * (n - 1))
    value, squares = sum(more), sum(x * x for x in more)
    model += total / (sum(r[0] + r[2] for r in both) + 2)
    scale = model / total
    half = sqrt(scale) * boundary(max(total, squares / scale), rho_for(100, ALPHA), ALPHA) / total
    assert found is not None
    assert (found.value, found.hi - found.value) == pytest.approx((value / total, half))
    independent = difference([Stratum(*r, 0.5) for r in rows], ALPHA, 100)
    assert independent is not None and found.value == independent.value
    assert found.lo <= independent.lo and independent.hi <= found.hi


def a_change_day() -> np.ndarray:
    """Quarters of a day whose share rises from 1 % to 10 % at six; at eight in the evening 30 % of
    everybody's requests fail for an hour.
    """
    rows = []
    for quarter in range(96):
        share = 0.01 if quarter < 24 else 0.1
        fails = 0.3 if 80 <= quarter < 84 else 0.0
        n1, n0 = round(5000 * share), round(5000 * (1 - share))
        rows.append((n1, round(n1 * fails), n0, round(n0 * fails)))
    return np.array(rows)


def test_an_incident_that_hits_both_arms_on_a_day_of_change_is_no_failure() -> None:
    quarters = a_change_day()
    each = np.arange(96)
    by_day = difference_in_bursts(quarters.sum(axis=0, keepdims=True), each[:1], ALPHA, 20_000)
    assert by_day is not None and by_day.value > 0.003  # what a comparison by day believes
    found = difference_in_bursts(quarters, each, ALPHA, 20_000)
    assert found is not None and found.value == pytest.approx(0) and found.lo < 0


def test_failures_in_one_burst_are_no_evidence_and_as_many_all_day_long_are() -> None:
    burst, all_day = (np.tile([[50, 0, 5000, 3]], (96, 1)) for _ in range(2))
    burst[40, 1] = 48
    all_day[::2, 1] = 1
    assert burst[:, 1].sum() == all_day[:, 1].sum() == 48
    each = np.arange(96)
    found = [difference_in_bursts(rows, each, ALPHA, 20_000) for rows in (burst, all_day)]
    assert found[0] is not None and found[1] is not None
    assert found[0].value == pytest.approx(found[1].value)
    assert found[0].lo < 0 < found[1].lo


def served(
    windows: int = 96, requests: tuple[int, int] = (10_000, 90_000),
    errors: tuple[int, int] = (1, 9), slowest_ms: tuple[float, float] = (40.0, 40.0),
) -> Served:  # fmt: skip
    """Windows that are alike: 3 of 200 answered requests take the longest time, the rest 20 ms."""
    times = np.zeros((windows, 2, 200), np.int32)
    for arm in (0, 1):
        answered = requests[arm] - errors[arm]
        times[:, arm, bucket_of(0.02)] += answered - answered * 3 // 200
        times[:, arm, bucket_of(slowest_ms[arm] / 1e3)] += answered * 3 // 200
    seen = (np.tile(counts, (windows, 1)) for counts in (requests, errors))
    return Served(*seen, times, 0, np.arange(windows))


def test_p99_is_the_slow_quantile_of_the_raw_times_up_to_a_bucket() -> None:
    rng = np.random.default_rng(7)
    for _ in range(50):
        raw = [rng.lognormal(3, 0.7, (1, 400)) for _ in range(2)]
        times = np.zeros((1, 2, 300), np.int32)
        for arm, ms in enumerate(raw):
            for one in ms.ravel():
                times[0, arm, max(0, bucket_of(one / 1e3))] += 1
        nothing = np.zeros((1, 2), np.int64)
        found = Served(nothing + 400, nothing, times, 0, np.arange(1)).slow(1.25)
        limit = np.sort(raw[1].ravel())[395]  # 396 of 400 are not above it
        assert limit <= found.control_ms < 1.05 * limit * (1 + 1e-9)
        edges = [np.array([upper_ms(bucket_of(x / 1e3)) for x in ms.ravel()]) for ms in raw]
        slow = [(edges[0] > 1.25 * found.control_ms).sum(), (edges[1] > found.control_ms).sum()]
        assert found.counts.tolist() == [[400, slow[0], 400, slow[1]]]


def test_a_change_of_shares_in_a_slow_time_moves_no_p99() -> None:
    """By day the judged release looks slow: it got most of its requests in the slow hour."""
    quick, slow = served(1, (100, 9_900), (0, 0)), served(1, (5_000, 5_000), (0, 0), (400, 400))
    found = beside(quick, slow).slow(1.25)
    assert found.judged_ms == found.control_ms


def beside(one: Served, other: Served) -> Served:
    """Both, window by window in the same quarters of an hour."""
    names = ("requests", "errors", "times")
    columns = (np.concatenate([getattr(one, n), getattr(other, n)]) for n in names)
    return Served(*columns, 0, np.concatenate([one.quarters, other.quarters]))


def test_a_release_that_remembers_no_query_yet_is_not_slower_for_that() -> None:
    """It encodes most of its queries, the stable release hardly any; each takes what it takes."""
    known = served(96, (200, 1_800), (0, 0), (20.0, 20.0))
    new = served(96, (1_800, 200), (0, 0), (400.0, 400.0))
    assert outcomes(replace(GOOD, requests=beside(known, new)))[1]["latency"] == "SUCCESS"
    mixed = Served(
        known.requests + new.requests, known.errors, known.times + new.times, 0, known.quarters
    )
    assert outcomes(replace(GOOD, requests=mixed))[1]["latency"] == "FAILURE"


def test_equal_p99_of_few_requests_is_rarely_called_different() -> None:
    """Equal releases, looked at every day for 20 days: 200 times, by the share of a check."""
    rng = np.random.default_rng(8)
    plan, failed = PLAN.model_copy(update={"latency_ratio": 1.0}), 0
    for _ in range(200):
        times = np.zeros((20, 2, 250), np.int32)
        for day, arm in np.ndindex(20, 2):
            ms = rng.lognormal(3, 0.7, (60, 1500)[arm])
            buckets = np.ceil(np.log(ms) / np.log(1.05)).astype(int)
            times[day, arm] = np.bincount(np.maximum(buckets, 0), minlength=250)
        requests = np.tile([60, 1500], (20, 1))
        for days in range(1, 21):
            nothing = np.zeros((days, 2), np.int64)
            seen = Served(requests[:days], nothing, times[:days], 0, np.arange(days))
            checks = evaluate_step(STEP, plan, replace(GOOD, requests=seen))[1]
            failed += next(c for c in checks if c.name == "latency").outcome == "FAILURE"
    assert failed <= 200 * PLAN.alpha / 5


STEP = Step(weight=10, sessions=1000, audits=100, margin=0.1, audit_margin=0.05)
PLAN = Rollout(steps=(STEP,))
GOOD = OnlineEvidence(
    (Stratum(100_000, 10_000, 900_000, 90_000, 0.1),),
    Audit(5_000, 200, 200, 200, 200),
    served(),
)


def outcomes(evidence: OnlineEvidence, plan: Rollout = PLAN) -> tuple[str, dict[str, str]]:
    total, checks = evaluate_step(plan.steps[0], plan, evidence)
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
        ({"requests": None}, "errors", "ERROR"),
        ({"requests": None}, "latency", "ERROR"),
        ({"requests": served(errors=(100, 9))}, "errors", "FAILURE"),
        ({"requests": served(1, (10_000, 90_000), (100, 9))}, "errors", "INCONCLUSIVE"),
        ({"requests": served(slowest_ms=(51.0, 40.0))}, "latency", "FAILURE"),
        ({"requests": served(1, slowest_ms=(51.0, 40.0))}, "latency", "INCONCLUSIVE"),
        ({"requests": served(1, (999, 9_000), (0, 0))}, "latency", "INCONCLUSIVE"),
    ],
)
def test_truth_table(change: dict, check: str, outcome: str) -> None:
    total, checks = outcomes(replace(GOOD, **change))
    assert (checks[check], total) == (outcome, outcome)


def test_a_broken_split_says_nothing_of_conversion_and_hides_no_failure() -> None:
    broken = (Stratum(90_000, 0, 900_000, 90_000, 0.1),)
    total, checks = outcomes(replace(GOOD, sessions=broken))
    assert total == "ERROR" and "conversion" not in checks
    assert (
        outcomes(replace(GOOD, sessions=broken, requests=served(slowest_ms=(99.0, 40.0))))[0]
        == "FAILURE"
    )


def test_what_a_market_does_not_measure_is_not_judged() -> None:
    step = STEP.model_copy(update={"weight": 0, "audits": 0})
    bare = PLAN.model_copy(update={"steps": (step,), "error_margin": None, "latency_ratio": None})
    assert evaluate_step(step, bare, OnlineEvidence()) == ("SUCCESS", [])
    teacher = Audit(5_000, 0, 0, 2_000, 0)
    assert evaluate_step(STEP, PLAN, replace(GOOD, teacher=teacher)) == evaluate_step(
        STEP, PLAN, GOOD
    )


def test_a_check_is_plain_data() -> None:
    check = OnlineCheck("x", "SUCCESS", "fine", sequential.Difference(0, -1, 1))
    assert check.as_json()["found"] == {"value": 0, "lo": -1, "hi": 1}


@pytest.fixture(scope="module")
def simulated() -> dict[str, list[rollouts.Run]]:
    return {name: runs for name, (_, runs) in rollouts.rollouts(20).items()}


def test_good_releases_are_launched_or_a_person_is_asked(
    simulated: dict[str, list[rollouts.Run]],
) -> None:
    runs = next(runs for name, runs in simulated.items() if name.startswith("better"))
    assert not [r for r in runs if r.end == "rolled back"]
    assert sum(r.end == "launched" for r in runs) / len(runs) >= 0.9  # else an incident's noise


def test_equal_releases_are_rarely_rolled_back(simulated: dict[str, list[rollouts.Run]]) -> None:
    """Incidents, changes of shares, few requests; `csrm rollout simulate` does it 2,000 times."""
    equal = [name for name in simulated if rollouts.SCENARIOS[name].equal]
    runs = [run for name in equal for run in simulated[name]]
    assert len(runs) == 60
    assert sum(r.end == "rolled back" for r in runs) / len(runs) <= 0.05
    assert {r.weight for r in runs if r.end == "launched"} == {50}  # every share was met


def test_servers_that_fail_or_are_slow_never_reach_a_tenth_of_the_traffic(
    simulated: dict[str, list[rollouts.Run]],
) -> None:
    for name in ("1.6 × the time", "0.5 % more requests fail"):
        early = [r for r in simulated[name] if r.end == "rolled back" and r.weight < 10]
        assert len(early) / len(simulated[name]) >= 0.9, name


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
