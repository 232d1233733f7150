"""A training that has learnt nothing: seen, recorded, and nothing scored with it."""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from csrm_tasks import tracking
from csrm_tasks.llm.soft_targets import one_hot, smoothed
from csrm_tasks.llm.training import rounds
from csrm_tasks.llm.training.finetune import finetune
from csrm_tasks.llm.training.inputs import FinetuneInputs
from csrm_tasks.llm.training.learnt import UnlearntError, class_entropy, cross_entropy, unlearnt
from csrm_tasks.settings import Settings
from tests.llm_fixtures import make_base, make_market, make_snapshot
from tests.steps.test_steps_llm import Installation

# Long enough to learn to name the more frequent grades by what is asked.
LEARNS: dict[str, Any] = {"steps": 60, "evaluate_every": 30, "must_learn": True}
NOTHING: dict[str, Any] = {"lr": 0.0, "steps": 2, "evaluate_every": 2, "must_learn": True}


@examples(max_examples=300)
@given(st.integers(0, 2**32 - 1), st.integers(1, 30), st.integers(2, 4), st.booleans())
def test_no_constant_answer_is_below_the_class_entropy(
    seed: int, n: int, classes: int, soft: bool
) -> None:
    rng = np.random.default_rng(seed)
    targets = rng.dirichlet(np.full(classes, 0.5), n)
    if not soft:
        targets = np.eye(classes)[targets.argmax(axis=1)]
    entropy = class_entropy(targets)
    shares = [sum(row[k] for row in targets) / n for k in range(classes)]
    assert entropy == pytest.approx(-sum(s * math.log(s) for s in shares if s > 0), abs=1e-9)
    best = np.tile(targets.mean(axis=0), (n, 1))
    assert cross_entropy(best, targets) == pytest.approx(entropy, abs=1e-9)
    other = np.tile(rng.dirichlet(np.ones(classes)), (n, 1))
    assert cross_entropy(other, targets) >= entropy - 1e-9
    loop = -sum(
        t * math.log(max(p, 1e-12))
        for row, own in zip(targets, other, strict=True)
        for t, p in zip(row, own, strict=True)
    )
    assert cross_entropy(other, targets) == pytest.approx(loop / n)


@pytest.mark.parametrize(
    ("loss", "entropy", "told"),
    [(0.9, 1.0, False), (1.0, 1.0, True), (1.1, 1.0, True), (math.nan, 1.0, True), (0.2, 0, False)],
)
def test_a_loss_that_is_not_below_the_entropy_is_told(
    loss: float, entropy: float, told: bool
) -> None:
    facts = {"train_loss": loss, "class_entropy": entropy, "fitted_on": "cvr", "best_step": 7}
    assert (unlearnt(facts) is not None) == told
    assert class_entropy(np.eye(3)[[1, 1, 1]]) == 0


@examples(max_examples=200)
@given(st.integers(0, 2**32 - 1), st.integers(1, 30), st.floats(0, 0.2), st.booleans())
def test_smoothed_labels_can_be_learnt_unless_all_are_the_same(
    seed: int, n: int, epsilon: float, alike: bool
) -> None:
    """What says the targets themselves has learnt all there is; what says their shares, nothing."""
    labels = np.random.default_rng(seed).integers(0, 3, n)
    labels = labels[:1].repeat(n) if alike else labels
    targets = smoothed(one_hot(labels, 3), epsilon).astype(np.float64)
    facts = {
        "class_entropy": class_entropy(targets), "target_entropy": cross_entropy(targets, targets),
        "fitted_on": "relevance", "best_step": 1,
    }  # fmt: skip
    shares = np.tile(targets.mean(axis=0), (n, 1))
    best, constant = cross_entropy(targets, targets), cross_entropy(shares, targets)
    assert unlearnt(facts | {"train_loss": best}) is None
    told = unlearnt(facts | {"train_loss": constant + 1e-9}) is not None
    assert told == (len(set(labels.tolist())) > 1)


def test_a_smoothed_training_is_judged_by_its_smoothed_targets(tmp_path: Path) -> None:
    """Only the train labels are smoothed: neither conversions nor dev."""
    market = make_market(make_base(tmp_path / "base"), **NOTHING)
    snapshot = make_snapshot(tmp_path / "snapshot")
    given = FinetuneInputs(snapshot, None, None, "stage1", 0)
    found = {}
    for name, epsilon in (("plain", 0.0), ("soft", 0.15), ("cvr", 0.15)):
        llm = market.llm.model_copy(update={"label_smoothing": epsilon})
        own = market.model_copy(update={"llm": llm})
        (tmp_path / name).mkdir()
        asked = replace(given, ranker=name == "cvr")
        found[name] = finetune(own, asked, tmp_path / name, tmp_path / f"{name}-work")
    plain, soft, cvr = (found[name].facts for name in ("plain", "soft", "cvr"))
    rest = -(0.9 * math.log(0.9) + 0.1 * math.log(0.05))
    assert plain["target_entropy"] == pytest.approx(0.0, abs=1e-9)
    assert soft["target_entropy"] == pytest.approx(rest, abs=1e-6)
    assert soft["class_entropy"] > plain["class_entropy"]
    assert cvr["target_entropy"] == pytest.approx(0.0, abs=1e-9)
    assert soft["dev_log_loss"] == plain["dev_log_loss"]  # at a rate of nought the same model
    assert soft["train_fit"] == plain["train_fit"]
    assert found["soft"].params["label_smoothing"] == 0.15


Logged = dict[str, dict[str, Any]]


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> Logged:
    found: Logged = {}
    monkeypatch.setattr(
        tracking, "log_run", lambda settings, market, ref, **more: found.setdefault(ref, more)
    )
    return found


def test_what_has_learnt_says_so(settings: Settings, tmp_path: Path, logged: Logged) -> None:
    tiny = Installation(settings, tmp_path, **LEARNS)
    found = tiny.train(rqa=tiny.rqa)
    assert found.facts["train_loss"] < found.facts["class_entropy"] < math.log(3)
    metrics = logged[found.ref]["metrics"]
    assert metrics["train_loss"] == found.facts["train_loss"]
    assert metrics["class_entropy"] == found.facts["class_entropy"]


def test_what_has_not_learnt_fails_in_a_line_and_is_recorded(
    settings: Settings, tmp_path: Path, logged: Logged, caplog: pytest.LogCaptureFixture
) -> None:
    tiny = Installation(settings, tmp_path, **NOTHING)
    with pytest.raises(UnlearntError, match=r"^plain: the relevance loss .* after 2 steps, not be"):
        tiny.train(rqa=tiny.rqa)
    (warning,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert "raise llm.lr or llm.steps" in warning and "\n" not in warning
    ((ref, run),) = logged.items()
    assert run["metrics"]["train_loss"] >= run["metrics"]["class_entropy"]
    assert tiny.store.manifest(ref) is None


def test_the_ranker_is_judged_by_conversions(
    settings: Settings, tmp_path: Path, logged: Logged
) -> None:
    tiny = Installation(settings, tmp_path, **NOTHING)
    with pytest.raises(UnlearntError, match="the cvr loss"):
        tiny.run("train_llm", {"snapshot": tiny.snapshot}, arm="plain", ranker=True)


def test_where_it_need_not_learn_it_is_told_only(
    settings: Settings, tmp_path: Path, logged: Logged, caplog: pytest.LogCaptureFixture
) -> None:
    tiny = Installation(settings, tmp_path, **NOTHING | {"must_learn": False})
    found = tiny.train(rqa=tiny.rqa)
    assert found.facts["unlearnt"] in caplog.text


def test_rounds_end_before_a_student_that_has_not_learnt(
    settings: Settings, tmp_path: Path, logged: Logged
) -> None:
    tiny = Installation(settings, tmp_path, **LEARNS)
    teacher = tiny.train(rqa=tiny.rqa)
    asked = {"snapshot": tiny.snapshot, "llm": teacher.ref, "rqa": tiny.rqa}
    soft = tiny.run("score_pairs", asked, split="train")
    tiny.market = tiny.market.model_copy(update={"llm": tiny.market.llm.model_copy(update=NOTHING)})
    student = tiny.train(rqa=tiny.rqa, soft=soft.ref)
    assert student.facts["passed_on"] == teacher.ref
    assert "nothing was learnt" in student.facts["stopped"]
    for name in ("adapter/adapter_model.safetensors", "llm.json", "dev_scores.parquet"):
        assert student.file(name).read_bytes() == teacher.file(name).read_bytes()
    again = tiny.run("score_pairs", asked | {"llm": student.ref}, split="train")
    assert again.facts["stopped"] == student.facts["stopped"]


def test_a_half_that_has_not_learnt_gives_no_soft_labels(tmp_path: Path) -> None:
    market = make_market(make_base(tmp_path / "base"), **NOTHING)
    given = FinetuneInputs(make_snapshot(tmp_path / "snapshot"), None, None, "fold", 0)
    with pytest.raises(UnlearntError, match="cross-fitting, half 0 of the queries: the relevance"):
        rounds.cross_fit(market, given, tmp_path / "work")


def test_a_week_may_start_from_the_live_adapter(
    settings: Settings, tmp_path: Path, logged: Logged
) -> None:
    """At a rate of nought a start is an end: what is trained says what the live model said."""
    tiny = Installation(settings, tmp_path, steps=8)
    live = tiny.run(
        "select_llm", {"snapshot": tiny.snapshot, "llms": [tiny.train(rqa=tiny.rqa).ref]}
    )
    tiny.market = tiny.market.model_copy(
        update={"llm": tiny.market.llm.model_copy(update=NOTHING | {"must_learn": False})}
    )
    warm = tiny.train(rqa=tiny.rqa, warm=live.ref)
    fresh = tiny.train(rqa=tiny.rqa)
    name = "adapter/adapter_model.safetensors"
    assert warm.file(name).read_bytes() == live.file(name).read_bytes()
    assert fresh.file(name).read_bytes() != live.file(name).read_bytes()
    params = logged[warm.ref]["params"]
    assert (params["warm"], params["warm_digest"]) == (live.ref, live.digest)
    assert warm.inputs["warm"] == live.ref
