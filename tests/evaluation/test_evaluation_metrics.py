"""Metrics against scikit-learn or an obvious loop; limit cases are undefined, not zero."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics as sk

from csrm_tasks.evaluation import metrics
from csrm_tasks.evaluation.metrics import confusion_by_query

RNG = np.random.default_rng(7)
TRUTH = RNG.integers(0, 3, 500)
SAID = np.where(RNG.random(500) < 0.6, TRUTH, RNG.integers(0, 3, 500))
QUERY = RNG.integers(0, 40, 500)
TABLE = confusion_by_query(TRUTH, SAID, QUERY, 40, 3)
WHOLE = TABLE.sum(0)


def test_confusion_by_query_counts_as_a_loop_does() -> None:
    slow = np.zeros((40, 3, 3))
    for t, s, q in zip(TRUTH, SAID, QUERY, strict=True):
        slow[q, t, s] += 1
    assert np.array_equal(TABLE, slow)
    assert np.array_equal(WHOLE, sk.confusion_matrix(TRUTH, SAID))


def test_micro_f1_is_accuracy() -> None:  # A42
    assert metrics.micro_f1(WHOLE) == pytest.approx(sk.f1_score(TRUTH, SAID, average="micro"))
    assert metrics.micro_f1(WHOLE) == pytest.approx(sk.accuracy_score(TRUTH, SAID))
    assert metrics.micro_f1(TABLE) == pytest.approx(metrics.accuracy(TABLE))


def test_macro_and_class_f1_and_kappa_equal_sklearn() -> None:
    assert metrics.macro_f1(WHOLE) == pytest.approx(sk.f1_score(TRUTH, SAID, average="macro"))
    assert metrics.class_f1(WHOLE) == pytest.approx(sk.f1_score(TRUTH, SAID, average=None))
    kappa = sk.cohen_kappa_score(TRUTH, SAID, weights="quadratic")
    assert metrics.quadratic_kappa(WHOLE) == pytest.approx(kappa)


def test_binary_figures_equal_sklearn() -> None:
    truth, said = TRUTH == 2, SAID == 2
    table = confusion_by_query(truth.astype(int), said.astype(int), QUERY, 40, 2).sum(0)
    assert metrics.positive_f1(table) == pytest.approx(sk.f1_score(truth, said))
    assert metrics.accuracy(table) == pytest.approx(sk.accuracy_score(truth, said))


def test_a_stack_of_tables_is_worked_on_as_each_alone() -> None:
    for metric in (metrics.micro_f1, metrics.macro_f1, metrics.quadratic_kappa):
        each = [float(metric(t)) for t in TABLE]
        assert np.allclose(metric(TABLE), each, equal_nan=True)


def test_nothing_judged_is_undefined() -> None:
    empty = np.zeros((3, 3))
    for metric in (metrics.micro_f1, metrics.accuracy, metrics.macro_f1, metrics.quadratic_kappa):
        assert np.isnan(metric(empty))
    nothing_to_find = np.array([[[5.0, 0.0], [0.0, 0.0]], [[4.0, 1.0], [0.0, 0.0]]])
    assert np.isnan(metrics.positive_f1(nothing_to_find)).all()
    assert metrics.positive_f1(np.array([[5.0, 0.0], [1.0, 0.0]])) == 0.0


def test_ece_equals_a_loop() -> None:
    p = RNG.dirichlet([1, 1, 1], 500)
    confidence, hit = p.max(1), p.argmax(1) == TRUTH
    slow = 0.0
    for b in range(15):
        inside = (confidence > b / 15) & (confidence <= (b + 1) / 15)
        if inside.any():
            slow += inside.sum() / 500 * abs(confidence[inside].mean() - hit[inside].mean())
    bins = metrics.calibration_by_query(p, TRUTH, QUERY, 40)
    assert metrics.ece(bins.sum(0)) == pytest.approx(slow)


def test_a_certain_and_right_model_has_no_calibration_error() -> None:
    p = np.eye(3)[TRUTH]
    assert metrics.ece(metrics.calibration_by_query(p, TRUTH, QUERY, 40).sum(0)) == 0.0


def test_em_at_1_and_defect_at_5_equal_a_loop() -> None:  # A43
    score = RNG.random(500)
    em, defect = metrics.top_hits(QUERY, score, TRUTH, 42)
    for q in range(42):
        rows = sorted(np.flatnonzero(q == QUERY), key=lambda i: -score[i])
        grades = [TRUTH[i] for i in rows]
        assert em[q] == (grades[0] == 2 if grades else 0)
        assert defect[q] == (0 in grades[:5] if grades else 1)
    assert em[41] == 0 and defect[41] == 1  # no results: fails both
