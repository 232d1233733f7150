"""Consensus, splits, CVR examples, position bias and derived queries, each on its own."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import numpy as np
import polars as pl
import pytest

from csrm_tasks.dataset.brands import build_brands
from csrm_tasks.dataset.consensus import consensus
from csrm_tasks.dataset.conversions import cvr_examples
from csrm_tasks.dataset.queries import derived_queries
from csrm_tasks.dataset.splits import assign_splits

SEED = 3


def ratings(*grades: tuple[int, str]) -> pl.DataFrame:
    rows = [
        ("zh-TW", "q", "p", grade, rater, datetime(2026, 1, 1 + i, tzinfo=UTC), f"l{i}")
        for i, (grade, rater) in enumerate(grades)
    ]
    names = ["locale", "query_id", "product_id", "grade", "rater_id", "rated_at", "label_id"]
    return pl.DataFrame(rows, schema=names, orient="row")


@pytest.mark.parametrize(
    ("grades", "expected"),
    [
        ([(2, "a")], (2, 1, 1)),
        ([(2, "a"), (1, "b"), (2, "c")], (2, 3, 2)),
        ([(2, "a"), (0, "a")], (0, 1, 1)),  # the last of one rater
        ([(2, ""), (2, ""), (0, "")], (2, 3, 2)),  # nameless raters are different people
        ([(0, "a"), (1, "b")], (0, 2, 1)),  # a tie at equal distance: the lower
        ([(0, "a"), (0, "b"), (2, "c"), (2, "d"), (1, "e"), (2, "f"), (0, "g")], (0, 7, 3)),
        ([(0, "a"), (0, "b"), (2, "c"), (2, "d"), (1, "e")], (0, 5, 2)),
        ([(0, "a"), (2, "c"), (2, "d"), (0, "e"), (1, "f"), (1, "g")], (1, 6, 2)),  # nearest mean
    ],
)
def test_consensus(grades: list[tuple[int, str]], expected: tuple[int, int, int]) -> None:
    made = consensus(ratings(*grades))
    assert made.select("grade", "raters", "agree").row(0) == expected


def judged(n: int, rng: np.random.Generator) -> pl.DataFrame:
    rows: list[tuple[Any, ...]] = []
    for i in range(n):
        locale = "ko-KR" if i % 2 else "zh-TW"
        raters = 8 if rng.random() < 0.1 else 1
        rows += [
            (f"q{i // 3}", locale, f"{locale}{i}", f"p{j}", int(rng.integers(3)), raters, raters)
            for j in range(3)
        ]
    names = ["norm", "locale", "query_id", "product_id", "grade", "raters", "agree"]
    return pl.DataFrame(rows, schema=names, orient="row")


def split_of(pairs: pl.DataFrame, seed: int = SEED) -> pl.DataFrame:
    gold = pairs.filter((pl.col("locale") == "zh-TW") & (pl.col("raters") == 8))
    return assign_splits(pairs, gold, 0.2, seed).sort("locale", "query_id", "product_id")


def test_splits_keep_queries_apart_hold_their_share_and_ignore_row_order() -> None:
    pairs = judged(900, np.random.default_rng(0))
    split = split_of(pairs)
    assert split.group_by("norm").agg(pl.col("split").n_unique())["split"].max() == 1
    gold = split.filter(split="gold")
    assert set(gold["locale"]) == {"zh-TW"}
    assert gold.height == pairs.filter(locale="zh-TW", raters=8).height
    rest = split.filter(pl.col("split") != "gold")
    for locale in ("ko-KR", "zh-TW"):
        here = rest.filter(locale=locale)
        share = here.filter(split="dev")["norm"].n_unique() / here["norm"].n_unique()
        assert 0.15 < share < 0.27
    assert split_of(pairs.reverse()).equals(split)
    assert not split_of(pairs, SEED + 1).equals(split)


def sums(**rows: tuple[int, int, int, int]) -> pl.DataFrame:
    names = ["clicks", "carts", "purchases", "skips"]
    made = [("ko-KR", name[:2], name[2:], *counts) for name, counts in rows.items()]
    return pl.DataFrame(made, schema=["locale", "query_id", "product_id", *names], orient="row")


def test_cvr_examples() -> None:  # A8
    catalogue = {"ko-KR": [f"p{i}" for i in range(40)]}
    frame = sums(
        q1p1=(1, 1, 1, 0), q1p2=(0, 0, 0, 3), q1p3=(0, 0, 0, 9), q1p4=(0, 0, 0, 1),
        q1p5=(1, 0, 0, 5), q1p6=(0, 0, 0, 0), q2p1=(4, 0, 0, 0), q3p7=(1, 0, 2, 0),
    )  # fmt: skip
    made = cvr_examples(frame, catalogue, 4, SEED)
    assert made.filter(label=1).select("query_id", "product_id").rows() == [
        ("q1", "p1"),
        ("q3", "p7"),
    ]
    negatives = made.filter(label=0, query_id="q1")["product_id"].to_list()
    assert len(negatives) == len(set(negatives)) == 4
    assert {"p3", "p2"} <= set(negatives)  # most often passed over; p4 gives way to random ones
    assert not {"p1", "p5"} & set(negatives)  # acted on: never a negative
    assert made.filter(label=0, query_id="q3").height == 4
    assert made.equals(cvr_examples(frame.reverse(), catalogue, 4, SEED))
    even = sums(q1p1=(1, 1, 1, 0), **{f"q1p{i}": (0, 0, 0, 2) for i in range(10, 40)})
    made = cvr_examples(even, catalogue, 4, SEED)
    assert {"p10", "p11"} <= set(made.filter(label=0)["product_id"])  # passed over as often: by id
    for seed in range(5):
        shuffled = even.sample(fraction=1, shuffle=True, seed=seed)
        assert made.equals(cvr_examples(shuffled, catalogue, 4, SEED))
    few = cvr_examples(frame, {"ko-KR": ["p1", "p7"]}, 4, SEED)
    assert few.filter(label=0, query_id="q3")["product_id"].to_list() == ["p1"]


def test_derived_queries() -> None:  # A21
    brands = build_brands(["LG", "農心"], [])
    titles = [
        ("【特價】LG 雙門冰箱 500L 銀色", "家電 > 冰箱"),
        ("LG 雙門冰箱 銀色 (福利品)", "家電 > 冰箱"),
        ("LG 吸塵器 銀色", "家電 > 吸塵器"),
        ("農心 辛拉麵 銀色", "食品 > 麵"),
        ("500ml", ""),
        ("A", ""),
    ]
    found = derived_queries(titles, brands, 10)
    assert dict(found) == {  # 銀色 is spread over three categories
        "lg": 3, "雙門冰箱": 2, "lg 雙門冰箱": 2, "農心": 1, "辛拉麵": 1, "農心 辛拉麵": 1,
        "吸塵器": 1, "lg 吸塵器": 1,
    }  # fmt: skip
    commonest = [("雙門冰箱", 2), ("lg 雙門冰箱", 2), ("吸塵器", 1)]
    assert derived_queries(titles, brands, 3) == commonest
    assert derived_queries(reversed(titles), brands, 10) == found
