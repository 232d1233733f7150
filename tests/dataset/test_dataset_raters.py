"""Several raters: Dawid-Skene where skill differs, Krippendorff's alpha, confusions by rater."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import combinations, permutations
from typing import Any

import numpy as np
import polars as pl
import pytest

from csrm_tasks.dataset.consensus import PAIR, consensus
from csrm_tasks.dataset.raters import ordinal_alpha, rater_report

AT = datetime(2026, 1, 1, tzinfo=UTC)
# Krippendorff (2011), "Computing Krippendorff's Alpha-Reliability", example C; 0 is no answer
TEXTBOOK = [
    [1, 2, 3, 3, 2, 1, 4, 1, 2, 0, 0, 0],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, 0, 3],
    [0, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, 0],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, 0],
]


def ratings(said: list[tuple[str, str, int]], locale: str = "zh-TW") -> pl.DataFrame:
    """Rows of (pair, rater, grade)."""
    rows = [(locale, p, p, g, rater, AT, f"l{i:06d}") for i, (p, rater, g) in enumerate(said)]
    names = [*PAIR, "grade", "rater_id", "rated_at", "label_id"]
    return pl.DataFrame(rows, schema=names, orient="row")


def simulated(
    rng: np.random.Generator, errors: list[float], pairs: int
) -> tuple[dict[str, int], pl.DataFrame]:
    """Every rater grades every pair and errs at their own rate, by one grade as a rule."""
    truth = {f"p{i:04d}": int(g) for i, g in enumerate(rng.choice(3, pairs, p=[0.3, 0.3, 0.4]))}
    said = []
    for r, error in enumerate(errors):
        for pair, g in truth.items():
            other = [x for x in (0, 1, 2) if x != g]
            near = [0.8 if abs(x - g) == 1 else 0.2 for x in other]
            wrong = rng.choice(other, p=np.array(near) / sum(near))
            said.append((pair, f"r{r}", int(wrong) if rng.random() < error else g))
    return truth, ratings(said)


def right(made: pl.DataFrame, truth: dict[str, int]) -> float:
    return float(np.mean([truth[p] == g for p, g in made.select("query_id", "grade").iter_rows()]))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_dawid_skene_beats_majority_where_skill_differs(seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth, said = simulated(rng, [0.05, 0.1, 0.55, 0.6, 0.6], 300)
    plain, fitted = consensus(said), consensus(said, "dawid_skene")
    assert right(fitted, truth) > right(plain, truth) + 0.05
    assert right(fitted, truth) > 0.9
    assert fitted.schema == plain.schema
    assert fitted.select(PAIR).equals(plain.select(PAIR))


def test_dawid_skene_changes_little_where_raters_are_alike_and_row_order_nothing() -> None:
    truth, said = simulated(np.random.default_rng(0), [0.1] * 5, 200)
    plain, fitted = consensus(said), consensus(said, "dawid_skene")
    assert abs(right(fitted, truth) - right(plain, truth)) < 0.03
    assert consensus(said.sample(fraction=1, shuffle=True, seed=1), "dawid_skene").equals(fitted)
    agree = said.join(fitted, on=PAIR, suffix="_found").filter(
        pl.col("grade") == pl.col("grade_found")
    )
    counted = dict(agree.group_by("query_id").len().iter_rows())
    assert all(counted.get(q, 0) == n for q, n in fitted.select("query_id", "agree").iter_rows())


def test_dawid_skene_leaves_a_single_word_alone_and_pools_nameless_raters() -> None:
    _, said = simulated(np.random.default_rng(0), [0.05, 0.1, 0.6], 100)
    alone = ratings([("alone", "r2", 1)]).with_columns(pl.lit("zz").alias("label_id"))
    made = consensus(pl.concat([said, alone]), "dawid_skene")
    assert made.filter(query_id="alone").select("grade", "raters", "agree").rows() == [(1, 1, 1)]
    nameless = ratings([("p", "", 2), ("p", "", 2), ("p", "", 0), ("q", "", 0), ("q", "", 0)])
    grades = consensus(nameless, "dawid_skene").select("query_id", "grade", "raters").rows()
    assert grades == [("p", 2, 3), ("q", 0, 2)]
    assert consensus(alone, "dawid_skene").equals(consensus(alone))
    assert consensus(alone.clear(), "dawid_skene").is_empty()


def test_locales_do_not_mix() -> None:
    _, said = simulated(np.random.default_rng(3), [0.05, 0.5, 0.5, 0.5], 150)
    other = said.with_columns(pl.lit("ko-KR").alias("locale"), (2 - pl.col("grade")).alias("grade"))
    both = consensus(pl.concat([said, other]), "dawid_skene")
    assert both.filter(locale="zh-TW").equals(consensus(said, "dawid_skene"))


def slow_alpha(counts: np.ndarray) -> float:
    """Observed over expected disagreement, pair of values by pair of values."""
    units = [[v for v, n in enumerate(unit) for _ in range(n)] for unit in counts]
    units = [u for u in units if len(u) > 1]
    n = np.bincount([v for u in units for v in u], minlength=counts.shape[1])

    def far(a: int, b: int) -> float:
        low, high = sorted((a, b))
        return float((n[low : high + 1].sum() - (n[a] + n[b]) / 2) ** 2)

    observed = sum(far(a, b) / (len(u) - 1) for u in units for a, b in permutations(u, 2))
    values = [v for u in units for v in u]
    expected = 2 * sum(far(a, b) for a, b in combinations(values, 2)) / (len(values) - 1)
    return 1 - observed / expected


def test_alpha_of_the_textbook_and_of_the_slow_way() -> None:
    data = np.array(TEXTBOOK)
    counts = np.stack([(data == v).sum(axis=0) for v in range(1, 6)], axis=1)
    assert ordinal_alpha(counts) == pytest.approx(0.815, abs=5e-4)
    assert ordinal_alpha(counts) == pytest.approx(slow_alpha(counts), abs=1e-9)
    rng = np.random.default_rng(0)
    for _ in range(5):
        some = rng.integers(0, 4, (30, 3))
        assert ordinal_alpha(some) == pytest.approx(slow_alpha(some), abs=1e-9)


@pytest.mark.parametrize("counts", [[[1, 0, 0], [0, 1, 0]], [[3, 0, 0], [2, 0, 0]], []])
def test_alpha_is_undefined_without_two_ratings_or_two_values(counts: list[Any]) -> None:
    assert ordinal_alpha(np.array(counts, dtype=np.int64).reshape(-1, 3)) is None


def test_each_rater_against_the_consensus() -> None:
    said = ratings([
        ("a", "x", 2), ("a", "y", 2), ("a", "z", 0), ("b", "x", 1), ("b", "y", 1), ("b", "z", 1),
        ("c", "x", 0), ("c", "y", 2),  # two who differ: counted in alpha, not against anybody
        ("d", "z", 2),  # one
        ("e", "", 0), ("e", "", 0), ("e", "x", 0),
    ])  # fmt: skip
    found = rater_report(said, consensus(said))["zh-TW"]
    assert (found["pairs"], found["ratings"], found["ties"]) == (4, 11, 1)
    counts = np.array([[1, 0, 2], [0, 3, 0], [1, 0, 1], [3, 0, 0]])
    assert found["alpha"] == pytest.approx(slow_alpha(counts))
    rows = [(r["rater"], r["ratings"], r["accuracy"], r["confusion"]) for r in found["raters"]]
    assert rows == [
        ("x", 3, 1.0, [[1, 0, 0], [0, 1, 0], [0, 0, 1]]),
        ("y", 2, 1.0, [[0, 0, 0], [0, 1, 0], [0, 0, 1]]),
        ("z", 2, 0.5, [[0, 0, 0], [0, 1, 0], [1, 0, 0]]),
    ]
    assert rater_report(said.clear(), consensus(said.clear())) == {}
    alone = rater_report(said.filter(query_id="d"), consensus(said.filter(query_id="d")))
    assert alone == {"zh-TW": {"alpha": None, "pairs": 0, "ratings": 0, "ties": 0, "raters": []}}
