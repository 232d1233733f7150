"""Bootstrap by query: the fast path equals resampling rows; intervals cover; pairing matters."""

from __future__ import annotations

import numpy as np
import pytest

from csrm_tasks.evaluation import paired
from csrm_tasks.evaluation.metrics import confusion_by_query, macro_f1, micro_f1
from tests.evaluation_fixtures import noisy_grades


def judged(queries: int = 60, right: float = 0.7, seed: int = 0):
    rng = np.random.default_rng(seed)
    query = np.repeat(np.arange(queries), 8)
    truth = np.random.default_rng(1).integers(0, 3, len(query))
    said = noisy_grades(truth, right, rng)
    return truth, said, query, confusion_by_query(truth, said, query, queries, 3)


def test_a_resample_is_the_metric_of_the_repeated_queries() -> None:
    truth, said, query, table = judged()
    weights = paired.resample(60, 5)
    _, draws = paired.distribution(table, macro_f1, weights)
    for row, draw in zip(weights, draws, strict=True):
        picked = np.concatenate(
            [np.tile(np.flatnonzero(query == q), int(n)) for q, n in enumerate(row)]
        )
        again = confusion_by_query(truth[picked], said[picked], np.zeros_like(picked), 1, 3)[0]
        assert draw == pytest.approx(float(macro_f1(again)))


def test_resamples_keep_the_number_of_queries_and_repeat_exactly() -> None:
    weights = paired.resample(30, 100, seed=4)
    assert (weights.sum(1) == 30).all()
    assert np.array_equal(weights, paired.resample(30, 100, seed=4))


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    inside = 0
    for seed in range(200):
        *_, table = judged(right=0.7, seed=seed)
        found = paired.interval(table, micro_f1, paired.resample(60, 400, seed))
        inside += found.lo <= 0.7 <= found.hi
    assert 0.88 <= inside / 200 <= 0.99


def test_a_model_differs_from_itself_by_exactly_nothing() -> None:
    *_, table = judged()
    diff = paired.difference(table, table, micro_f1, paired.resample(60))
    assert (diff.value, diff.lo, diff.hi) == (0.0, 0.0, 0.0)
    assert paired.verdict(diff) == "not decided"


def test_differences_are_antisymmetric_and_decided_when_clear() -> None:
    *_, good = judged(right=0.9, seed=1)
    *_, bad = judged(right=0.6, seed=2)
    weights = paired.resample(60)
    one = paired.difference(good, bad, micro_f1, weights)
    other = paired.difference(bad, good, micro_f1, weights)
    assert one.value == -other.value and one.lo == pytest.approx(-other.hi)
    assert (paired.verdict(one), paired.verdict(other)) == ("better", "worse")


def test_pairing_narrows_the_interval_of_models_that_fail_alike() -> None:
    truth, said, query, table = judged(right=0.6)
    better = said.copy()
    better[::20] = truth[::20]
    close = confusion_by_query(truth, better, query, 60, 3)
    weights = paired.resample(60)
    diff = paired.difference(close, table, micro_f1, weights)
    alone = paired.interval(close, micro_f1, weights)
    assert diff.hi - diff.lo < (alone.hi - alone.lo) / 2


def test_no_queries_is_undefined_and_null_in_json() -> None:
    found = paired.interval(np.zeros((0, 3, 3)), micro_f1, paired.resample(0))
    assert found.as_json() == {"value": None, "lo": None, "hi": None}
    assert paired.verdict(found) == "not decided"


def test_holm_is_the_step_down_told_in_a_loop() -> None:
    rng = np.random.default_rng(3)
    for m in (1, 2, 7):
        p = rng.random(m) ** 3
        for alpha in (0.01, 0.05, 0.2):
            rejected, left = set(), dict(enumerate(p))
            while left:  # the smallest of those left, at alpha over how many are left
                i = min(left, key=lambda k: left[k])
                if left[i] > alpha / len(left):
                    break
                rejected.add(i)
                del left[i]
            assert {i for i, a in enumerate(paired.holm(p)) if a <= alpha} == rejected
    assert paired.holm([]) == []
