"""Blind audits: what is drawn, what raters see, what their answers come to."""

from __future__ import annotations

import csv
import unicodedata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest

from csrm_tasks.errors import DataError
from csrm_tasks.release.online import audits
from csrm_tasks.release.online.checks import Audit

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
        return SimpleNamespace(rank_score=np.array([better.get(p, 0.0) for p in products]))

    return SimpleNamespace(score=score)


SHOWN = pl.DataFrame(
    {
        "query_id": ["q1"] * 7 + ["q2"],
        "query": ["=牛乳"] * 7 + ["茶"],
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
    text = path.read_text(encoding="utf-8-sig")
    assert "new" not in text and "old" not in text
    with path.open(encoding="utf-8-sig", newline="") as f:
        read = list(csv.DictReader(f))
    assert list(read[0]) == list(audits.TASK)
    assert {r["query"] for r in read} == {"'=牛乳", "茶"}  # no formula
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
        ("item,grade,rater_id\nnobody,1,r\n", "row 2: item 'nobody' is none that was sent"),
        ("item,grade,rater_id\nKNOWN,1,r\nKNOWN,7,r\n", "row 3: grade '7'; write 0, 1 or 2"),
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


def tasks(tmp_path: Path) -> tuple[pl.DataFrame, Path]:
    """An audit's items, and what raters get of it."""
    items = audits.items(both(), "seed")
    rows = items.join(SHOWN, on=["query_id", "product_id"], maintain_order="left")
    audits.write_tasks(rows.select("item", "query", "title").to_dicts(), tmp_path / "tasks.csv")
    return items, tmp_path / "tasks.csv"


def filled(sent: Path, rater: str, encoding: str, errors: str = "strict") -> Path:
    """What a rater's spreadsheet saves, all graded 2."""
    text = sent.read_text(encoding="utf-8-sig").replace(",,\n", f",2,{rater}\n")
    back = sent.with_name("answers.csv")
    back.write_bytes(text.encode(encoding, errors))
    return back


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp949", "cp950"])
@pytest.mark.parametrize("locale", ["ko-KR", "zh-TW", "en-US"])
def test_texts_that_were_sent_say_in_which_letters_they_come_back(
    tmp_path: Path, encoding: str, locale: str
) -> None:
    items, sent = tasks(tmp_path)
    found = audits.read_answers(filled(sent, "金", encoding), items, locale, sent)
    assert found["rater_id"].unique().to_list() == ["金"] and found.height == items.height


def test_a_rater_whose_letters_were_lost_is_not_taken_for_another(tmp_path: Path) -> None:
    items, sent = tasks(tmp_path)
    with pytest.raises(DataError, match="'rater_id' is '\\?\\?': its letters were lost"):
        audits.read_answers(filled(sent, "안나", "cp950", "replace"), items, "zh-TW", sent)


def test_of_a_raters_several_grades_the_last_counts(tmp_path: Path) -> None:
    items = audits.items(both(), "seed")
    item = items["item"][0]
    path = tmp_path / "answers.csv"

    def grade(*rows: str) -> list[int]:
        lines = [f"{item},{row}" for row in rows]
        path.write_text("\n".join(["item,grade,rater_id", *lines]), encoding="utf-8")
        return audits.agreed(audits.read_answers(path, items), items)["grade"].to_list()

    assert grade("2,ann", "0,ann") == [0]
    assert grade("2,ann", "2,ben", "0,ann", "0,ann") == [0]  # one each: the lower
    assert grade("2,", "2,", "0,") == [2]  # nameless ones are three people


def test_a_later_file_takes_the_place_of_what_it_answers() -> None:
    schema = {"item": pl.String, "grade": pl.Int8, "rater_id": pl.String}
    before = pl.DataFrame([("a", 2, "ann"), ("b", 2, "an")], schema, orient="row")
    later = pl.DataFrame([("b", 0, "ann"), ("c", 1, "ann")], schema, orient="row")
    assert audits.newest(before, later).sort("item").rows() == [
        ("a", 2, "ann"), ("b", 0, "ann"), ("c", 1, "ann"),
    ]  # fmt: skip
    assert audits.newest(before, later.clear()).equals(before)


def test_a_rater_on_a_mac_is_the_same_rater(tmp_path: Path) -> None:
    items = audits.items(both(), "seed")
    item, path = items["item"][0], tmp_path / "answers.csv"
    apart = unicodedata.normalize("NFD", "김철수")
    path.write_text(f"item,grade,rater_id\n{item},2,김철수\n{item},0,{apart}\n", encoding="utf-8")
    given = audits.read_answers(path, items)
    assert given["rater_id"].to_list() == ["김철수"] * 2
    assert audits.agreed(given, items)["grade"].to_list() == [0]  # the last of one rater
