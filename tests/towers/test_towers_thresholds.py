"""Thresholds (A33) against trying every cut."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import f1_score, precision_score, recall_score

from csrm_tasks.errors import DataError
from csrm_tasks.towers.thresholds import at_threshold, choose_threshold


def sample(seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    truth = rng.random(60) < 0.3
    return np.round(np.clip(0.4 * truth + 0.6 * rng.random(60), 0, 1), 2), truth


@pytest.mark.parametrize("seed", range(5))
def test_greatest_f1_of_all_cuts(seed: int) -> None:
    scores, truth = sample(seed)
    chosen = choose_threshold("em", scores, truth, None)
    best = max(f1_score(truth, scores >= cut) for cut in scores)
    decided = scores >= chosen.value
    assert f1_score(truth, decided) == pytest.approx(best) == pytest.approx(chosen.f1)
    assert precision_score(truth, decided) == pytest.approx(chosen.precision)
    assert recall_score(truth, decided) == pytest.approx(chosen.recall)
    assert np.abs(scores - chosen.value).min() > 1e-3  # midway, never on a score


@pytest.mark.parametrize("seed", range(5))
def test_floor_gives_the_greatest_recall_that_holds_it(seed: int) -> None:
    scores, truth = sample(seed)
    chosen = choose_threshold("defect", scores, truth, 0.8)
    held = [c for c in scores if precision_score(truth, scores >= c) >= 0.8]
    assert chosen.precision >= 0.8
    assert chosen.recall == pytest.approx(max(recall_score(truth, scores >= c) for c in held))


def test_unreachable_floor_takes_the_most_precise_cut() -> None:
    chosen = choose_threshold("em", np.array([0.9, 0.8, 0.1]), np.array([False, True, False]), 0.9)
    assert chosen.precision == pytest.approx(0.5)


def test_all_scores_equal_is_one_cut() -> None:
    chosen = choose_threshold("em", np.full(4, 0.5), np.array([True, False, False, False]), None)
    assert (chosen.value, chosen.recall, chosen.precision) == (0.25, 1.0, 0.25)


def test_no_positive_is_an_error_that_names_the_head() -> None:
    with pytest.raises(DataError, match="head 'em'"):
        choose_threshold("em", np.array([0.2]), np.array([False]), None)


@pytest.mark.parametrize("seed", range(3))
def test_probable_truth_counts_as_that_much_of_a_positive(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores, truth = rng.random(40), rng.random(40)
    chosen = choose_threshold("em", scores, truth, None)

    def expected(cut: float) -> float:
        said = scores >= cut
        return float(2 * truth[said].sum() / (said.sum() + truth.sum()))

    assert expected(chosen.value) == pytest.approx(max(map(expected, scores)))
    assert chosen.f1 == pytest.approx(expected(chosen.value))


def test_figures_of_a_given_threshold() -> None:
    scores, truth = np.array([0.9, 0.7, 0.4]), np.array([True, False, True])
    found = at_threshold(0.5, scores, truth)
    assert (found.value, found.precision, found.recall, found.f1) == (0.5, 0.5, 0.5, 0.5)
    nothing = at_threshold(0.95, scores, truth)
    assert (nothing.precision, nothing.recall, nothing.f1) == (0.0, 0.0, 0.0)
