"""What titles resolve: pairs right with and without, and the queries that changed most."""

from __future__ import annotations

import polars as pl

from csrm_tasks.evaluation.report.rqa import accuracy_table, resolved_table
from csrm_tasks.evaluation.rqa_ablation import rqa_ablation
from csrm_tasks.records import SCORED


def _scored(grades: dict[tuple[str, str], int]) -> pl.DataFrame:
    rows = [
        (q, p, "zh-TW", *(0.8 if g == n else 0.1 for n in range(3))) for (q, p), g in grades.items()
    ]
    return pl.DataFrame(rows, SCORED, orient="row")


def test_gains_come_first_losses_last_and_unscored_pairs_are_left_out() -> None:
    truth = {("q1", "a"): 2, ("q1", "b"): 1, ("q2", "a"): 0, ("q3", "a"): 1, ("q3", "x"): 1}
    gold = pl.DataFrame(
        [(*k, g) for k, g in truth.items()], ["query_id", "product_id", "grade"], orient="row"
    )
    alone = _scored({("q1", "a"): 0, ("q1", "b"): 0, ("q2", "a"): 0, ("q3", "a"): 1})
    augmented = _scored({("q1", "a"): 2, ("q1", "b"): 1, ("q2", "a"): 2, ("q3", "a"): 1})
    names = ["q1", "q2", "q3"]
    queries = pl.DataFrame({"query_id": names, "query": ["安城", "湯麵", "<b>"]})
    rqa = pl.DataFrame({"query_id": names, "titles": [["安城 <湯麵>"], ["x"], []]})
    found = rqa_ablation(gold, alone, augmented, queries, rqa)
    assert (found["pairs"], found["alone"], found["with"]) == (4, 2, 3)
    assert [(c["query"], c["alone"], c["with"]) for c in found["cases"]] == [
        ("安城", 0, 2),
        ("湯麵", 1, 0),
    ]
    page = resolved_table(found)
    assert "安城 &lt;湯麵&gt;" in page
    assert "2 of 2" in page
    assert resolved_table(None) == ""


def test_the_report_shows_judged_accuracy_beside_bm25() -> None:
    measured = {"judged_accuracy": 0.968, "judged_accuracy_bm25": 0.878, "judged_titles": 70}
    page = accuracy_table({"m/build_rqa/1": {"locales": {"zh-TW": measured}}})
    assert "0.968" in page
    assert "0.878" in page
    assert accuracy_table({"m/build_rqa/1": {"rqa_accuracy": 0.8}}) == ""
