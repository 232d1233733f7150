"""Human labels through the confusion of who gave them (A51), each part against a slow one."""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from csrm_tasks.llm.augmented import joined, misspelt_rows, negative_rows
from csrm_tasks.llm.corrected import (
    Corrected,
    as_they_are,
    best_answers,
    corrected_loss,
    one_after_the_other,
    seen_through_raters,
)
from csrm_tasks.llm.data import corrected_targets, human_targets, load_fields, load_pairs
from csrm_tasks.llm.data import relevance_rows as rows_of
from csrm_tasks.llm.network.head import corrected_cross_entropy, soft_cross_entropy
from csrm_tasks.llm.soft_targets import one_hot
from csrm_tasks.llm.training.finetune import finetune
from csrm_tasks.llm.training.inputs import FinetuneInputs
from csrm_tasks.llm.training.learnt import class_entropy, unlearnt
from csrm_tasks.records import NEGATIVES, VOTES, write_table
from tests.llm_fixtures import SOURCE, make_base, make_given, make_market, make_snapshot, run_as

CONFUSION = np.array([[0.8, 0.15, 0.05], [0.1, 0.7, 0.2], [0.02, 0.28, 0.7]])


def drawn(seed: int, n: int, classes: int = 3) -> Corrected:
    """Rows of votes alone, of a soft label alone, and of both."""
    rng = np.random.default_rng(seed)
    share = rng.choice([0.0, 0.3, 1.0], (n, 1))
    votes, rest = (rng.dirichlet(np.full(classes, 0.5), n) for _ in range(2))
    votes = np.where(rng.random((n, 1)) < 0.5, np.eye(classes)[votes.argmax(axis=1)], votes)
    parts = (share * votes).astype(np.float32), ((1 - share) * rest).astype(np.float32)
    return Corrected(*parts)


def by_loops(logits: np.ndarray, rows: Corrected) -> float:
    total = 0.0
    for z, votes, rest in zip(
        logits.tolist(), rows.votes.tolist(), rows.rest.tolist(), strict=True
    ):
        whole = sum(math.exp(x) for x in z)
        p = [math.exp(x) / whole for x in z]
        share = sum(votes)
        if share > 0:
            total -= share * math.log(sum(a * b / share for a, b in zip(p, votes, strict=True)))
        total -= sum(b * math.log(a) for a, b in zip(p, rest, strict=True))
    return total / len(logits)


@settings(max_examples=100)
@given(st.integers(0, 2**32 - 1), st.integers(1, 12))
def test_the_loss_is_that_of_loops(seed: int, n: int) -> None:
    rows, logits = drawn(seed, n), np.random.default_rng(seed + 1).normal(size=(n, 3))
    expected = by_loops(logits, rows)
    z = torch.from_numpy(logits).float().requires_grad_()
    votes, rest = torch.from_numpy(rows.votes), torch.from_numpy(rows.rest)
    found = corrected_cross_entropy(z, votes, rest)
    assert found.item() == pytest.approx(expected, abs=1e-5)
    (gradient,) = torch.autograd.grad(found, z)
    assert bool(gradient.isfinite().all())
    p = torch.softmax(z.detach().double(), dim=-1).numpy()
    assert corrected_loss(p, rows) == pytest.approx(expected, abs=1e-5)


def test_gradients_are_those_of_differences() -> None:
    rows = drawn(3, 9)
    parts = [torch.from_numpy(x).double() for x in (rows.votes, rows.rest)]
    z = torch.randn(9, 3, generator=torch.Generator().manual_seed(0)).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: corrected_cross_entropy(x, *parts), z)


def test_raters_who_never_err_give_plain_cross_entropy() -> None:
    """C = I; with a teacher's soft labels beside, that of the mixture (A15)."""
    rng, alpha = np.random.default_rng(0), 0.3
    human = one_hot(rng.integers(0, 3, 20), 3)
    soft = rng.dirichlet(np.ones(3), 20).astype(np.float32)
    z = torch.randn(20, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
    for votes, rest in ((human, 0 * human), (alpha * human, (1 - alpha) * soft)):
        parts = torch.from_numpy(np.float32(votes)), torch.from_numpy(np.float32(rest))
        losses = corrected_cross_entropy(z, *parts), soft_cross_entropy(z, parts[0] + parts[1])
        assert float(losses[0]) == pytest.approx(float(losses[1]), abs=1e-6)
        gradients = [torch.autograd.grad(loss, z)[0] for loss in losses]
        assert torch.allclose(*gradients, atol=1e-7)


def test_what_is_learnt_of_raters_who_err_is_the_truth_and_not_what_they_say() -> None:
    truth = np.array([[0.9, 0.05, 0.05], [0.1, 0.8, 0.1], [0.2, 0.1, 0.7]])
    rng, n = np.random.default_rng(0), 60_000
    kind = rng.integers(0, 3, n)
    given_by = truth[kind] @ CONFUSION
    said = (rng.random((n, 1)) > given_by.cumsum(axis=1)).sum(axis=1)
    columns = CONFUSION[:, said].T
    votes = torch.from_numpy(columns / columns.sum(axis=1, keepdims=True)).float()
    hard = torch.from_numpy(one_hot(said, 3))
    nothing, which = torch.zeros_like(hard), torch.from_numpy(kind)

    def learnt(votes: torch.Tensor) -> np.ndarray:
        z = torch.zeros(3, 3, requires_grad=True)
        optimiser = torch.optim.LBFGS([z], max_iter=200, line_search_fn="strong_wolfe")

        def loss() -> torch.Tensor:
            optimiser.zero_grad()
            found = corrected_cross_entropy(z[which], votes, nothing)
            found.backward()
            return found

        optimiser.step(loss)  # type: ignore[no-untyped-call]
        return torch.softmax(z.detach(), dim=-1).numpy()

    assert np.abs(learnt(votes) - truth).max() < 0.03
    assert np.abs(learnt(hard) - truth @ CONFUSION).max() < 0.03
    assert np.abs(learnt(hard) - truth).max() > 0.1


@settings(max_examples=100)
@given(st.integers(0, 2**32 - 1), st.integers(1, 20), st.booleans())
def test_no_answer_is_below_the_best(seed: int, n: int, alike: bool) -> None:
    rows, rng = drawn(seed, n), np.random.default_rng(seed + 1)
    best = corrected_loss(best_answers(rows, alike), rows)
    for _ in range(20):
        other = rng.dirichlet(np.full(3, 0.5), (1 if alike else n))
        assert corrected_loss(np.broadcast_to(other, (n, 3)), rows) >= best - 1e-3


def test_the_best_constant_answer_to_sure_labels_is_their_shares() -> None:
    labels = one_hot(np.array([0, 0, 1, 2, 2, 2]), 3)
    rows = Corrected(labels, np.zeros_like(labels))
    found = corrected_loss(best_answers(rows, alike=True), rows)
    assert found == pytest.approx(class_entropy(labels.astype(np.float64)), abs=1e-9)
    assert corrected_loss(best_answers(rows, alike=False), rows) == pytest.approx(0.0, abs=1e-9)


# What comes of a snapshot's votes


def with_panel(snapshot: Path, raters: int = 3) -> None:
    """Have one rater for each train pair of the source, and a panel that has rated 300 others."""
    rng = np.random.default_rng(0)
    train = pl.read_parquet(snapshot / "pairs.parquet").filter(split="train", locale=SOURCE)
    rows = [(p, SOURCE, "one", g) for p, g in train.select("pair_id", "grade").iter_rows()]
    for i in range(300):
        said = rng.choice(3, raters, p=CONFUSION[i % 3])
        rows += [(f"other {i}", SOURCE, f"panel {r}", int(g)) for r, g in enumerate(said)]
    votes = pl.DataFrame(rows, list(VOTES), orient="row")
    write_table(votes, VOTES, snapshot / "votes.parquet")


def test_a_vote_stands_for_the_column_of_its_raters_confusion(tmp_path: Path) -> None:
    snapshot = make_snapshot(tmp_path, target_labels=True)
    with_panel(snapshot)
    pairs = load_pairs(snapshot, "train")
    found = seen_through_raters(pairs, snapshot, human_targets(pairs))
    assert found.sum(axis=1) == pytest.approx(np.ones(len(pairs)), abs=1e-6)
    own = (pairs["locale"] == SOURCE).to_numpy()
    grades = pairs["grade"].to_numpy()
    for grade in set(grades[own].tolist()):
        column = CONFUSION[:, grade] / CONFUSION[:, grade].sum()
        rows = found[own & (grades == grade)]
        assert len({row.tobytes() for row in rows}) == 1
        assert rows[0] == pytest.approx(column, abs=0.12)  # of 300 pairs
    # No pair of the target has several raters: nobody knows how its raters err.
    assert found[~own].tobytes() == human_targets(pairs)[~own].tobytes()
    soft = tmp_path / "soft"
    soft.mkdir()
    told = pairs.select("pair_id").with_columns(p0=0.2, p1=0.3, p2=0.5)
    told.write_parquet(soft / "scored.parquet")
    both = corrected_targets(pairs, snapshot, soft, 0.25)
    assert both.votes == pytest.approx(0.25 * found, abs=1e-6)
    assert both.rest == pytest.approx(np.tile([0.15, 0.225, 0.375], (len(pairs), 1)), abs=1e-6)


def test_rows_that_are_made_of_others_keep_how_these_are_learnt(tmp_path: Path) -> None:
    snapshot = make_snapshot(tmp_path)
    with_panel(snapshot)
    fields, pairs = load_fields(snapshot), load_pairs(snapshot, "train")
    learnt = corrected_targets(pairs, snapshot, None, 0.5)
    rows = replace(rows_of(fields, pairs), corrected=learnt)
    slips = misspelt_rows(fields, pairs, rows, 1.0, 0)
    names = {name: i for i, name in enumerate(rows.names)}
    at = [names[name.removeprefix("misspelt/")] for name in slips.names]
    assert at and slips.corrected is not None
    assert np.array_equal(slips.corrected.votes, learnt.votes[at])
    negatives = pairs.head(3).with_columns(kind=pl.lit("easy"), channel=pl.lit("easy"))
    none = negative_rows(
        fields, negatives.select(c for c in NEGATIVES if c in negatives.columns), 1
    )
    whole = joined(rows, none, slips).corrected
    assert whole is not None and len(whole) == len(rows) + 3 + len(slips)
    middle = whole.take(range(len(rows), len(rows) + 3))
    assert not middle.votes.any() and np.array_equal(middle.rest, none.targets)
    again = one_after_the_other([learnt, as_they_are(none.targets), slips.corrected])
    assert np.array_equal(again.rest, whole.rest)
    assert joined(rows_of(fields, pairs), none).corrected is None


def test_a_training_sees_its_labels_through_the_raters(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    market, asked = make_market(make_base(tmp_path / "base")), make_given(tmp_path)
    caplog.set_level(logging.INFO, "csrm")
    plain = run_as("plain", market, asked, tmp_path)
    blind = run_as("blind", market, asked, tmp_path, noise_correction=True)
    assert "0 of 36 train pairs have raters whose confusion is known" in caplog.text
    # Sums in another order, over a dozen steps.
    assert blind.facts["dev_log_loss"] == pytest.approx(plain.facts["dev_log_loss"], abs=1e-3)
    assert blind.facts["train_loss"] == pytest.approx(plain.facts["train_loss"], abs=1e-3)
    with_panel(asked.snapshot)
    seen = run_as("seen", market, asked, tmp_path, noise_correction=True)
    assert "36 of 36 train pairs" in caplog.text
    assert abs(seen.facts["dev_log_loss"] - plain.facts["dev_log_loss"]) > 1e-3
    assert seen.facts["target_entropy"] > 0.1  # of labels that may be wrong
    assert seen.params["noise_correction"] is True


def test_it_has_learnt_where_its_corrected_loss_is_below_any_constants(tmp_path: Path) -> None:
    """Many wrong labels: the plain loss of a model that is right would look like nothing learnt."""
    market = make_market(make_base(tmp_path / "base"), steps=60, evaluate_every=60, must_learn=True,
                         noise_correction=True)  # fmt: skip
    snapshot = make_snapshot(tmp_path / "snapshot")
    with_panel(snapshot)
    (tmp_path / "out").mkdir()
    asked = FinetuneInputs(snapshot, None, None, "stage1", 0)
    facts = finetune(market, asked, tmp_path / "out", tmp_path / "work").facts
    assert unlearnt(facts) is None
    assert facts["target_entropy"] < facts["train_loss"] < facts["class_entropy"]


def test_smoothed_and_corrected_labels_are_not_learnt_together() -> None:
    with pytest.raises(ValidationError, match="set label_smoothing to 0"):
        make_market(Path("base"), noise_correction=True, label_smoothing=0.1)
