"""The stack: folds as sklearn makes them, kept where dev says so, else dropped."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss as reference_loss
from sklearn.model_selection import LeaveOneGroupOut
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from csrm_tasks.evaluation.gold import Gold
from csrm_tasks.evaluation.metrics import Floats, Ints
from csrm_tasks.sections import Gate
from csrm_tasks.teacher import stack
from csrm_tasks.teacher.choose import stack_on
from csrm_tasks.teacher.evidence import LLM, logits
from csrm_tasks.teacher.judge import judge_stack, refusals
from csrm_tasks.teacher.stack import Stack, cross_fitted, fit, folds_of, held_out, unfit
from tests.teacher_fixtures import dev_of, said

STRENGTHS = (0.03, 1.0)


def world(queries: int, seed: int, words: float = 0.7) -> tuple[Gold, Floats, dict[str, Floats]]:
    """Return dev, an LLM's probabilities and features; ``words``: how often n-grams are right."""
    dev = dev_of(queries, seed=seed)
    rng = np.random.default_rng(seed)
    llm, ngrams = said(dev.grade, 0.6, rng), said(dev.grade, words, rng)
    if words < 0.4:  # they know nothing
        ngrams = rng.dirichlet([2.0, 2.0, 2.0], dev.pairs)
    alone = logits(llm)
    return dev, llm, {LLM: alone, "words": np.hstack([alone, logits(ngrams)])}


def reference(x: Floats, y: Ints, fold: Ints, c: float) -> Floats:
    """Each fold by sklearn's own pipeline, fitted on the others."""
    out = np.zeros((len(y), 3))
    for rest, held in LeaveOneGroupOut().split(x, y, fold):
        model = make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=1000))
        out[held] = model.fit(x[rest], y[rest]).predict_proba(x[held])
    return out


def reference_choice(variants: dict[str, Floats], y: Ints, fold: Ints) -> tuple[str, float]:
    losses = {
        (name, c): reference_loss(y, reference(x, y, fold, c), labels=[0, 1, 2])
        for name, x in variants.items()
        for c in STRENGTHS
    }
    return min(losses, key=lambda s: losses[s])


def test_folds_equal_sklearns_on_explicit_folds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stack, "STRENGTHS", STRENGTHS)
    dev, _, variants = world(20, 1)
    fold = folds_of(dev.frame["query_id"].to_list())
    for name, x in variants.items():
        ours = held_out(x, dev.grade, fold, 0.3)
        assert np.allclose(ours, reference(x, dev.grade, fold, 0.3), atol=1e-6), name
    expected = np.zeros((dev.pairs, 3))
    for k in range(stack.FOLDS):
        rest = fold != k
        inner = {name: x[rest] for name, x in variants.items()}
        name, c = reference_choice(inner, dev.grade[rest], fold[rest])
        model = make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=1000))
        model.fit(inner[name], dev.grade[rest])
        expected[~rest] = model.predict_proba(variants[name][~rest])
    assert np.allclose(cross_fitted(variants, dev.grade, fold), expected, atol=1e-6)


@examples(max_examples=100)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=120))
def test_a_query_is_in_one_fold_and_folds_are_even(numbers: list[int]) -> None:
    ids = [f"q{n}" for n in numbers]
    fold = folds_of(ids)
    of = dict(zip(ids, fold.tolist(), strict=True))
    assert [of[q] for q in ids] == fold.tolist()
    sizes = np.bincount(list(of.values()), minlength=stack.FOLDS)
    assert sizes.max() - sizes.min() <= 1
    assert folds_of(ids[::-1]).tolist() == fold.tolist()[::-1]


def test_a_pairs_own_label_has_no_say_in_what_is_said_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stack, "STRENGTHS", STRENGTHS)
    dev, _, variants = world(20, 2)
    fold = folds_of(dev.frame["query_id"].to_list())
    turned = np.where(fold == 3, 2 - dev.grade, dev.grade)
    one, other = (cross_fitted(variants, g, fold)[fold == 3] for g in (dev.grade, turned))
    assert np.array_equal(one, other)


def test_a_constant_feature_changes_nothing() -> None:
    dev, _, variants = world(20, 3)
    x = variants["words"]
    with_constant = np.hstack([x, np.full((len(x), 1), 7.5)])
    one = fit("", x, dev.grade, 0.3)
    other = fit("", with_constant, dev.grade, 0.3)
    assert np.allclose(one.probabilities(x), other.probabilities(with_constant), atol=1e-4)


def test_a_stack_is_read_as_it_was_written(tmp_path: Path) -> None:
    dev, _, variants = world(20, 4)
    x = variants["words"]
    made = fit("words", x, dev.grade, 0.1).cooled(0.7)
    made.write(tmp_path)
    assert Stack.read(tmp_path) == made
    p = made.probabilities(x)
    assert np.allclose(p.sum(1), 1) and (p > 0).all()
    assert np.array_equal(p.argmax(1), made.cooled(1.0).probabilities(x).argmax(1))


def test_evidence_that_helps_is_kept_and_what_was_chosen_is_told() -> None:
    dev, llm, variants = world(60, 5)
    made = stack_on(dev, llm, variants)
    assert made.stack is not None and made.stack.variant == "words"
    assert made.facts["stack"].startswith("kept: log loss -0.")
    figures = made.facts["figures"]
    assert figures["stack"]["micro_f1"] > figures["llm"]["micro_f1"] + 0.05
    assert (made.said.argmax(1) == dev.grade).mean() == figures["stack"]["micro_f1"]


def test_evidence_that_says_nothing_is_mostly_dropped_and_then_the_llm_stands(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stack, "STRENGTHS", STRENGTHS)
    kept = []
    for seed in range(12):
        dev, llm, variants = world(40, seed, words=0.0)
        made = stack_on(dev, llm, variants)
        kept.append(made.stack is not None)
        if made.stack is None:
            assert made.said is llm and made.facts["stack"].startswith("dropped: ")
    assert sum(kept) <= 3


def test_recalibration_alone_is_no_evidence(monkeypatch: pytest.MonkeyPatch) -> None:
    """An LLM that is far too sure gains log loss by any stack; noise must not be kept for that."""
    monkeypatch.setattr(stack, "STRENGTHS", STRENGTHS)
    dev, llm, variants = world(40, 0, words=0.0)
    sure = np.where(llm == llm.max(1, keepdims=True), 0.998, 0.001)
    variants = {LLM: logits(sure), "words": np.hstack([logits(sure), variants["words"][:, 3:]])}
    made = stack_on(dev, sure, variants)
    assert made.facts["log_loss"]["stack"] < made.facts["log_loss"]["llm"]
    assert made.stack is None


def test_what_cannot_be_fitted_is_said() -> None:
    dev, llm, variants = world(1, 6)
    one = stack_on(dev, llm, variants)
    assert one.stack is None and one.said is llm
    assert one.facts["stack"] == "none: 1 judged dev queries are too few for 5 folds"
    dev, llm, variants = world(30, 6)
    fold = folds_of(dev.frame["query_id"].to_list())
    no_exact = np.minimum(dev.grade, 1)
    assert unfit(no_exact, fold) == "too few dev pairs of grade 2: a fold's rest has none"
    once = no_exact.copy()
    once[0] = 2  # its own fold's rest has none
    assert unfit(once, fold) == unfit(no_exact, fold)
    assert unfit(dev.grade, fold) is None


def test_log_losses_are_those_of_sklearn_and_a_difference_that_of_their_means() -> None:
    dev, llm, _ = world(25, 7)
    other, third = (said(dev.grade, r, np.random.default_rng(8)) for r in (0.5, 0.8))
    judged = judge_stack(dev, llm, other, third)
    expected = {
        name: reference_loss(dev.grade, p, labels=[0, 1, 2])
        for name, p in (("llm", llm), ("alone", other), ("stack", third))
    }
    assert judged.facts["log_loss"] == pytest.approx(expected)
    assert judged.facts["evidence_log_loss"]["value"] == pytest.approx(
        expected["stack"] - expected["alone"]
    )
    assert judged.kept


@pytest.mark.parametrize(
    ("right", "policy", "refused"),
    [
        (0.4, Gate(not_below=("tfidf",)), ["micro_f1 is -0."]),
        (0.9, Gate(not_below=("tfidf",)), []),
        (0.7, Gate(not_below=("tfidf",)), []),  # as good, give or take: dev is not sure
        (0.4, Gate(floors={"micro_f1": 0.6}), ["micro_f1 0.4"]),
        (0.55, Gate(floors={"micro_f1": 0.57}), []),
        (0.4, Gate(floors={"em_f1": 0.9}), []),  # towers' floors
        (0.4, Gate(not_below={"tfidf": ("em_f1", "em_at_1")}), ["em_f1 is -0.", "em_at_1 is -0."]),
        (0.4, Gate(not_below=("encoder",)), []),  # on gold only
        (0.4, Gate(), []),
    ],
)
def test_a_teacher_that_is_surely_below_the_policy_is_refused(
    right: float, policy: Gate, refused: list[str]
) -> None:
    dev = dev_of(60, seed=1)
    rng = np.random.default_rng(2)
    teacher, tfidf = said(dev.grade, right, rng), said(dev.grade, 0.75, rng)
    found = [*refusals(dev, teacher, {"tfidf": tfidf}, policy)]
    assert len(found) == len(refused)
    assert all(line.startswith(start) for line, start in zip(found, refused, strict=True)), found
