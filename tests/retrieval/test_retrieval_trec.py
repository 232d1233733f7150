"""Measures of retrieval against a slow count, and files that other tools read back."""

from __future__ import annotations

import math
from pathlib import Path

import ir_measures
import polars as pl
import pytest

from csrm_tasks.retrieval import trec
from csrm_tasks.retrieval.quality import recall_at, relevant_products
from tests.retrieval_fixtures import behaviour, pairs

QRELS = pl.DataFrame(
    [("q", "a", 2), ("q", "b", 0), ("q", "c", 1), ("r", "a", 1), ("s", "a", 0)],
    trec.QRELS, orient="row",
)  # fmt: skip
FOUND = {"q": [("b", 0.9), ("c", 0.5), ("a", 0.5), ("z", 0.1)], "s": [("a", 0.3)]}


def test_measures_equal_a_count_by_hand() -> None:
    got = trec.measure(QRELS, trec.run_of(FOUND))
    ideal = 2 + 1 / math.log2(3)
    expected = {
        "recall_at_20": 0.5,  # r has no answer; s has nothing to find and does not count
        "recall_at_100": 0.5,
        "mrr_at_10": 0.25,
        "ndcg_at_10": (1 / math.log2(3) + 2 / math.log2(4)) / ideal / 2,
    }
    assert got == pytest.approx(expected)
    relevant = {"q": ["a", "c"], "r": ["a"]}
    assert expected["recall_at_20"] == recall_at(
        {k: [d for d, _ in v] for k, v in FOUND.items()}, relevant
    )
    assert trec.measure(QRELS.filter(pl.col("query_id") == "s"), trec.run_of(FOUND)) is None


def test_files_are_read_back_by_another_tool(tmp_path: Path) -> None:
    trec.write_qrels(QRELS, tmp_path / "q")
    trec.write_run(trec.run_of(FOUND), tmp_path / "r", "ebr")
    got = ir_measures.calc_aggregate(
        [trec.MEASURES["ndcg_at_10"]],
        ir_measures.read_trec_qrels(str(tmp_path / "q")),
        ir_measures.read_trec_run(str(tmp_path / "r")),
    )
    whole = trec.measure(QRELS, trec.run_of(FOUND))
    assert whole is not None
    assert next(iter(got.values())) * 3 == pytest.approx(whole["ndcg_at_10"] * 2)  # s counts there
    assert (tmp_path / "r").read_text().splitlines()[1] == "q Q0 c 2 3 ebr"


def test_relevance_is_from_labels_or_purchases() -> None:
    dev = trec.qrels_of_labels(pairs(), "dev")
    own = pairs().filter(pl.col("split") == "dev")
    assert len(dev) == len(own)
    good = dict(dev.filter(pl.col("relevance") > 0).group_by("query_id").len().iter_rows())
    assert good == {q: len(p) for q, p in relevant_products(own).items()}
    bought = behaviour().with_columns(purchases=pl.int_range(pl.len()) % 2)
    assert len(trec.qrels_of_purchases(bought)) == 20
    assert trec.qrels_of_purchases(behaviour()).is_empty()
