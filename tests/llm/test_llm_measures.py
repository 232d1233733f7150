"""Mixed targets, ECE and the transfer gap, each against a loop (A15, A30, A44)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from csrm_tasks.errors import DataError
from csrm_tasks.llm.data import distilled_targets, human_targets
from csrm_tasks.llm.network.head import soft_cross_entropy
from csrm_tasks.llm.scoring.calibration import expected_calibration_error
from csrm_tasks.llm.scoring.gap import (
    median_gap,
    pair_gaps,
    symmetric_gap,
    transfer_gap,
    translation_accuracy,
)
from csrm_tasks.llm.soft_targets import mixed_target, one_hot

RNG = np.random.default_rng(0)


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def test_one_cross_entropy_on_the_mixture_is_the_weighted_sum_of_two() -> None:
    human = one_hot(RNG.integers(0, 3, 20), 3)
    teacher = softmax(RNG.normal(size=(20, 3))).astype(np.float32)
    logits = torch.randn(20, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
    alpha = 0.3
    both = alpha * soft_cross_entropy(logits, torch.from_numpy(human)) + (
        1 - alpha
    ) * soft_cross_entropy(logits, torch.from_numpy(teacher))
    one = soft_cross_entropy(logits, torch.from_numpy(mixed_target(human, teacher, alpha)))
    assert (both - one).abs().item() < 1e-6
    (g_both,), (g_one,) = torch.autograd.grad(both, logits), torch.autograd.grad(one, logits)
    assert (g_both - g_one).abs().max() < 1e-7


def test_mixed_target_at_its_limits() -> None:
    human, teacher = one_hot(np.array([2]), 3), np.array([[0.2, 0.3, 0.5]], np.float32)
    assert np.array_equal(mixed_target(human, teacher, 1.0), human)
    assert np.array_equal(mixed_target(human, teacher, 0.0), teacher)
    assert mixed_target(human, teacher, 0.5).tolist() == [pytest.approx([0.1, 0.15, 0.75])]


def test_only_human_labels_are_smoothed_and_before_they_are_mixed(tmp_path: Path) -> None:
    pairs = pl.DataFrame({"pair_id": ["b", "a"], "grade": [2, 0]})
    plain = human_targets(pairs)
    assert plain.tobytes() == one_hot(np.array([2, 0]), 3).tobytes()  # to the last bit
    human = human_targets(pairs, 0.15)
    assert human == pytest.approx(np.array([[0.05, 0.05, 0.9], [0.9, 0.05, 0.05]]))
    teacher = np.array([[0.1, 0.2, 0.7], [0.5, 0.5, 0.0]])
    columns = {f"p{k}": teacher[:, k] for k in range(3)}
    pl.DataFrame({"pair_id": ["b", "a"]} | columns).write_parquet(tmp_path / "scored.parquet")
    found = distilled_targets(pairs, tmp_path, 0.4, 0.15)
    assert found == pytest.approx(0.4 * human + 0.6 * teacher, abs=1e-6)
    assert distilled_targets(pairs, tmp_path, 0.0, 0.15) == pytest.approx(teacher)
    assert found.sum(axis=1) == pytest.approx([1.0, 1.0])


def test_soft_labels_are_joined_by_pair_and_none_may_be_missing(tmp_path: Path) -> None:
    pairs = pl.DataFrame({"pair_id": ["b", "a"], "grade": [2, 0]})
    scored = pl.DataFrame(
        {"pair_id": ["a", "x", "b"], "p0": [0.5, 0, 0.1], "p1": [0.5, 0, 0.1], "p2": [0, 1, 0.8]},
        strict=False,
    )
    scored.write_parquet(tmp_path / "scored.parquet")
    found = distilled_targets(pairs, tmp_path, 0.5)
    assert found == pytest.approx(np.array([[0.05, 0.05, 0.9], [0.75, 0.25, 0.0]]))
    scored.filter(pl.col("pair_id") != "a").write_parquet(tmp_path / "scored.parquet")
    with pytest.raises(DataError, match=r"1 of 2 train pairs have none, first 'a'"):
        distilled_targets(pairs, tmp_path, 0.5)


def test_ece_is_the_weighted_distance_of_confidence_and_accuracy() -> None:
    p = softmax(RNG.normal(size=(500, 3)) * 2)
    labels = RNG.integers(0, 3, 500)
    expected = 0.0
    for low in np.arange(15) / 15:
        inside = [i for i in range(500) if low < p[i].max() <= low + 1 / 15]
        if inside:
            accuracy = np.mean([p[i].argmax() == labels[i] for i in inside])
            confidence = np.mean([p[i].max() for i in inside])
            expected += len(inside) / 500 * abs(accuracy - confidence)
    assert expected_calibration_error(p, labels) == pytest.approx(expected, abs=1e-9)
    assert expected_calibration_error(np.array([[1.0, 0.0]]), np.array([0])) == 0.0


def test_transfer_gap_is_equation_six() -> None:
    source, target = RNG.normal(size=(7, 5)), RNG.normal(size=(7, 5)) + 3
    center = sum(target) / 7
    expected = [
        np.sqrt(((target[i] - source[i]) ** 2).sum()) / np.sqrt(((target[i] - center) ** 2).sum())
        for i in range(7)
    ]
    assert pair_gaps(source, target) == pytest.approx(expected)
    assert transfer_gap(source, target) == pytest.approx(np.mean(expected))
    assert median_gap(source, target) == pytest.approx(sorted(expected)[3])
    both = transfer_gap(source, target) / 2 + transfer_gap(target, source) / 2
    assert symmetric_gap(source, target) == symmetric_gap(target, source) == pytest.approx(both)
    assert transfer_gap(target, target) == 0.0
    assert transfer_gap(source * 7, target * 7) == pytest.approx(np.mean(expected))  # no unit


def test_transfer_gap_without_spread_is_refused() -> None:
    with pytest.raises(DataError, match="at least two pairs"):
        transfer_gap(np.ones((3, 2)), np.ones((3, 2)))
    with pytest.raises(DataError, match="shapes"):
        transfer_gap(np.ones((3, 2)), np.ones((2, 2)))


def test_translation_accuracy_is_the_share_of_own_nearest_neighbours() -> None:
    source, target = RNG.normal(size=(30, 4)), RNG.normal(size=(30, 4))
    hits = 0
    for i in range(30):
        hits += np.argmin([((source[i] - t) ** 2).sum() for t in target]) == i
        hits += np.argmin([((s - target[i]) ** 2).sum() for s in source]) == i
    assert translation_accuracy(source, target) == pytest.approx(hits / 60)
    assert translation_accuracy(source, source + 1e-3) == 1.0
