"""Baselines learn what a linear model of characters can, and are fast enough to run weekly."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from csrm_tasks.errors import DataError
from csrm_tasks.evaluation.baselines import baseline_scores
from csrm_tasks.evaluation.gold import gold_set, llm_answers
from tests.evaluation_fixtures import tables

Frames = tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]


def scored(frames: Frames) -> dict[str, pl.DataFrame]:
    pairs, queries, products = frames
    gold = pairs.filter(pl.col("split") == "gold").sort("pair_id")
    return baseline_scores(pairs, queries, products, gold)


def right(frame: pl.DataFrame) -> float:
    said = frame.select("p0", "p1", "p2").to_numpy().argmax(1)
    return float((said == frame["grade"].to_numpy()).mean())


def test_majority_is_the_train_shares_and_nothing_of_gold() -> None:
    pairs, queries, products = tables(80)
    found = scored((pairs, queries, products))["majority"]
    train = pairs.filter(split="train")["grade"]
    shares = [(train == g).mean() for g in range(3)]
    assert np.allclose(found.select("p0", "p1", "p2").to_numpy(), shares)
    flipped = pairs.with_columns(
        grade=pl.when(pl.col("split") == "gold").then(2 - pl.col("grade")).otherwise("grade")
    ).cast({"grade": pl.Int8})
    for name, frame in scored((flipped, queries, products)).items():
        before = scored((pairs, queries, products))[name]
        assert np.allclose(frame["p1"], before["p1"])


def test_overlap_makes_the_linear_model_better_than_the_majority() -> None:
    found = scored(tables(200))
    assert right(found["tfidf"]) > right(found["majority"]) + 0.05
    em = found["tfidf"].filter(pl.col("grade") == 2)["p2"].mean()
    other = found["tfidf"].filter(pl.col("grade") == 0)["p2"].mean()
    assert isinstance(em, float) and isinstance(other, float) and em > other + 0.3


def test_scores_are_probabilities_of_every_gold_pair() -> None:
    frames = tables(80)
    judged = gold_set(*frames)
    for name, frame in scored(frames).items():
        answers = llm_answers(name, "baseline", "ref", frame, judged)
        assert answers.probabilities is not None
        assert np.allclose(answers.probabilities.sum(1), 1.0)


def test_an_unknown_product_and_a_single_grade_are_errors() -> None:
    pairs, queries, products = tables(80)
    with pytest.raises(DataError, match="that the snapshot does not hold"):
        scored((pairs, queries, products.filter(pl.col("product_id") != "p3")))
    with pytest.raises(DataError, match="fewer than two grades"):
        scored((pairs.with_columns(grade=pl.lit(1, pl.Int8)), queries, products))


def test_a_market_without_brands_categories_or_gold_still_has_baselines() -> None:
    pairs, queries, products = tables(80)
    bare = products.with_columns(brand=pl.lit(""), category=pl.lit(""))
    assert right(scored((pairs, queries, bare))["tfidf"]) > 0.3
    without = pairs.filter(pl.col("split") != "gold")
    assert {f.height for f in scored((without, queries, bare)).values()} == {0}
