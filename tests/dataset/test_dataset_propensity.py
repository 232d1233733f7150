"""Examination by position is found again where its truth is known, and weights follow it."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from itertools import product

import numpy as np
import polars as pl
import pytest

from csrm_tasks.dataset.propensity import (
    FLOOR,
    LEAST,
    PAIR,
    RANK_BUCKETS,
    Floats,
    behaviour_weights,
    examination,
    pairwise_clicks,
    rank_bucket,
)
from csrm_tasks.demo.market.generate import demo_world
from csrm_tasks.demo.market.labels import default_queries
from csrm_tasks.demo.market.queries import make_queries
from csrm_tasks.demo.market.shoppers import POSITION_BIAS, Engine, simulate
from csrm_tasks.demo.market.world import SOURCE
from csrm_tasks.store.lake import POSITIONS

TEXTS, NUMBERS = ("day", *PAIR), ("impressions", "clicks", "carts", "purchases")
LOG = dict.fromkeys(TEXTS, pl.String) | dict.fromkeys(NUMBERS, pl.Int64)


def counts(rows: list[tuple[str, int, int, int]]) -> pl.DataFrame:
    """POSITIONS of (product, position, impressions, clicks)."""
    return pl.DataFrame(
        [("zh-TW", "q", p, at, n, c, 0, 0) for p, at, n, c in rows], schema=POSITIONS, orient="row"
    )


def log_of(positions: pl.DataFrame, day: str = "2026-01-05") -> pl.DataFrame:
    sums = positions.group_by("locale", "query_id", "product_id").agg(
        pl.col("impressions", "clicks", "carts", "purchases").sum()
    )
    return sums.with_columns(pl.lit(day).alias("day")).select(list(LOG))


def shop(
    truth: Floats, pairs: int, shown: float, seed: int
) -> tuple[pl.DataFrame, dict[str, float]]:
    """A night in which better products stand higher, but move; and how attractive each is."""
    rng = np.random.default_rng(seed)
    liked = rng.beta(1, 6, pairs) * 0.9
    usual = np.clip((1 - liked / liked.max()) ** 1.5 * len(truth) * 1.1, 0, len(truth) - 1)
    pair = np.repeat(np.arange(pairs), rng.geometric(1 / shown, pairs))
    at = np.clip(np.round(usual[pair] + rng.normal(0, 4, len(pair))), 0, len(truth) - 1).astype(int)
    clicked = rng.random(len(pair)) < truth[at] * liked[pair]
    made = pl.DataFrame({"pair": pair, "position": at, "clicked": clicked})
    summed = made.group_by("pair", "position").agg(
        pl.len().alias("impressions"), pl.col("clicked").sum().alias("clicks")
    )
    full = summed.select(
        pl.lit("zh-TW").alias("locale"), pl.lit("q").alias("query_id"),
        pl.format("p{}", "pair").alias("product_id"), "position", "impressions", "clicks",
        pl.lit(0).alias("carts"), pl.lit(0).alias("purchases"),
    ).cast(POSITIONS)  # type: ignore[arg-type]  # fmt: skip
    return full, {f"p{n}": float(g) for n, g in enumerate(liked)}


def plain_rates(positions: pl.DataFrame) -> Floats:
    by = positions.group_by("position").agg(pl.col("clicks", "impressions").sum()).sort("position")
    rate = (by["clicks"] / by["impressions"]).to_numpy()
    return np.asarray(rate / rate[0], dtype=np.float64)


def error(found: Floats, truth: Floats) -> float:
    """Mean of |log of the ratio|: 0.1 is ten per cent off, up or down."""
    return float(np.abs(np.log(np.maximum(found[: len(truth)], 1e-3) / truth)).mean())


def test_contests_are_what_a_loop_sums() -> None:
    rng = np.random.default_rng(3)
    rows = [
        (f"p{n}", int(at), int(rng.integers(1, 9)), int(rng.integers(0, 4)))
        for n in range(30) for at in rng.choice(12, 3, replace=False)
    ]  # fmt: skip
    rows += [("p0", 22, 2, 5), ("p0", 24, 1, 0), ("p1", 600, 4, 1)]  # 22 and 24 are one place
    of: dict[str, dict[int, list[int]]] = {}
    for p, at, n, c in rows:
        where = max(i for i, start in enumerate(RANK_BUCKETS) if start <= at)
        entry = of.setdefault(p, {}).setdefault(where, [0, 0])
        entry[0] += n
        entry[1] += c
    expected = np.zeros((len(RANK_BUCKETS), len(RANK_BUCKETS)))
    for shown in of.values():
        for (k, (n_k, c_k)), (other, (n_l, _)) in product(shown.items(), shown.items()):
            if k != other:
                expected[k, other] += float(Fraction(min(c_k, n_k) * n_l, n_k + n_l))
    assert np.allclose(pairwise_clicks(counts(rows)), expected, atol=1e-3)
    assert pairwise_clicks(counts(rows)).sum() > 10


def test_positions_fall_into_places() -> None:
    at = pl.DataFrame({"position": [0, 1, 20, 21, 24, 25, 49, 50, 499, 500, 100_000]})
    found = at.select(rank_bucket("position")).to_series().to_list()
    assert found == [0, 1, 20, 20, 20, 21, 23, 24, 27, 28, 28]


@pytest.mark.parametrize(("pairs", "shown"), [(2000, 30.0), (20_000, 4.0)])
def test_examination_is_recovered_where_the_ranking_follows_relevance(
    pairs: int, shown: float
) -> None:
    truth = np.arange(1.0, 21.0) ** -0.8
    positions, _ = shop(truth, pairs, shown, 5)
    found = examination(pairwise_clicks(positions))
    assert error(found, truth) < 0.15  # stated tolerance: 15 % off in the mean, up or down
    assert error(plain_rates(positions), truth) > 4 * error(found, truth)


def test_where_everybody_looks_everywhere_nothing_is_corrected() -> None:
    positions, _ = shop(np.ones(20), 3000, 30.0, 5)
    found = examination(pairwise_clicks(positions))
    assert found[:20].min() > 0.85
    assert plain_rates(positions).min() < 0.4  # although clicks fall with the rank


def test_the_demo_shoppers_are_understood() -> None:
    world = demo_world(2000, 0)
    queries = make_queries(world, SOURCE, default_queries(world)[SOURCE])
    searches = simulate(Engine(world, queries), queries, 5000, np.random.default_rng(0))
    seen = pl.DataFrame(
        [(f"q{s.query}", f"p{row}", at + 1, at in s.done[0])
         for s in searches for at, row in enumerate(s.rows)],
        schema=["query_id", "product_id", "position", "clicked"], orient="row",
    )  # fmt: skip
    positions = seen.group_by("query_id", "product_id", "position").agg(
        pl.len().cast(pl.Int64).alias("impressions"),
        pl.col("clicked").sum().cast(pl.Int64).alias("clicks"),
    ).with_columns(pl.lit(SOURCE).alias("locale"))  # fmt: skip
    truth = np.arange(1.0, 17.0) ** -POSITION_BIAS
    found = examination(pairwise_clicks(positions))
    assert error(found[1:] / found[1], truth) < 0.2  # places count from 0, these positions from 1
    assert error(plain_rates(positions), truth) > 0.6


def test_no_evidence_gives_no_correction_and_little_gives_little() -> None:
    assert (examination(np.zeros((len(RANK_BUCKETS), len(RANK_BUCKETS)))) == 1.0).all()
    one = counts([("p0", 0, 5, 1), ("p0", 3, 5, 0)])
    assert examination(pairwise_clicks(one)).min() > 0.7
    many = counts([(f"p{n}", at, 500, 250 if at == 0 else 1) for n in range(20) for at in (0, 9)])
    found = examination(pairwise_clicks(many))
    assert found.min() == FLOOR
    assert (np.diff(found) <= 0).all()  # deep places have no contest of their own: not below


def weights(log: pl.DataFrame, of: Callable[[str], pl.DataFrame]) -> dict[str, float]:
    made = behaviour_weights(log, of)
    assert made.select("locale", "query_id", "product_id").is_sorted(["locale"])
    return dict(made.select("product_id", "weight").iter_rows())


def test_weights_are_actions_per_examined_impression() -> None:
    positions = counts([
        *((f"t{n}", 0, 50, 20) for n in range(20)), *((f"t{n}", 9, 50, 4) for n in range(20)),
        ("deep", 9, 50, 4), ("never", 0, 50, 0), ("once", 9, 1, 1),
    ])  # fmt: skip
    log = log_of(positions)
    nowhere = ("2026-01-05", "zh-TW", "q", "nowhere", 9, 3, 1, 1)  # no position was logged
    log = pl.concat([log, pl.DataFrame([nowhere], schema=LOG, orient="row")])
    theta = examination(pairwise_clicks(positions))
    assert theta[0] == 1.0
    assert theta[9] == pytest.approx(0.2, abs=0.05)
    found = weights(log, lambda day: positions)
    assert found["t0"] == pytest.approx(24 / (50 + 50 * theta[9] + 3), rel=1e-5)
    assert found["deep"] == pytest.approx(4 / (50 * theta[9] + 3), rel=1e-5)
    assert found["once"] < found["t0"]  # one click where hardly anybody looks is little evidence
    assert found["never"] == LEAST
    chance = np.where(positions["position"] == 0, theta[0], theta[9])
    usual = np.average(chance, weights=positions["impressions"])
    assert found["nowhere"] == pytest.approx(5 / (9 * usual + 3), rel=1e-5)
    twice = pl.concat([log, log.with_columns(pl.lit("2026-01-06").alias("day"))])
    both = behaviour_weights(twice, lambda day: positions)
    assert both.filter(product_id="deep")["impressions"].item() == 100
    assert both.equals(behaviour_weights(twice.reverse(), lambda day: positions.reverse()))
    assert behaviour_weights(log.clear(), lambda day: positions).is_empty()


def test_weights_are_nearer_to_what_is_liked_than_click_rates() -> None:
    truth = np.arange(1.0, 21.0) ** -0.8
    positions, liked = shop(truth, 1500, 200.0, 9)
    log = log_of(positions)
    found = weights(log, lambda day: positions)
    rate = {p: c / n for p, c, n in log.select("product_id", "clicks", "impressions").iter_rows()}
    names = sorted(found)

    def distance(guess: dict[str, float]) -> float:
        return float(np.mean([abs(guess[p] - liked[p]) for p in names]))

    assert distance(found) < 0.65 * distance(rate)
