"""Distillation pairs (A31) against a plain loop."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from csrm_tasks.towers.pairs import PairPlan, distillation_queries, tower_pairs
from tests.towers_fixtures import TARGET, snapshot_tables

PRODUCTS = [f"p{i}" for i in range(40)]
QUERIES = [f"q{i}" for i in range(7)]
PLAN = PairPlan(impressed=3, retrieved=5, random=4)


def ranking(query: int) -> list[int]:
    return np.random.default_rng(query).permutation(len(PRODUCTS)).tolist()


def retrieve(rows: np.ndarray, k: int) -> np.ndarray:
    return np.array([ranking(int(r))[:k] for r in rows])


def behaviour() -> pl.DataFrame:
    rng = np.random.default_rng(5)
    rows = [
        (q, p, int(rng.integers(0, 6)))
        for q in QUERIES[:4]
        for p in [*rng.choice(PRODUCTS, 6, replace=False).tolist(), "gone"]
    ]
    return pl.DataFrame(rows, ["query_id", "product_id", "impressions"], orient="row")


def slow(query: int, seen: pl.DataFrame) -> tuple[list[str], list[str]]:
    own = [r for r in seen.rows() if r[0] == QUERIES[query] and r[2] > 0 and r[1] in PRODUCTS]
    impressed = [p for _, p, _ in sorted(own, key=lambda r: (-r[2], r[1]))][: PLAN.impressed]
    filled = [PRODUCTS[i] for i in ranking(query) if PRODUCTS[i] not in impressed]
    return impressed, filled[: PLAN.impressed + PLAN.retrieved - len(impressed)]


def test_equals_a_loop_and_draws_random_ones_beside() -> None:
    seen = behaviour()
    found = tower_pairs(QUERIES, PRODUCTS, seen, retrieve, PLAN, seed=0)
    assert not found.select("query_id", "product_id").is_duplicated().any()
    for n, q in enumerate(QUERIES):
        own = found.filter(pl.col("query_id") == q)
        impressed, retrieved = slow(n, seen)
        kinds = {k: own.filter(pl.col("source") == k)["product_id"].to_list()
                 for k in ("impressed", "retrieved", "random")}  # fmt: skip
        assert kinds["impressed"] == impressed
        # A product drawn at random is labelled by what else found it, and never cut by it.
        assert kinds["retrieved"] == retrieved
        assert len(kinds["random"]) == PLAN.random


def test_cold_start_has_only_retrieved_and_random() -> None:
    found = tower_pairs(QUERIES, PRODUCTS, behaviour().clear(), retrieve, PLAN, seed=0)
    assert set(found["source"]) == {"retrieved", "random"}
    assert found.group_by("query_id").len()["len"].unique().to_list() == [12]


def test_seeded_and_small_catalogue() -> None:
    def run(seed: int) -> pl.DataFrame:
        return tower_pairs(QUERIES, PRODUCTS, behaviour(), retrieve, PLAN, seed)

    assert run(1).equals(run(1))
    assert not run(1).equals(run(2))
    few = tower_pairs(["q0"], ["p1", "p2"], behaviour().clear(), lambda r, k: np.array([[1, 0]]),
                      PLAN, seed=0)  # fmt: skip
    assert few["product_id"].to_list() == ["p2", "p1"]


def test_retriever_that_finds_fewer_than_asked() -> None:
    found = tower_pairs(["q0"], PRODUCTS, behaviour().clear(), lambda r, k: np.array([[7, -1]]),
                        PLAN, seed=0)  # fmt: skip
    assert found.filter(pl.col("source") == "retrieved")["product_id"].to_list() == ["p7"]


@pytest.mark.parametrize(("seen", "barred"), [(False, {"dev", "gold"}), (True, {"dev"})])
def test_queries_leave_out_dev_and_gold_and_take_the_most_seen(
    seen: bool, barred: set[str]
) -> None:
    tables = snapshot_tables()
    chosen = distillation_queries(tables["queries"], tables["pairs"], TARGET, 10, seen)
    held = set(tables["pairs"].filter(pl.col("split").is_in(barred))["query_id"])
    assert held
    assert not held & set(chosen["query_id"])
    dark = set(tables["pairs"].filter(pl.col("split").is_in(["dev", "gold"]))["query_id"])
    rest = tables["queries"].filter(~pl.col("query_id").is_in(list(dark)))
    most = sorted(rest["impressions"], reverse=True)[:10]
    assert chosen["impressions"].to_list()[:10] == most
    assert set(chosen["query_id"][10:]) == dark - held  # gold's take nobody's place


def test_what_is_drawn_for_the_others_does_not_know_of_gold_queries_behind_them() -> None:
    def pairs_of(queries: list[str]) -> pl.DataFrame:
        return tower_pairs(queries, PRODUCTS, behaviour(), retrieve, PLAN, 1)

    alone = pairs_of(QUERIES[:2])
    assert pairs_of(QUERIES)[: alone.height].equals(alone)


def test_a_text_is_held_out_in_whichever_language_it_was_judged() -> None:
    tables = snapshot_tables()
    gold = tables["queries"].join(tables["pairs"].filter(split="gold"), on="query_id", how="semi")
    alike = gold.head(1).with_columns(query_id=pl.lit("alike"), locale=pl.lit("zh-HK"))
    queries = pl.concat([tables["queries"], alike])
    chosen = distillation_queries(queries, tables["pairs"], "zh-HK", 10)
    assert chosen.is_empty()
    assert distillation_queries(queries, tables["pairs"], "zh-HK", 10, seen=True).height == 1
