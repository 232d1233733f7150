"""Blind audits: what is drawn, what raters see, what their answers come to."""

from __future__ import annotations

import csv
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest

from csrm_tasks.errors import DataError
from csrm_tasks.release import audits
from csrm_tasks.release.online import Audit

ASKED = pl.DataFrame(
    {"query_id": [f"q{i}" for i in range(300)], "impressions": [9] * 100 + [1] * 199 + [0]}
)


def test_audits_take_queries_once_and_the_commoner_ones_first() -> None:
    drawn = [audits.draw(ASKED, 50, n, "seed") for n in range(7)]
    flat = [q for part in drawn for q in part]
    assert sorted(flat) == sorted(f"q{i}" for i in range(299))  # not the one nobody asks
    common = sum(int(q[1:]) < 100 for q in drawn[0])
    assert 33 <= common <= 49  # 82 % are expected
    assert audits.draw(ASKED, 50, 0, "seed") == drawn[0] != audits.draw(ASKED, 50, 0, "other")


def scorer(better: dict[str, float]) -> Any:
    def score(queries: Any, products: Any, titles: Any) -> Any:
        return SimpleNamespace(promotion=np.array([better.get(p, 0.0) for p in products]))

    return SimpleNamespace(score=score)


SHOWN = pl.DataFrame(
    {
        "query_id": ["q1"] * 7 + ["q2"],
        "query": ["=牛奶"] * 7 + ["茶"],
        "product_id": [*"abcdefg", "z"],
        "title": [f"title {p}" for p in "abcdefgz"],
    }
)


def test_a_page_is_the_five_best_in_order() -> None:
    found = audits.page(scorer({"g": 0.9, "c": 0.5, "b": 0.5}), SHOWN, "new")
    assert found.filter(pl.col("query_id") == "q1").rows() == [
        ("new", "q1", n, p) for n, p in enumerate("gbcad", start=1)
    ]
    assert found.filter(pl.col("query_id") == "q2").rows() == [("new", "q2", 1, "z")]


def both() -> pl.DataFrame:
    return pl.concat(
        [audits.page(scorer({"g": 1}), SHOWN, "new"), audits.page(scorer({}), SHOWN, "old")]
    )


def test_raters_cannot_tell_the_releases_apart(tmp_path: Path) -> None:
    items = audits.items(both(), "seed")
    assert items.height == 7  # a b c d e g of q1, and z
    rows = items.join(SHOWN, on=["query_id", "product_id"], maintain_order="left")
    path = tmp_path / "tasks.csv"
    audits.write_tasks(rows.select("item", "query", "title").to_dicts(), path)
    text = path.read_text(encoding="utf-8")
    assert "new" not in text and "old" not in text
    with path.open(encoding="utf-8", newline="") as f:
        read = list(csv.DictReader(f))
    assert list(read[0]) == list(audits.TASK)
    assert {r["query"] for r in read} == {"'=牛奶", "茶"}  # no formula
    order = [r["title"][-1] for r in read]
    assert order != sorted(order)  # shuffled: not the order of either page
    assert audits.items(both().reverse(), "seed").equals(items)


def answer(tmp_path: Path, grades: dict[str, list[str]]) -> Path:
    items = audits.items(both(), "seed")
    path = tmp_path / "answers.csv"
    with path.open("w", encoding="utf-8", newline="") as f:
        writer = csv.writer(f)
        writer.writerow(["item", "grade", "rater_id", "note"])
        for item, _, product in items.select("item", "query_id", "product_id").iter_rows():
            for n, grade in enumerate(grades.get(product, ["2"])):
                writer.writerow([item, grade, f"r{n}", "x"])
    return path


def counted(tmp_path: Path, grades: dict[str, list[str]]) -> Audit:
    items = audits.items(both(), "seed")
    found = audits.agreed(audits.read_answers(answer(tmp_path, grades), items), items)
    return audits.count(both(), found, "new", "old")


@pytest.mark.parametrize(
    ("grades", "expected"),
    [  # new shows g a b c d, old shows a b c d e; z alone for q2
        ({}, Audit(2, 0, 0, 0, 0)),
        ({"g": ["0"]}, Audit(2, 1, 0, 1, 0)),
        ({"g": ["Substitute"]}, Audit(2, 1, 0, 0, 0)),
        ({"a": ["1"]}, Audit(2, 0, 1, 0, 0)),
        ({"e": ["irrelevant"]}, Audit(2, 0, 0, 0, 1)),
        ({"b": ["0"]}, Audit(2, 0, 0, 0, 0)),  # both have it
        ({"g": ["0", "2", "2"]}, Audit(2, 0, 0, 0, 0)),  # by majority
        ({"g": [""]}, Audit(1, 0, 0, 0, 0)),  # not judged yet: q1 does not count
        ({"z": ["0"]}, Audit(2, 0, 0, 0, 0)),
    ],
)
def test_answers_are_compared_query_by_query(
    tmp_path: Path, grades: dict[str, list[str]], expected: Audit
) -> None:
    assert counted(tmp_path, grades) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("item,grade\nx,1\n", "column 'rater_id' is missing"),
        ("item,grade,rater_id\nnobody,1,r\n", "row 1: item 'nobody' is not of this audit"),
        ("item,grade,rater_id\nKNOWN,1,r\nKNOWN,7,r\n", "row 2: grade '7'; write 0, 1 or 2"),
    ],
)
def test_answers_that_cannot_be_read_name_file_row_and_field(
    tmp_path: Path, text: str, message: str
) -> None:
    items = audits.items(both(), "seed")
    path = tmp_path / "bad.csv"
    path.write_text(text.replace("KNOWN", items["item"][0]), encoding="utf-8")
    with pytest.raises(DataError, match=f"bad.csv: {message}"):
        audits.read_answers(path, items)
