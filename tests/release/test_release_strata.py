"""Audits by strata and with an LLM's help, against sums written out."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from csrm_tasks.errors import DataError
from csrm_tasks.release.online.prediction_powered import FOLDS, PRIOR, estimate
from csrm_tasks.release.online.strata import Drawn, Population, allocate, draw, strata


def population(seed: int, queries: int = 60) -> Population:
    rng = np.random.default_rng(seed)
    return Population(rng.integers(1, 200, queries), rng.integers(0, 4, queries))


def test_strata_have_about_equal_sums_of_traffic_times_size_and_one_is_of_what_cannot_differ() -> (
    None
):
    rng = np.random.default_rng(0)
    traffic, size = rng.random(2_000), rng.random(2_000) * (rng.random(2_000) < 0.7)
    found = strata(traffic, size, 3)
    assert ((found == 0) == (size == 0)).all()
    sums = np.bincount(found, traffic * size)[1:]
    assert np.abs(sums / sums.mean() - 1).max() < 0.01
    assert size[found == 1].min() >= size[found == 2].max() >= size[found == 3].max()
    assert strata(np.ones(3), np.zeros(3)).tolist() == [0, 0, 0]


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_allocation_keeps_floors_sizes_and_the_budget(data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 5))

    def column(low: float, high: float) -> np.ndarray:
        return np.array(data.draw(st.lists(st.floats(low, high), min_size=n, max_size=n)))

    shares, deviations, costs = column(0.01, 1), column(0, 1), column(1, 10)
    sizes = np.array(data.draw(st.lists(st.integers(1, 500), min_size=n, max_size=n)))
    floors = np.array(data.draw(st.lists(st.integers(0, 5), min_size=n, max_size=n)))
    number = data.draw(st.floats(50, 5_000))
    found = allocate(number, shares, deviations, sizes, costs, floors)
    least = np.minimum(floors, sizes)
    assert (found >= least).all() and (found <= sizes).all()
    assert found @ costs <= max(number, least @ costs) + 1e-6


def test_allocation_is_neymans_best() -> None:
    """No other allocation of as much has less variance: all of them are tried."""
    shares, spread = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.9, 0.4])
    sizes, costs = np.array([100, 100, 100]), np.array([1.0, 2.0, 1.0])
    found = allocate(60, shares, spread, sizes, costs, np.array([2, 2, 2]))

    def variance(n: np.ndarray) -> float:
        return float(((shares * spread) ** 2 / n).sum())

    tried = [
        np.array([a, b, 60 - a - 2 * b]) for a in range(2, 57) for b in range(2, 28)
        if 60 - a - 2 * b >= 2
    ]  # fmt: skip
    assert variance(found) <= 1.05 * min(map(variance, tried))


def test_queries_are_drawn_as_often_as_their_chance_says_and_never_twice() -> None:
    plain = population(1, 30)
    found = Population(plain.searches, plain.stratum, np.linspace(0.2, 1, 30))
    numbers = np.minimum(np.bincount(found.stratum), 4)
    rng, times = np.random.default_rng(0), np.zeros(30)
    chance = np.zeros(30)
    for _ in range(4_000):
        drawn = draw(found, numbers, rng)
        assert len(set(drawn.query.tolist())) == len(drawn.query) == numbers.sum()
        times[drawn.query] += 1
        chance[drawn.query] = drawn.chance
    assert np.abs(times / 4_000 - chance).max() < 0.04
    some = (chance < 1) & (found.stratum == 1)  # in proportion to traffic and size
    mass = (found.searches * found.size)[some]
    assert chance[some] / chance[some].sum() == pytest.approx(mass / mass.sum())
    assert times[chance >= 1].tolist() == [4_000] * int((chance >= 1).sum())


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 5_000))
def test_without_an_llm_it_is_horvitz_and_thompsons_sum(seed: int) -> None:
    found, rng = population(seed), np.random.default_rng(seed)
    drawn = draw(found, np.minimum(np.bincount(found.stratum), 6), rng)
    people = rng.choice([-1.0, 0.0, 1.0], len(drawn.query))
    total = 0.0
    for query, chance, said in zip(drawn.query, drawn.chance, people, strict=True):
        total += found.searches[query] / chance * said
    expected = total / found.searches.sum()
    for llm, power in ((None, None), (rng.random(60), 0.0)):
        assert estimate(found, drawn, people, llm, power).value == pytest.approx(expected)


def test_lambda_zero_of_one_plain_stratum_is_the_classical_mean_and_error() -> None:
    rng, n, queries = np.random.default_rng(0), 200, 100_000
    found = Population(np.ones(queries, np.int64), np.zeros(queries, np.int64))
    drawn = draw(found, np.array([n]), rng)
    people = rng.normal(size=n)
    said = estimate(found, drawn, people, rng.random(queries), power=0.0)
    assert said.value == pytest.approx(people.mean())
    assert said.error == pytest.approx(people.std(ddof=1) / n**0.5, rel=0.002)  # 1 − n/N


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 5_000), st.floats(0, 1))
def test_prediction_powered_is_the_llms_total_and_the_weighted_corrections(
    seed: int, power: float
) -> None:
    found, rng = population(seed), np.random.default_rng(seed)
    drawn = draw(found, np.minimum(np.bincount(found.stratum), 6), rng)
    llm, people = rng.random(60), rng.random(len(drawn.query))
    expected, certain = 0.0, set(drawn.query[drawn.chance >= 1].tolist())
    drawn_by_chance = {int(found.stratum[q]) for q in drawn.query} - {
        int(h) for h in np.unique(found.stratum)
        if not ((found.stratum[drawn.query] == h) & (drawn.chance < 1)).any()
    }  # fmt: skip
    for query in range(60):
        if query not in certain and int(found.stratum[query]) in drawn_by_chance:
            expected += power * found.traffic[query] * llm[query]
    for query, chance, said in zip(drawn.query, drawn.chance, people, strict=True):
        helped = power * llm[query] if chance < 1 else 0.0
        expected += found.traffic[query] / chance * (said - helped)
    assert estimate(found, drawn, people, llm, power).value == pytest.approx(expected)


def test_an_llm_that_is_right_leaves_nothing_to_chance_and_one_that_is_not_costs_little() -> None:
    rng, queries = np.random.default_rng(0), 5_000
    found = Population(rng.integers(1, 50, queries), np.zeros(queries, np.int64))
    people = rng.choice([-1.0, 0.0, 1.0], queries)
    drawn = draw(found, np.array([400]), rng)
    plain, right, useless = (
        estimate(found, drawn, people[drawn.query], llm)
        for llm in (None, people, rng.normal(size=queries))
    )
    assert right.power > 0.95 and right.error < 0.25 * plain.error
    assert useless.power < 0.2 and useless.error < 1.03 * plain.error
    assert estimate(found, drawn, people[drawn.query], -people).power == 0.0


def test_a_stratum_with_one_query_has_the_others_variance_and_one_each_is_refused() -> None:
    found = Population(np.ones(1_000, np.int64), (np.arange(1_000) >= 500).astype(np.int64))
    people = np.array([*np.random.default_rng(0).normal(size=20), 0.0])
    some = Drawn(np.array([*range(20), 700]), np.array([*[20 / 500] * 20, 1 / 500]))
    first = people[:20].var(ddof=1)  # of a query; half of the traffic is each stratum's
    expected = 0.25 * first * ((1 - 20 / 500) / 20 + (1 - 1 / 500))
    said = estimate(found, some, people)
    expected += (0.5 * float(np.mean(people[:20] ** 2)) - said.value**2) / 1_000  # to come
    assert said.error**2 == pytest.approx(expected)
    one = Drawn(np.array([1, 700]), np.array([1 / 500, 1 / 500]))
    with pytest.raises(DataError, match="needs two"):
        estimate(found, one, np.zeros(2))
    every = Drawn(np.arange(1_000), np.ones(1_000))
    whole = estimate(found, every, np.ones(1_000))
    assert (whole.value, whole.error) == (pytest.approx(1.0), 0.0)


def test_lambda_of_a_fold_is_that_of_the_others() -> None:
    """What one fold holds does not move the λ that is used on it."""
    found = Population(np.ones(1_000, np.int64), np.zeros(1_000, np.int64))
    drawn = Drawn(np.arange(50), np.full(50, 0.05))
    rng = np.random.default_rng(0)
    llm = rng.random(1_000)
    people = llm[:50] + rng.normal(0, 0.3, 50)
    first = np.arange(50) % FOLDS == 0

    def value(answers: np.ndarray) -> float:
        return estimate(found, drawn, answers, llm).value

    out = ~first
    cov = np.cov(people[out], llm[:50][out], ddof=1)
    lam = np.clip(cov[0, 1] / cov[1, 1], 0, 1)
    powers = [
        np.clip(np.cov(people[o], llm[:50][o])[0, 1] / llm[:50][o].var(ddof=1), 0, 1)
        for o in (np.arange(50) % FOLDS != k for k in range(FOLDS))
    ]
    assert powers[0] == pytest.approx(lam)
    expected = np.mean([
        p * llm.mean() + (people - p * llm[:50])[np.arange(50) % FOLDS == k].mean()
        for k, p in enumerate(powers)
    ])  # fmt: skip
    assert value(people) == pytest.approx(expected)


def test_an_interval_is_the_error_and_one_difference_more_and_three_where_none_was_seen() -> None:
    found = Population(np.ones(1_000, np.int64), np.zeros(1_000, np.int64))
    drawn = Drawn(np.arange(50), np.full(50, 0.05))
    none = estimate(found, drawn, np.zeros(50))
    assert (none.value, none.lo, none.hi) == (0, -3 / 50, 3 / 50)
    some = estimate(found, drawn, np.array([1.0, -1.0, *np.zeros(48)]))
    student = stats.t.ppf(0.975, 49)
    assert some.hi == pytest.approx(student * some.error + 1 / 50)


def test_what_is_expected_of_strata_says_in_which_proportion_they_vary() -> None:
    """A stratum in which nothing was seen has what was expected of it, scaled as the others."""
    stratum = np.repeat([0, 1], 5_000)
    found = Population(np.ones(10_000, np.int64), stratum)
    drawn = Drawn(np.array([*range(20), *range(5_000, 5_020)]), np.full(40, 20 / 5_000))
    people = np.array([*([1.0, -1.0] * 10), *np.zeros(20)])
    chance = np.where(stratum == 0, 0.5, 0.01)
    own, every = 20 / 19 * 20, 19 * 20 * 0.5 + 19 * 20 * 0.01  # of a query, both in weights²
    scale = 19 * own / every
    left = 1 - 20 / 5_000
    first = (19 * own + PRIOR * scale * 20 * 0.5) / (19 + PRIOR)
    other = PRIOR * scale * 20 * 0.01 / (19 + PRIOR)
    expected = (first + other) * left / 40**2
    spread = (20 / 40) / 10_000
    said = estimate(found, drawn, people, chance=chance)
    assert said.error**2 == pytest.approx(expected + spread)
