"""What the ablation reads of dev: halves at each other's thresholds, and near wrong pairs."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from csrm_tasks.curation.dev_answers import (
    ANSWERS,
    answers_of,
    at_the_other_halfs_shares,
    at_the_other_halfs_threshold,
    hard_pairs,
)
from csrm_tasks.records import PAIRS, PRODUCTS, QUERIES, TASK_PAIRS, write_table
from csrm_tasks.text import pair_id

row = st.tuples(
    st.sampled_from(["chosen", "reported"]),
    st.integers(0, 1),
    st.integers(0, 9).map(lambda x: x / 9),
)


def f1(rows: list[tuple[int, float]], at: float) -> float:
    hits = sum(g == 1 and p >= at for g, p in rows)
    return 2 * hits / (sum(g for g, _ in rows) + sum(p >= at for _, p in rows))


@examples(max_examples=300, deadline=None)
@given(st.lists(row, min_size=1, max_size=12))
def test_each_half_is_answered_where_the_other_is_answered_best(
    rows: list[tuple[str, int, float]],
) -> None:
    schema = {"half": pl.String, "grade": pl.Int8, "p": pl.Float64}
    frame = pl.DataFrame(rows, schema, orient="row").with_columns(task=pl.lit("qi"))
    said = at_the_other_halfs_threshold(frame).to_list()
    for half in {h for h, *_ in rows}:
        other = [(g, p) for h, g, p in rows if h != half]
        own = [(p, s) for (h, _, p), s in zip(rows, said, strict=True) if h == half]
        if not any(g for g, _ in other):
            assert all(s == (p >= 0.5) for p, s in own)
            continue
        best = max(f1(other, at) for _, at in other)
        yes, no = ([p for p, s in own if s == x] for x in (1, 0))
        assert max(no, default=-1.0) < min(yes, default=2.0)  # one cut for the half
        # Some cut between the two gives the other half its best F1.
        cuts = [p for _, p in other if max(no, default=-1.0) < p <= min(yes, default=2.0)]
        inside = [*cuts, min(yes, default=2.0), max(no, default=-1.0) + 1e-9]
        assert any(f1(other, at) == pytest.approx(best) for at in inside if _some(other, at))


def _some(rows: list[tuple[int, float]], at: float) -> bool:
    return bool(sum(g for g, _ in rows) + sum(p >= at for _, p in rows))


mark = st.tuples(
    st.sampled_from(["chosen", "reported"]), st.integers(0, 2),
    st.tuples(*[st.integers(1, 5)] * 3).map(lambda x: [v / sum(x) for v in x]),
)  # fmt: skip


@examples(max_examples=300, deadline=None)
@given(st.lists(mark, min_size=1, max_size=10))
def test_each_half_has_labels_as_frequent_as_the_other(
    rows: list[tuple[str, int, list[float]]],
) -> None:
    frame = pl.DataFrame(
        {"half": [h for h, *_ in rows], "grade": [g for _, g, _ in rows],
         **{f"p{k}": [p[k] for *_, p in rows] for k in range(3)}},
        schema_overrides={"grade": pl.Int8},
    )  # fmt: skip
    said = at_the_other_halfs_shares(frame).to_list()
    for (half, _, p), label in zip(rows, said, strict=True):
        other = [(g, q) for h, g, q in rows if h != half]
        if not other:
            assert p[label] == max(p)
            continue
        weighed = [
            p[k] * sum(g == k for g, _ in other) / sum(q[k] for _, q in other) for k in range(3)
        ]
        assert weighed[label] == pytest.approx(max(weighed))


def write(folder: Path, name: str, rows: list[dict[str, object]], schema: pl.Schema) -> None:
    write_table(pl.DataFrame(rows, schema), dict(schema), folder / f"{name}.parquet")


TITLES = {"p1": "red tea pot", "p2": "blue tea pot", "p3": "garden hose", "p4": "red tea cup"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    def judged(query: str, product: str, grade: int, split: str = "dev") -> dict[str, object]:
        keys = {"pair_id": pair_id(query, product), "query_id": query, "product_id": product}
        return keys | {"locale": "ko-KR", "grade": grade, "split": split, "raters": 1, "agree": 1}

    pairs = [judged("q", "p1", 2), judged("q", "p2", 0), judged("q", "p3", 0),
             judged("alone", "p4", 0), judged("t", "p1", 2, "train")]  # fmt: skip
    products = [{"product_id": p, "locale": "ko-KR", "title": t, "brand": "", "category": "",
                 "description": ""} for p, t in TITLES.items()]  # fmt: skip
    paths = {"a": "Home > Tea > Pots", "b": "Home > Tea > Cups", "c": "Garden > Hoses"}
    tasks = [{"task": "qc", **judged("q", p, int(p == "a")), "query": "pot", "item": text}
             for p, text in paths.items()]  # fmt: skip
    queries = [{"query_id": q, "locale": "ko-KR", "query": q, "norm": q, "brand": "",
                "origin": "label", "impressions": 1} for q in ("q", "alone", "t")]  # fmt: skip
    write(tmp_path, "queries", queries, pl.Schema(QUERIES))
    write(tmp_path, "pairs", pairs, pl.Schema(PAIRS))
    write(tmp_path, "products", products, pl.Schema(PRODUCTS))
    write(tmp_path, "task_pairs", tasks, pl.Schema(TASK_PAIRS))
    return tmp_path


def test_near_wrong_pairs_share_words_with_a_right_one_of_their_query(folder: Path) -> None:
    found = set(hard_pairs(folder).rows())
    assert found == {("relevance", pair_id("q", "p2")), ("qc", pair_id("q", "b"))}


def test_answers_are_the_most_probable_labels_of_each_task(folder: Path) -> None:
    model = folder / "model"
    model.mkdir()
    scores = {"pair_id": [pair_id("q", "p1"), pair_id("q", "p2")], "grade": [2, 0],
              "p0": [0.2, 0.4], "p1": [0.4, 0.4], "p2": [0.4, 0.2]}  # fmt: skip
    pl.DataFrame(scores).write_parquet(model / "dev_scores.parquet")
    dev = pl.read_parquet(folder / "task_pairs.parquet").with_columns(
        half=pl.Series(["chosen", "reported", "reported"]), p=pl.Series([0.9, 0.8, 0.1])
    )
    dev.write_parquet(model / "task_dev.parquet")
    found = answers_of(model, folder)
    assert found.schema == pl.Schema(ANSWERS)
    told = {(t, p): s for t, p, s in found.select("task", "pair_id", "said").rows()}
    assert told == {
        ("relevance", pair_id("q", "p1")): 1, ("relevance", pair_id("q", "p2")): 0,
        # of "reported" at 0.45, half of 0.9; of "chosen", whose other half has no yes, at 0.5
        ("qc", pair_id("q", "a")): 1, ("qc", pair_id("q", "b")): 1, ("qc", pair_id("q", "c")): 0,
    }  # fmt: skip
