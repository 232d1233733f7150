"""Fitting lexical evidence (A50): what it recovers, when it is kept, against slow references."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import minimize

from csrm_tasks.errors import ArtifactError
from csrm_tasks.lexical.evidence import Evidence, save_lexicon
from csrm_tasks.lexical.features import NAMES
from csrm_tasks.lexical.terms import Lexicon
from csrm_tasks.towers.evidence import (
    MOST,
    PRODUCTS,
    Floats,
    Pairs,
    _Data,
    _folds,
    _held_out,
    _numbers,
    _regression,
    fit,
)
from csrm_tasks.towers.export import Reference

LEXICON = Lexicon.fit(["a b", "a c"], {})


def sigmoid(x: Floats) -> Floats:
    return 1 / (1 + np.exp(-x))


def drawn(n: int, seed: int, weight: float, soft: bool = True) -> Pairs:
    """Draw pairs of which the first feature says ``weight`` beside the own logits."""
    rng = np.random.default_rng(seed)
    own, features = rng.normal(size=(n, 2)), rng.random((n, len(NAMES)))
    good = sigmoid(own + weight * (features[:, :1] - 0.5))
    if not soft:
        good = (rng.random((n, 2)) < good).astype(float)
    return Pairs(own, features, good, rng.integers(0, n // 10, n))


def test_what_the_features_say_is_found_and_kept() -> None:
    learnt = {"train": drawn(3000, 0, 4.0, soft=False), "teacher": drawn(3000, 1, 4.0)}
    made = fit(LEXICON, learnt, drawn(800, 2, 4.0, soft=False), seed=0)
    assert made.evidence is not None
    assert made.evidence.weights[0] == pytest.approx([4.0, 4.0], abs=0.5)
    assert np.abs(made.evidence.weights[1:]).max() < 0.5
    assert made.evidence.own == pytest.approx([1.0, 1.0], abs=0.1)
    assert made.facts["evidence_em_kept"] and made.facts["evidence_defect_kept"]
    assert made.facts["evidence_em_dev_gain"] > 0.05


def test_features_that_say_nothing_are_left_out() -> None:
    learnt = {"train": drawn(400, 0, 0.0, soft=False)}
    made = fit(LEXICON, learnt, drawn(200, 1, 0.0, soft=False), seed=0)
    assert made.evidence is None
    assert not made.facts["evidence_em_kept"] and not made.facts["evidence_defect_kept"]


def test_what_dev_does_not_confirm_is_left_out_by_head() -> None:
    learnt, dev = drawn(2000, 0, 4.0), drawn(800, 1, 4.0)
    other = drawn(800, 2, -4.0)
    mixed = Pairs(dev.own, dev.features, dev.good.copy(), dev.query)
    mixed.good[:, 1] = sigmoid(dev.own[:, 1] - 4.0 * (dev.features[:, 0] - 0.5))
    assert fit(LEXICON, {"teacher": learnt}, other, seed=0).evidence is None
    made = fit(LEXICON, {"teacher": learnt}, mixed, seed=0)
    assert made.evidence is not None
    assert made.facts["evidence_em_kept"] and not made.facts["evidence_defect_kept"]
    own = np.random.default_rng(3).normal(size=(5, 2)).astype(np.float32)
    features = np.random.default_rng(4).random((5, len(NAMES))).astype(np.float32)
    logits = made.evidence.logits(own, features)
    np.testing.assert_array_equal(logits[:, 1], own[:, 1])  # served as without
    assert np.abs(logits[:, 0] - own[:, 0]).max() > 0.1


@pytest.mark.parametrize("n", [0, 1])
def test_nothing_to_hold_back_is_no_evidence(n: int) -> None:
    pairs = drawn(20, 0, 4.0)
    few = Pairs(pairs.own[:n], pairs.features[:n], pairs.good[:n], pairs.query[:n])
    assert fit(LEXICON, {"dev": few}, None, seed=0).evidence is None


def test_kinds_count_alike_whatever_their_size() -> None:
    many, few = drawn(4000, 0, 0.0), drawn(200, 1, 0.0)
    data = _Data.of([many, few], 0)
    assert data.weight[:4000].sum() == pytest.approx(data.weight[4000:].sum())
    assert data.weight.sum() == pytest.approx(4200)
    assert len(drawn(MOST + 10, 0, 0.0).some(0)) == MOST


def test_the_fit_minimises_the_soft_log_loss() -> None:
    data = _Data.of([drawn(300, 0, 2.0), drawn(100, 1, 2.0, soft=False)], 0)

    def loss(w: Floats) -> float:
        z = data.x @ w[1:] + w[0]
        each = np.logaddexp(0, z) - data.good * z
        return float(0.5 * w[1:] @ w[1:] + 0.1 * (data.weight * each).sum())

    best = minimize(loss, np.zeros(data.x.shape[1] + 1), method="BFGS").x
    np.testing.assert_allclose(_regression(data, 0.1), best, atol=2e-3)


def test_two_features_together_say_what_neither_does() -> None:
    def both(n: int, seed: int) -> Pairs:
        plain = drawn(n, seed, 0.0)
        together = plain.features[:, 1:2] * plain.features[:, 2:3] - 0.25
        good = sigmoid(plain.own + 6.0 * together * [1.0, 0.0])
        return Pairs(plain.own, plain.features, good, plain.query)

    made = fit(LEXICON, {"teacher": both(4000, 0)}, both(800, 1), seed=0)
    assert made.evidence is not None and made.facts["evidence_em_form"] == PRODUCTS
    assert 4 < 2 * made.evidence.products[0, 1, 2] < 7  # the penalty shares it with both sums
    assert not made.evidence.products[1].any()  # nothing to say of a defect
    dev = both(500, 2)
    said = sigmoid(made.evidence.logits(dev.own.astype(np.float32), dev.features))
    assert np.abs(said - dev.good).max() < 0.08


@pytest.mark.parametrize("shape", [(), (7,), (3, 4)])
def test_the_parts_of_products_are_the_sum_written_out(shape: tuple[int, ...]) -> None:
    rng, count = np.random.default_rng(0), len(NAMES)
    own, bias, weights = rng.normal(size=2), rng.normal(size=2), rng.normal(size=(count, 2))
    products = rng.normal(size=(2, count, count))
    products += products.transpose(0, 2, 1)
    arrays = (a.astype(np.float32) for a in (own, weights, products, bias))
    evidence = Evidence(LEXICON, *arrays)
    z, f = rng.normal(size=(*shape, 2)), rng.random((*shape, count))
    logits = evidence.logits(z.astype(np.float32), f.astype(np.float32))
    parts = evidence.parts(f.astype(np.float32))
    assert logits.shape == (*shape, 2) and parts.shape == (*shape, 2, count)
    for at in np.ndindex(*shape):
        for head in range(2):
            slow = own[head] * z[at][head] + bias[head]
            for i in range(count):
                slow += weights[i, head] * f[at][i]
                slow += sum(products[head, i, j] * f[at][i] * f[at][j] for j in range(count))
            assert logits[at][head] == pytest.approx(slow, rel=1e-4, abs=1e-3)
            said = slow - own[head] * z[at][head] - bias[head]
            assert parts[at][head].sum() == pytest.approx(said, rel=1e-4, abs=1e-3)


def test_towers_from_before_products_are_served_as_they_were(tmp_path: Path) -> None:
    weights = np.random.default_rng(0).normal(size=(len(NAMES), 2)).astype(np.float32)
    none = np.zeros((2, len(NAMES), len(NAMES)), np.float32)
    evidence = Evidence(LEXICON, np.ones(2, np.float32), weights, none, np.zeros(2, np.float32))
    save_lexicon(tmp_path, LEXICON)
    about = evidence.describe()
    del about["products"]
    found = Evidence.load(tmp_path, about | {"version": 1})
    own, features = np.ones((5, 2), np.float32), np.eye(5, len(NAMES), dtype=np.float32)
    np.testing.assert_allclose(
        found.logits(own, features), own + features @ weights, rtol=1e-6, atol=1e-6
    )
    with pytest.raises(ArtifactError, match="evidence of version 3"):
        Evidence.load(tmp_path, about | {"version": 3})


def test_a_query_is_never_fitted_on_and_held_out_at_once() -> None:
    # One query says by its own features what it is: only who has seen it can know.
    rng = np.random.default_rng(0)
    query = np.repeat(np.arange(40), 5)
    features = np.eye(40)[query][:, :14] if len(NAMES) == 14 else np.zeros((200, len(NAMES)))
    good = np.repeat(rng.integers(0, 2, 40), 5).astype(float)
    pairs = Pairs(np.zeros((200, 2)), features, np.stack([good, good], 1), query)
    assert _held_out(_Data.of([pairs], 0), 1.0) > 0.65  # a coin, as it should be


def test_a_query_that_people_and_teacher_judge_is_held_back_whole() -> None:
    one, other = drawn(300, 0, 1.0), drawn(400, 1, 1.0)
    other = replace(other, query=other.query + 7)
    fold = _folds([one, other])
    query = np.concatenate([one.query, other.query])
    assert len(fold) == 700 and len(np.unique(fold)) > 2
    assert all(len(np.unique(fold[query == q])) == 1 for q in np.unique(query))
    none = np.zeros(0, np.float32)
    rows = np.array([0, 1, 1])
    embedded = [
        Reference(texts, [], rows, rows, none, none)
        for texts in (["Red  shoe", "tea"], ["tea", "red shoe"])
    ]
    people, teacher = map(_numbers, embedded)
    assert people.tolist() == [teacher[1], teacher[0], teacher[0]]
