"""CUPED: equal to a linear regression, unbiased, narrower, and valid at every look."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from csrm_tasks.release.online.checks import OnlineEvidence, evaluate_step, share_of_alpha
from csrm_tasks.release.online.cuped import Groups, adjusted
from csrm_tasks.release.online.sequential import Stratum, difference
from csrm_tasks.sections import Rollout, Step


def shoppers(n: int, effect: float, rng: np.random.Generator, days: int = 3) -> Groups:
    """Sessions one by one: who bought before buys again more often, and days differ."""
    day = rng.integers(0, days, n)
    past = np.minimum(rng.poisson(0.5, n), 4).astype(float)
    visits = past + rng.poisson(1.0, n)
    treated = rng.random(n) < 0.3 + 0.1 * day
    chance = 0.05 + 0.03 * day + 0.17 * past + effect * treated
    outcome = (rng.random(n) < chance).astype(float)
    return Groups(np.ones(n), outcome, treated, day, np.column_stack([visits, past]))


def part(groups: Groups, n: int) -> Groups:
    return Groups(
        groups.number[:n], groups.outcome[:n], groups.treated[:n], groups.stratum[:n],
        groups.known[:n],
    )  # fmt: skip


def plain(groups: Groups) -> tuple[Stratum, ...]:
    found = []
    for s in np.unique(groups.stratum):
        counts = []
        for t in (True, False):
            here = (groups.treated == t) & (groups.stratum == s)
            counts += [
                int(groups.number[here].sum()), int(groups.number[here] @ groups.outcome[here]),
            ]  # fmt: skip
        found.append(Stratum(*counts, 0.3))
    return tuple(found)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 10_000), st.integers(20, 300))
def test_the_adjusted_difference_is_the_arms_coefficient_of_a_regression(seed: int, n: int) -> None:
    made = shoppers(n, 0.05, np.random.default_rng(seed))
    found = adjusted(made, 0.05, 500)
    both = [s for s in range(3) if len(set(made.treated[made.stratum == s])) == 2]
    kept = np.isin(made.stratum, both)
    dummies = [(made.stratum[kept] == s).astype(float) for s in both]
    design = np.column_stack([made.treated[kept].astype(float), *dummies, made.known[kept]])
    if not both or np.linalg.matrix_rank(design) < design.shape[1]:
        assert (found is None) == (not both)
        return
    beta = np.linalg.lstsq(design, made.outcome[kept], rcond=None)[0]
    assert found is not None and found.value == pytest.approx(beta[0], abs=1e-9)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10_000), st.integers(20, 300))
def test_without_covariates_it_is_the_difference_that_is_judged_otherwise(
    seed: int, n: int
) -> None:
    made = shoppers(n, 0.05, np.random.default_rng(seed))
    bare = Groups(made.number, made.outcome, made.treated, made.stratum, np.zeros((n, 2)))
    found, expected = adjusted(bare, 0.05, 500), difference(plain(made), 0.05, 500)
    if found is None or expected is None:
        assert found is expected
        return
    assert found.value == pytest.approx(expected.value, abs=1e-12)
    assert (found.lo, found.hi) == pytest.approx((expected.lo, expected.hi))


def test_sessions_that_are_alike_may_be_counted_together() -> None:
    made = shoppers(2_000, 0.05, np.random.default_rng(0))
    rows = np.column_stack([made.outcome, made.treated, made.stratum, made.known])
    once, number = np.unique(rows, axis=0, return_counts=True)
    together = Groups(
        number.astype(float), once[:, 0], once[:, 1] > 0, once[:, 2].astype(np.int64), once[:, 3:]
    )
    one, other = adjusted(made, 0.05, 500), adjusted(together, 0.05, 500)
    assert one is not None and other is not None and len(number) < 200
    assert (other.value, other.lo, other.hi) == pytest.approx((one.value, one.lo, one.hi))


def test_it_is_narrower_and_misses_the_truth_at_most_alpha_of_the_time_over_all_looks() -> None:
    rng, missed, widths = np.random.default_rng(1), 0, []
    for _ in range(200):
        made = shoppers(4_000, 0.0, rng)
        looks = [adjusted(part(made, n), 0.05, 500) for n in range(400, 4_001, 400)]
        missed += any(i is not None and not i.lo <= 0 <= i.hi for i in looks)
        last, raw = looks[-1], difference(plain(made), 0.05, 500)
        assert last is not None and raw is not None
        widths.append((last.hi - last.lo) / (raw.hi - raw.lo))
    assert missed <= 200 * 0.05
    assert max(widths) < 0.98


def test_a_covariate_that_says_the_same_twice_changes_nothing() -> None:
    made = shoppers(500, 0.0, np.random.default_rng(2))
    twice = Groups(
        made.number, made.outcome, made.treated, made.stratum, np.hstack([made.known, made.known])
    )
    one, other = adjusted(made, 0.05, 500), adjusted(twice, 0.05, 500)
    assert one is not None and other is not None
    assert (other.value, other.lo) == pytest.approx((one.value, one.lo))


def test_conversion_is_adjusted_where_the_plan_says_so() -> None:
    step = Step(weight=50, margin=0.05)
    plan = Rollout(steps=(step,), error_margin=None, latency_ratio=None)
    made = shoppers(4_000, 0.0, np.random.default_rng(3), days=1)
    evidence = OnlineEvidence(plain(made))

    def judged(found: OnlineEvidence) -> object:
        checks = evaluate_step(step, plan, found)[1]
        return next(c.found for c in checks if c.name == "conversion")

    alpha = share_of_alpha(plan)
    assert judged(evidence) == difference(plain(made), alpha, plan.planned_sessions)
    with_known = OnlineEvidence(plain(made), known=made)
    assert judged(with_known) == adjusted(made, alpha, plan.planned_sessions)
