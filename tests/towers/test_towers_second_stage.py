"""The second stage by itself: its order, what fits into a time, and what dev keeps."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from csrm_tasks.towers.cross.stack import DevPairs, fit, judge
from csrm_tasks.towers.serving.second_stage import Costs, first_logits, reordered


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from([-1.0, 0.0, 0.5, 2.0]), max_size=12), st.integers(0, 5))
def test_the_first_are_ordered_by_score_and_ties_as_they_stood(
    scores: list[float], rest: int
) -> None:
    order = [100 + i for i in range(len(scores) + rest)]
    slow = order[: len(scores)]
    for _ in slow:  # bubble sort: moves nothing past its equal
        for k in range(len(slow) - 1):
            if scores[slow[k] - 100] < scores[slow[k + 1] - 100]:
                slow[k], slow[k + 1] = slow[k + 1], slow[k]
    assert reordered(order, scores) == slow + order[len(scores) :]


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.integers(1, 40), max_size=20), st.integers(1, 10),
    st.lists(st.floats(0.0, 1.0), min_size=3, max_size=3), st.floats(-1.0, 5.0),
)  # fmt: skip
def test_as_many_fit_as_a_walk_finds(
    titles: list[int], query: int, seconds: list[float], left: float
) -> None:
    costs = Costs((10.0, 100.0, 400.0), tuple(sorted(seconds)))
    found = costs.affordable(query, titles, left)
    slow = 0
    for n in range(1, len(titles) + 1):
        if costs.of(n * (query + max(titles[:n]))) > left:
            break
        slow = n
    assert found == (slow if slow > 1 else 0)


def test_costs_are_measured_ones_between_them_and_in_proportion_beyond() -> None:
    costs = Costs((10.0, 20.0), (1.0, 3.0))
    assert [costs.of(n) for n in (1, 10, 15, 20, 40)] == [1.0, 1.0, 2.0, 3.0, 6.0]


def test_a_probability_that_was_rounded_to_1_still_has_a_logit() -> None:
    found = first_logits(np.array([0.0, 0.25, 0.5, 1.0], np.float32))
    assert np.isfinite(found).all() and found[2] == 0.0
    assert found[1] == pytest.approx(-np.log(3.0))


def dev_pairs(of_first: float, of_cross: float, queries: int = 150, seed: int = 0) -> DevPairs:
    """Eight products of each query; both stages' logits say of the grade as much as they do."""
    rng = np.random.default_rng(seed)
    query = np.repeat(np.arange(queries), 8)
    grade = rng.integers(0, 3, len(query))
    first, cross = (
        share * 2.0 * (grade == 2) - share + rng.normal(size=len(query))
        for share in (of_first, of_cross)
    )
    em = 1.0 / (1.0 + np.exp(-first))
    return DevPairs(query, grade, em, em < 0.05, first, cross)


def test_dev_keeps_a_cross_encoder_that_knows_what_the_towers_do_not() -> None:
    found = judge(dev_pairs(1.0, 1.0), top=20)
    assert found.kept
    assert found.weights.first > 0.5 and found.weights.cross > 0.5
    assert found.facts["ordered"]["difference"]["lo"] > 0
    assert found.facts["em_at_1"]["second"]["value"] > found.facts["em_at_1"]["first"]["value"]


@pytest.mark.parametrize("seed", range(4))
def test_noise_is_judged_by_queries_that_it_was_not_fitted_on(seed: int) -> None:
    """A fit on all would always gain something; folds show that it does not."""
    dev = dev_pairs(1.5, 0.0, queries=40, seed=seed)
    found = judge(dev, top=20)
    gain = found.facts["ordered"]["difference"]
    assert gain["lo"] <= 0
    assert abs(found.weights.cross) < 0.4


def test_a_cross_encoder_that_contradicts_is_left_out() -> None:
    found = judge(dev_pairs(1.0, -1.0), top=20)
    assert not found.kept and found.weights.cross == 0.0
    assert found.reason.startswith("the cross-encoder adds nothing on dev")


def test_towers_that_contradict_leave_the_order_to_the_cross_encoder() -> None:
    dev = dev_pairs(-1.0, 1.0)
    weights = fit(dev.first, dev.cross, dev.grade == 2)
    assert (weights.first, weights.cross) == (0.0, 1.0)


@pytest.mark.parametrize("top", [1, 2])
def test_of_so_short_a_top_little_changes(top: int) -> None:
    found = judge(dev_pairs(0.2, 3.0), top=top)
    gain = found.facts["em_at_1"]["difference"]["value"]
    assert gain == 0.0 if top == 1 else gain > 0.0
    assert found.kept == (top == 2)


def test_too_few_dev_pairs_keep_nothing() -> None:
    few = judge(dev_pairs(1.0, 1.0, queries=4), top=20)
    assert (few.kept, few.reason) == (False, "too few judged dev queries for 5 folds")
    dev = dev_pairs(1.0, 1.0)
    no_exact = DevPairs(
        dev.query, np.zeros_like(dev.grade), dev.em, dev.defect, dev.first, dev.cross
    )
    assert not judge(no_exact, top=20).kept
    assert "a fold's rest has none" in judge(no_exact, top=20).reason
