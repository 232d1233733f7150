"""CUPED: equal to a linear regression, unbiased, and valid at every look."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from csrm_tasks.release.online.cuped import adjusted
from csrm_tasks.release.online.sequential import Stratum, difference


def sessions(n: int, effect: float, rng: np.random.Generator) -> tuple:
    """Shoppers with a past: who bought before buys again more often."""
    past = rng.poisson(0.5, n).astype(float)
    recent = rng.random(n)
    treated = rng.random(n) < 0.4
    chance = 0.05 + 0.15 * np.minimum(past, 4) + 0.05 * recent + effect * treated
    return (rng.random(n) < chance).astype(float), treated, np.column_stack([past, recent])


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10_000), st.integers(30, 300))
def test_the_adjusted_difference_is_the_arms_coefficient_of_a_regression(seed: int, n: int) -> None:
    outcome, treated, known = sessions(n, 0.05, np.random.default_rng(seed))
    found = adjusted(outcome, treated, known)
    if min(treated.sum(), (~treated).sum()) < 2:
        assert found is None
        return
    design = np.column_stack([np.ones(n), treated, known])
    beta = np.linalg.solve(design.T @ design, design.T @ outcome)
    left = outcome - design @ beta
    assert found is not None
    assert found.value == pytest.approx(beta[1], abs=1e-9)
    assert found.variance == pytest.approx(left @ left / (n - 4), abs=1e-9)


def test_without_covariates_it_is_the_plain_difference_of_conversion() -> None:
    outcome, treated, _ = sessions(5_000, 0.02, np.random.default_rng(0))
    found = adjusted(outcome, treated, np.zeros((5_000, 1)))
    assert found is not None and found.explained == 0.0
    counts = [
        int(v) for t in (True, False) for v in ((treated == t).sum(), outcome[treated == t].sum())
    ]
    plain = difference([Stratum(*counts, 0.4)], 0.05, 2_000)
    assert plain is not None
    interval = found.interval(0.05, 2_000)
    assert interval.value == pytest.approx(plain.value)
    assert interval.hi - interval.lo == pytest.approx(plain.hi - plain.lo, rel=0.005)


def test_it_is_narrower_and_misses_the_truth_at_most_alpha_of_the_time_over_all_looks() -> None:
    rng, missed, widths = np.random.default_rng(1), 0, []
    for _ in range(200):
        outcome, treated, known = sessions(4_000, 0.0, rng)
        looks = []
        for n in range(400, 4_001, 400):
            found = adjusted(outcome[:n], treated[:n], known[:n])
            assert found is not None
            looks.append(found.interval(0.05, 500))
        missed += any(not i.lo <= 0 <= i.hi for i in looks)
        raw = adjusted(outcome, treated, np.zeros((4_000, 1)))
        assert raw is not None
        wide = raw.interval(0.05, 500)
        width = (looks[-1].hi - looks[-1].lo) / (wide.hi - wide.lo)
        assert found is not None
        assert width == pytest.approx((1 - found.explained) ** 0.5, rel=0.001)
        widths.append(width)
    assert missed <= 200 * 0.05
    assert max(widths) < 0.98


def test_a_covariate_that_says_the_same_twice_changes_nothing() -> None:
    outcome, treated, known = sessions(500, 0.0, np.random.default_rng(2))
    once, twice = (adjusted(outcome, treated, x) for x in (known, np.hstack([known, known])))
    assert once is not None and twice is not None
    assert (once.value, once.variance) == pytest.approx((twice.value, twice.variance))
    assert adjusted(outcome[:1], treated[:1], known[:1]) is None
