"""Conformal sets: the definition written out, and coverage whatever the model is worth."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from csrm_tasks.evaluation.conformal import coverage, limits, sets, unsure

PRIOR = np.array([0.15, 0.25, 0.6])


def pairs(n: int, sees: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Grades, and probabilities of a model that sees them through noise (0: not at all)."""
    grades = rng.choice(3, n, p=PRIOR)
    logits = sees * np.eye(3)[grades] + rng.normal(size=(n, 3))
    chance = np.exp(logits)
    return chance / chance.sum(axis=1, keepdims=True), grades


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 60), st.sampled_from([0.05, 0.1, 0.3]))
def test_a_grade_is_kept_where_enough_of_its_pairs_are_no_more_probable(
    seed: int, n: int, alpha: float
) -> None:
    """By p-values: (1 + pairs of the grade that fit it no better) / (1 + pairs) > alpha."""
    rng = np.random.default_rng(seed)
    chance, grades = pairs(n, 1.0, rng)
    new, _ = pairs(10, 1.0, rng)
    found = sets(new, limits(chance, grades, alpha))
    for row in range(10):
        for grade in range(3):
            own = chance[grades == grade, grade]
            worse = sum(1 for p in own if p <= new[row, grade])
            value = (1 + worse) / (1 + len(own))
            assert found[row, grade] == (value > alpha + 1e-12)


@pytest.mark.parametrize("sees", [0.0, 1.5, 4.0])
def test_each_grade_is_covered_whatever_the_model_is_worth(sees: float) -> None:
    rng, alpha, seen, asked = np.random.default_rng(1), 0.1, [], []
    for _ in range(300):
        least = limits(*pairs(200, sees, rng), alpha)
        new, grades = pairs(400, sees, rng)
        found = sets(new, least)
        seen.append(coverage(found, grades))
        asked.append(unsure(found).mean())
    covered = np.mean(seen, axis=0)
    assert (covered >= 1 - alpha - 0.005).all()  # 300 × some 60 pairs and more of each grade
    assert (covered <= 1 - alpha + 0.04).all()  # and not by keeping every grade
    assert np.mean(asked) < 0.2 if sees == 4.0 else np.mean(asked) > 0.4


def test_too_few_pairs_rule_nothing_out_and_no_grade_left_is_for_review() -> None:
    chance, grades = pairs(8, 2.0, np.random.default_rng(0))
    assert (limits(chance, grades, 0.05) == 0).all()
    found = np.array([[True, False, False], [True, True, False], [False, False, False]])
    assert unsure(found).tolist() == [False, True, True]
    covered = coverage(found, np.array([0, 1, 1]))
    assert covered[:2].tolist() == [1.0, 0.5] and np.isnan(covered[2])
