"""A consensus is a function of what was said: no order of rows, no name of a rater decides it."""

from __future__ import annotations

import math
import random
from datetime import UTC, datetime

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from csrm_tasks.dataset.consensus import PAIR, Method, consensus
from csrm_tasks.dataset.dawid_skene import GRADES, SHRINK, SMOOTH, fit, fit_votes

AT = datetime(2026, 1, 1, tzinfo=UTC)
Said = list[tuple[int, int, int]]  # pair, rater (0 is nameless), grade
said = st.lists(
    st.tuples(st.integers(0, 5), st.integers(0, 4), st.integers(0, 2)),
    min_size=1, max_size=30, unique_by=lambda row: row[:2] if row[1] else object(),
)  # fmt: skip
METHODS = pytest.mark.parametrize("method", ["majority", "dawid_skene"])


def ratings(rows: Said, names: list[str]) -> pl.DataFrame:
    """Ratings in the order of ``rows``, delivered in that order too."""
    made = [
        ("zh-TW", f"p{p}", f"p{p}", g, names[r] if r else "", AT, f"l{i:03d}")
        for i, (p, r, g) in enumerate(rows)
    ]
    columns = [*PAIR, "grade", "rater_id", "rated_at", "label_id"]
    return pl.DataFrame(made, schema=columns, orient="row")


@METHODS
@settings(max_examples=400)
@given(rows=said, seed=st.integers(0, 999))
def test_neither_the_order_of_rows_nor_raters_names_matter(
    method: Method, rows: Said, seed: int
) -> None:
    found = consensus(ratings(rows, ["", "a", "b", "c", "d"]), method)
    names = ["#1", "#0", "9", "10", "a"]
    shuffled = list(rows)
    random.Random(seed).shuffle(names)
    random.Random(seed).shuffle(shuffled)
    assert consensus(ratings(shuffled, ["", *names[1:]]), method).equals(found)


@METHODS
@settings(max_examples=200)
@given(rows=said)
def test_a_grade_is_one_that_somebody_gave_and_the_counts_are_true(
    method: Method, rows: Said
) -> None:
    found = consensus(ratings(rows, ["", "a", "b", "c", "d"]), method)
    assert found["query_id"].to_list() == sorted({f"p{p}" for p, _, _ in rows})
    for pair, grade, raters, agree in found.select("query_id", "grade", "raters", "agree").rows():
        given_here = [g for p, _, g in rows if f"p{p}" == pair]
        assert (raters, agree) == (len(given_here), given_here.count(grade)) and agree > 0


@METHODS
def test_ties_go_by_the_stated_rule_and_are_told(method: Method) -> None:
    """Two strangers contradict each other on every pair: nothing speaks for either."""
    rows = [(0, 1, 0), (0, 2, 2), (1, 1, 2), (1, 2, 0), (2, 1, 1), (2, 2, 1)]
    found = consensus(ratings(rows, ["", "a", "b"]), method)
    assert found.select("grade", "agree", "tied").rows() == [
        (0, 1, True), (0, 1, True), (1, 2, False),
    ]  # fmt: skip
    middle = [(0, r, g) for r, g in enumerate((0, 0, 1, 1, 2), start=1)]
    found = consensus(ratings(middle, ["", *"abcde"]), "majority")
    assert found.select("grade", "agree", "tied").rows() == [(1, 2, True)]  # the mean is .8


def slow_model(rows: Said, sweeps: int = 100) -> tuple[np.ndarray, np.ndarray]:
    """Dawid and Skene's EM, vote by vote, in floats; posteriors (N, K) and confusions (R, K, K)."""
    items, raters = max(r[0] for r in rows) + 1, max(r[1] for r in rows) + 1
    t = np.zeros((items, GRADES))
    for i, _, g in rows:
        t[i, g] += 1 / sum(1 for row in rows if row[0] == i)
    for _ in range(sweeps):
        counts = np.zeros((raters, GRADES, GRADES))
        for i, r, g in rows:
            for k in range(GRADES):
                counts[r, k, g] += t[i, k]
        mean = counts.sum(0) + SMOOTH
        mean /= mean.sum(1, keepdims=True)
        confusion = counts + SHRINK * mean
        confusion /= confusion.sum(2, keepdims=True)
        prior = t.mean(0)
        for i in range(items):
            for k in range(GRADES):
                t[i, k] = prior[k] * math.prod(confusion[r, k, g] for j, r, g in rows if j == i)
            t[i] /= t[i].sum()
    return t, confusion


def test_the_model_is_that_of_the_slow_way_and_finds_the_raters_confusions() -> None:
    rng = np.random.default_rng(0)
    truth = rng.choice(GRADES, 400, p=[0.3, 0.3, 0.4])
    errors = [0.05, 0.15, 0.3, 0.5]
    real = [np.eye(GRADES) * (1 - e) + (1 - np.eye(GRADES)) * e / 2 for e in errors]
    rows = [
        (i, r, int(rng.choice(GRADES, p=real[r][g])))
        for i, g in enumerate(truth) for r in range(len(real))
    ]  # fmt: skip
    item, rater, grade = (np.array(c, dtype=np.int64) for c in zip(*rows, strict=True))
    found = fit(item, rater, grade)
    posterior, confusion = slow_model(rows, 40)
    assert np.abs(found.posterior - posterior).max() < 1e-3
    assert np.abs(found.confusion - confusion).max() < 1e-3
    assert np.abs(found.confusion - np.stack(real)).max() < 0.12
    assert (found.posterior.argmax(1) == truth).mean() > 0.9


def test_a_rater_of_few_votes_is_taken_for_one_like_the_others() -> None:
    rng = np.random.default_rng(1)
    truth = rng.integers(0, GRADES, 300)
    rows = [
        (f"i{i:03d}", f"r{r}", int(g if rng.random() > 0.2 else (g + 1) % 3))
        for i, g in enumerate(truth) for r in range(3)
    ]  # fmt: skip
    rows += [("i000", "new", int(truth[0])), ("i001", "new", int(truth[1]))]
    frame = pl.DataFrame(rows, schema=["pair_id", "rater", "grade"], orient="row")
    found = fit_votes(frame, ["pair_id"])
    new, stranger = found.confusion_of(pl.Series(["new", "nobody"]))
    assert np.abs(new - found.model.mean).max() < 0.05
    assert np.array_equal(stranger, found.model.mean)
    assert np.allclose(new.sum(1), 1.0)
