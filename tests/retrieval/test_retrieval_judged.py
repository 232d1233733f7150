"""Judgements by people: sheet, answers, accuracy, and what a bad sheet is told (A26)."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import polars as pl
import pytest

from csrm_tasks.cli.main import main
from csrm_tasks.errors import DataError
from csrm_tasks.records import QUERIES, RQA
from csrm_tasks.retrieval import judged
from csrm_tasks.retrieval.augment import rqa_table
from csrm_tasks.retrieval.rqa import Title
from csrm_tasks.text import query_id

KEY = query_id("zh-TW", "安城")


def _put(landing: Path, name: str, text: str) -> Path:
    path = landing / "m" / "judged" / "zh-TW" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def test_the_majority_of_raters_decides_and_empty_rows_say_nothing(tmp_path: Path) -> None:
    _put(
        tmp_path,
        "a.csv",
        "query,product_id,title,correct\n安城,p1,t,Yes\n 安城,p2,t,\n安城,p3,t,no\n",
    )
    _put(tmp_path, "b.csv", "query,product_id,correct\n安城,p1,0\n安城,p3,false\n")
    found = judged.read_judged(tmp_path, "m", "zh-TW")
    assert found.rows() == [(KEY, "p1", True), (KEY, "p3", False)]  # half is enough
    assert judged.read_judged(tmp_path, "m", "ko-KR").is_empty()
    assert judged.read_judged(tmp_path, "other", "zh-TW").is_empty()


def test_a_new_answer_changes_what_a_build_depends_on(tmp_path: Path) -> None:
    _put(tmp_path, "a.csv", "query,product_id,correct\n安城,p1,yes\n")
    before = judged.judged_identity(tmp_path, "m")
    _put(tmp_path, "a.csv", "query,product_id,correct\n安城,p1,no\n")
    assert judged.judged_identity(tmp_path, "m") != before


def test_accuracy_is_of_judged_titles_by_product() -> None:
    found = {
        KEY: [Title("p1", "t", 1, 0.5), Title("p2", "t", 1, 0.5)],
        "r": [Title("p1", "t", 1, 0)],
    }
    answers = pl.DataFrame([(KEY, "p1", True), (KEY, "p9", False)], judged.ANSWERS, orient="row")
    assert judged.judged_accuracy(found, answers) == (1.0, 1)
    assert judged.judged_accuracy(found, answers.clear()) == (None, 0)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "query,product_id,correct\n安城,p1,yes\n安城,p2,maybe\n",
            "row 3, field 'correct' is 'maybe'",
        ),
        ("query,product_id\n安城,p1\n", "column 'correct' is missing"),
        ("query,product_id,correct\n安城,p1,\n", "no row has an answer"),
    ],
)
def test_a_bad_sheet_is_refused_by_row_and_field(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "sheet.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=said):
        judged.accept(tmp_path, "m", "zh-TW", path)
    assert judged.judged_files(tmp_path, "m") == []


def test_a_sheet_goes_out_and_comes_back(tmp_path: Path) -> None:
    table = rqa_table(
        {KEY: [Title("p1", "安城 湯麵", 1, 0.5), Title("p2", "湯麵", 1, 0.5)], "q": []}
    )
    asked = pl.DataFrame([(KEY, "zh-TW", "安城", "安城", "", "log", 1)], QUERIES, orient="row")
    nothing = judged.read_judged(tmp_path, "m", "zh-TW")
    rows = judged.sheet(table.select(list(RQA)), asked, nothing)
    assert rows.columns == list(judged.SHEET)
    assert rows["title"].to_list() == ["安城 湯麵", "湯麵"]
    path = tmp_path / "sheet.csv"
    judged.write_judging_sheet(rows.with_columns(correct=pl.Series(["yes", ""])), path)
    assert path.read_bytes().startswith(b"\xef\xbb\xbf")
    assert judged.accept(tmp_path, "m", "zh-TW", path)[1] == 1
    again = judged.accept(tmp_path, "m", "zh-TW", path)[0]
    assert judged.judged_files(tmp_path, "m") == [again]
    answers = judged.read_judged(tmp_path, "m", "zh-TW")
    assert answers.rows() == [(KEY, "p1", True)]
    assert judged.sheet(table, asked, answers)["product_id"].to_list() == ["p2"]


def test_the_command_line_accepts_and_refuses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CSRM_HOME", str(tmp_path))
    path = tmp_path / "sheet.csv"
    path.write_text("query,product_id,correct\n安城,p1,yes\n", encoding="utf-8")
    arguments = ["rqa", "accept", "--market", "demo", "--locale", "zh-TW"]
    assert main([*arguments, str(path)]) == 0
    assert "1 answers" in capsys.readouterr().out
    assert main([*arguments, str(tmp_path / "none.csv")]) == 2
    assert "is no file" in capsys.readouterr().err


HEAD = "query,product_id,title,correct,rater_id\n"


def give(tmp_path: Path, name: str, rows: str, encoding: str = "utf-8") -> list[tuple[str, bool]]:
    """Accept a sheet; return which products are correct then."""
    path = tmp_path / name
    path.write_bytes((HEAD + rows).encode(encoding))
    judged.accept(tmp_path, "m", "zh-TW", path)
    found = judged.read_judged(tmp_path, "m", "zh-TW")
    assert set(found["query_id"]) == {KEY}
    return list(found.select("product_id", "correct").iter_rows())


def test_the_latest_answer_of_a_person_counts(tmp_path: Path) -> None:
    assert give(tmp_path, "a.csv", "安城,p1,,yes,\n安城,p2,,,\n") == [("p1", True)]
    assert give(tmp_path, "a.csv", "安城,p1,,,\n安城,p2,,no,\n") == [("p1", True), ("p2", False)]
    assert give(tmp_path, "b.csv", "安城,p1,,no,\n") == [("p1", False), ("p2", False)]
    assert give(tmp_path, "a.csv", "安城,p1,,yes,\n安城,p2,,,\n")[0] == ("p1", True)  # and back
    before = judged.judged_files(tmp_path, "m")
    assert give(tmp_path, "copy.csv", "安城,p1,,yes,\n安城,p2,,,\n")[0] == ("p1", True)
    assert judged.judged_files(tmp_path, "m") == before  # the newest again: it is there

    for rater, said, correct in (("ann", "no", True), ("ben", "no", False), ("ben", "y", True)):
        assert give(tmp_path, "a.csv", f"安城,p1,,{said},{rater}\n")[0] == ("p1", correct)


def test_sheets_that_were_laid_there_by_hand_are_read_before_accepted_ones(tmp_path: Path) -> None:
    assert give(tmp_path, "a.csv", "安城,p1,,yes,ann\n") == [("p1", True)]
    _put(tmp_path, "z.CSV", HEAD + "安城,p1,,no,ann\n安城,p2,,no,ann\n")
    (tmp_path / "m" / "judged" / "zh-TW" / "~$z.csv").write_bytes(b"what Excel keeps open")
    found = judged.read_judged(tmp_path, "m", "zh-TW")
    assert found.rows() == [(KEY, "p1", True), (KEY, "p2", False)]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "cp950"])
def test_sheets_of_a_taiwanese_excel_are_read(tmp_path: Path, encoding: str) -> None:
    rows = "安城,p1,安城 湯麵 大,TRUE,王小明\n"
    assert give(tmp_path, "a.csv", rows, encoding) == [("p1", True)]
    # in the landing zone, too, and by what they say, not by what the file is called
    _put(tmp_path, "b.csv", "").write_bytes((HEAD + "安城,p2,湯麵 小杯,1.0,\n").encode(encoding))
    assert judged.read_judged(tmp_path, "m", "zh-TW")["correct"].to_list() == [True, True]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("??,p1,??,yes,\n", "row 2, field 'query' is '\\?\\?': its letters were lost"),
        ("安城,8.80123E+12,t,yes,\n", "row 2, field 'product_id' is '8.80123E"),
    ],
)
def test_what_a_spreadsheet_has_spoilt_is_refused(tmp_path: Path, row: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        give(tmp_path, "a.csv", row)
    assert judged.judged_files(tmp_path, "m") == []


def test_parquet_says_what_it_lacks(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pl.DataFrame({"query": ["安城"], "product_id": [7], "correct": [True]}).write_parquet(path)
    judged.accept(tmp_path, "m", "zh-TW", path)
    assert judged.read_judged(tmp_path, "m", "zh-TW").rows() == [(KEY, "7", True)]
    pl.DataFrame({"query": ["安城"]}).write_parquet(path)
    with pytest.raises(DataError, match="column 'product_id' is missing"):
        judged.accept(tmp_path, "m", "zh-TW", path)
    path.write_bytes(b"nothing")
    with pytest.raises(DataError, match="is no Parquet file"):
        judged.accept(tmp_path, "m", "zh-TW", path)


@pytest.mark.parametrize("written", ["csv", "parquet"])
def test_a_rater_on_a_mac_is_the_same_rater(tmp_path: Path, written: str) -> None:
    apart = unicodedata.normalize("NFD", "김철수")
    rows = [
        ("安城", "가방", "yes", "김철수"),
        ("安城", unicodedata.normalize("NFD", "가방"), "no", apart),
    ]
    frame = pl.DataFrame(rows, ("query", "product_id", "correct", "rater_id"), orient="row")
    path = tmp_path / "m" / "judged" / "zh-TW" / f"a.{written}"
    path.parent.mkdir(parents=True)
    frame.write_csv(path) if written == "csv" else frame.write_parquet(path)
    found = judged.read_judged(tmp_path, "m", "zh-TW")
    assert found.rows() == [(KEY, "가방", False)]
