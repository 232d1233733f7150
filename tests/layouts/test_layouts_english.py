"""WANDS and TREC product search: English only; grades by name and by number."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from csrm_tasks.cli.main import main
from csrm_tasks.layouts.trec import documents
from tests.layouts_fixtures import (
    DOCUMENTS,
    TREC,
    WANDS,
    landed,
    left_out,
    run_import,
    write_texts,
    write_trec,
)


def refused(capsys: pytest.CaptureFixture[str], layout: str, folder: Path, *more: str) -> str:
    capsys.readouterr()
    assert main(["import", layout, "--data-dir", str(folder), *more]) == 2
    out, err = capsys.readouterr()
    assert out == "" and len(err.splitlines()) == 1, err
    return err


def test_wands_lands_in_english_with_categories_by_level(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = run_import("wands", write_texts(tmp_path / "data", WANDS))
    files = landed(own, "wands")
    assert list(files) == [
        "2025-01-06/en-US/catalogue-wands_all.parquet",
        "2025-01-06/en-US/labels-wands_all.parquet",
    ]
    bed, chair = files["2025-01-06/en-US/catalogue-wands_all.parquet"]
    assert bed["category"] == "Furniture > Bedroom > Beds & Headboards"
    assert (chair["title"], chair["description"]) == ('the "salon" chair', "two\nlines")
    labels = files["2025-01-06/en-US/labels-wands_all.parquet"]
    assert [(r["query"], r["product_id"], r["grade"]) for r in labels] == [
        ("salon chair", "1", "exact"), ("salon chair", "0", "irrelevant"),
        ('12" shelf', "0", "substitute"),
    ]  # fmt: skip
    assert left_out(own, "wands") == {
        "no_title": [("product.csv", 3)],
        "unknown_product": [("label.csv", 4)],
        "unknown_query": [("label.csv", 5)],
    }
    assert "en-GB: nothing landed; deliver its files" in capsys.readouterr().out


def test_a_language_may_be_the_target(tmp_path: Path) -> None:
    own = run_import(
        "wands", write_texts(tmp_path / "data", WANDS), "--source", "de-DE", "--target", "en-US"
    )
    assert all("/en-US/" in name for name in landed(own, "wands"))


@pytest.mark.parametrize(
    ("name", "old", "new", "expected"),
    [
        ("label.csv", "Partial", "Fair", "label.csv: row 3: label: is 'Fair'; one of Exact"),
        ("label.csv", "\tlabel", "\tgrade", "label.csv: label: there is no such column; the heade"),
        ("label.csv", "2\t1\t0", "2\t1", "label.csv: row 3: has 3 fields and the header 4"),
        ("label.csv", "2\t1\t0", "2\t1\t", "label.csv: row 3: product_id: is missing"),
        ("query.csv", "1\t12", "0\t12", "query.csv: row 2: query_id: 0 is there already with an"),
        ("query.csv", "\tsalon", '\t"salon', "query.csv: row 1: cannot be read ("),
    ],
)
def test_wands_bad_input_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, old: str, new: str, expected: str
) -> None:
    assert old in WANDS[name]
    files = WANDS | {name: WANDS[name].replace(old, new, 1)}
    assert expected in refused(capsys, "wands", write_texts(tmp_path / "data", files))


@pytest.mark.parametrize("form", ["jsonl", "tsv", "trec"])
def test_trec_lands_whatever_its_collection_is_written_in(tmp_path: Path, form: str) -> None:
    own = run_import("trec", write_trec(tmp_path / "data", form))
    files = landed(own, "trec")
    catalogue = files["2025-01-06/en-US/catalogue-trec_train.parquet"]
    assert [(r["product_id"], r["title"], r["description"]) for r in catalogue] == DOCUMENTS
    train = files["2025-01-06/en-US/labels-trec_train.parquet"]
    assert [(r["query"], r["product_id"], r["grade"]) for r in train] == [
        ("orla 12", "d1", "E"), ("orla 12", "d2", "S"), ("orla 12", "d3", "C"), ("case", "d1", "I"),
    ]  # fmt: skip
    test = files["2025-01-20/en-US/labels-trec_test.parquet"]
    assert [(r["label_id"], r["product_id"]) for r in test] == [("test-2023test-q2-d2", "d2")]
    assert left_out(own, "trec") == {
        "unknown_product": [("2023test.qrels.txt", 2)],
        "unknown_query": [("product-search-train.qrels", 5)],
    }


def test_grades_of_another_scale_must_be_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_trec(tmp_path / "data")
    narrow = {"product-search-train.qrels": "q1 0 d1 2\nq1 0 d2 0\n"}
    write_texts(folder, narrow | {"2023test.qrels.txt": "q2 0 d2 1\n"})
    assert "the greatest grade of all qrels is 2" in refused(capsys, "trec", folder)
    scale = "0=irrelevant,1=substitute,2=exact"
    own = run_import("trec", folder, "--grades", scale)
    train = landed(own, "trec")["2025-01-06/en-US/labels-trec_train.parquet"]
    assert [r["grade"] for r in train] == ["exact", "irrelevant"]
    assert "row 1: grade: 1 has no meaning (0=irrelevant, 2=exact); say one with --grades" in (
        refused(capsys, "trec", folder, "--grades", "0=irrelevant,2=exact")
    )
    assert "--grades: '1=good' is no GRADE=MEANING" in refused(
        capsys, "trec", folder, "--grades", "0=irrelevant,1=good"
    )


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("product-search-train.qrels", "q1 0 d1\n", "train.qrels: row 1: has 3 fields"),
        ("product-search-train.qrels", "q1 0 d1 3\nq1 0 d2 -1\n", "row 2: grade: is '-1'; a whole"),
        ("product-search-train.qrels", "q1 0 d1 4\n", "row 1: grade: 4 has no meaning (3=E, 2=S"),
        ("a.queries.tsv", "q1 orla\n", "a.queries.tsv: row 1: query: is missing"),
        ("a.queries.tsv", "q1\tother\n", "row 2: query_id: q1 is there already with another"),
        ("corpus.jsonl", '{"title": "T"}\n', "corpus.jsonl: row 1: docid: is missing"),
        ("corpus.tsv", "d9\n", "corpus.tsv: row 1: title: is missing"),
        ("corpus.trec", "<DOC>\n<DOCNO>d9</DOCNO>\n", "row 1: DOC: is not closed at the file's"),
        ("corpus.trec", "<DOC>\n</DOC>\n", "row 1: DOCNO: is missing"),
        ("corpus.trec", "d9\n", "row 1: DOC: text outside <DOC>"),
        ("README.txt", "hello", "README.txt: its name says neither qrels, queries"),
    ],
)
def test_trec_bad_input_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, text: str, expected: str
) -> None:
    folder = write_texts(write_trec(tmp_path / "data"), {name: text})
    assert expected in refused(capsys, "trec", folder)


def test_a_truncated_archive_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_trec(tmp_path / "data")
    path = folder / "collection.jsonl.gz"
    path.write_bytes(path.read_bytes()[:-12])
    assert "collection.jsonl.gz: row " in (error := refused(capsys, "trec", folder))
    assert "fetch the file again" in error
    (folder / "2023test.qrels.txt").unlink()
    (folder / "product-search-train.qrels").unlink()
    assert "has no file with qrels in its name" in refused(capsys, "trec", folder)
    assert TREC  # the miniature itself is whole


def test_a_document_may_stand_on_one_line(tmp_path: Path) -> None:
    path = tmp_path / "corpus.trec.gz"
    one = "<DOC><DOCNO>d1</DOCNO><TITLE>A  b</TITLE><TEXT>c</TEXT></DOC>\n"
    path.write_bytes(gzip.compress(one.encode() * 2))
    assert [(d.row, d.docid, d.title, d.text) for d in documents(path)] == [
        (1, "d1", "A  b", "c"), (2, "d1", "A  b", "c"),
    ]  # fmt: skip
