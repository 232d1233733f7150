"""AnalytiCup's files: which rows land, as what, and which are kept for which reason."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from csrm_tasks.layouts import cikm2025
from csrm_tasks.layouts.landing import Landing
from csrm_tasks.markets import load_market
from csrm_tasks.settings import Settings, load_settings
from tests.layouts_fixtures import CIKM, landed, left_out, run_import, tree, write_cikm


def test_labels_and_titles_land_by_split_and_language(tmp_path: Path) -> None:
    own = run_import("cikm2025", write_cikm(tmp_path / "data"))
    files = landed(own, "cikm2025")
    assert list(files) == [
        "2025-01-06/en-US/catalogue-cikm2025_train.parquet",
        "2025-01-06/en-US/labels-cikm2025_train.parquet",
        "2025-01-06/en-US/query_categories-cikm2025_train.parquet",
        "2025-01-06/ko-KR/catalogue-cikm2025_train.parquet",
        "2025-01-06/ko-KR/labels-cikm2025_train.parquet",
        "2025-01-06/ko-KR/query_categories-cikm2025_train.parquet",
        "2025-01-13/en-US/catalogue-cikm2025_dev.parquet",
        "2025-01-13/en-US/labels-cikm2025_dev.parquet",
        "2025-01-13/ko-KR/catalogue-cikm2025_dev.parquet",
        "2025-01-13/ko-KR/labels-cikm2025_dev.parquet",
        "2025-01-13/ko-KR/query_categories-cikm2025_dev.parquet",
        "2025-01-20/ko-KR/catalogue-cikm2025_test.parquet",
        "2025-01-20/ko-KR/labels-cikm2025_test.parquet",
    ]
    title = {r["product_id"]: r["title"] for rows in files.values() for r in rows if "title" in r}
    train = files["2025-01-06/en-US/labels-cikm2025_train.parquet"]
    assert [(r["label_id"], r["query"], title[r["product_id"]], r["grade"]) for r in train] == [
        ("train-1", "red teapot", "Orla red teapot, 1 l", "exact"),
        ("train-2", "red teapot", "Blue kettle", "irrelevant"),
        ("train-3", "kettle", "Blue kettle", "exact"),
        ("train-9", "ấm trà đỏ", "Orla red teapot, 1 l", "exact"),
        ("train-11", "kettle", "Blue kettle", "exact"),
    ]
    assert {r["guideline_version"] for r in train} == {"cikm2025 train"}
    assert {r["rater_id"] for r in train} == {"cikm2025"}
    catalogue = files["2025-01-06/en-US/catalogue-cikm2025_train.parquet"]
    assert [r["title"] for r in catalogue] == ["Orla red teapot, 1 l", "Blue kettle"]
    test = files["2025-01-20/ko-KR/catalogue-cikm2025_test.parquet"]
    assert [r["title"] for r in test] == ["Flat plate", "Iron pot"]  # whole without train's


def test_answers_about_categories_land_with_their_paths_as_they_are(tmp_path: Path) -> None:
    files = landed(run_import("cikm2025", write_cikm(tmp_path / "data")), "cikm2025")
    found = {
        name.rpartition("/")[0]: [tuple(row.values()) for row in rows]
        for name, rows in files.items()
        if "/query_categories-" in name
    }
    said = ("cikm2025", "cikm2025 train")
    assert found == {
        "2025-01-06/en-US": [
            ("train-1", "teapot", "Home, Kitchen & Dining,Teapots, Kettles", "yes", *said)
        ],
        "2025-01-06/ko-KR": [("train-2", "냄비", "Home, Kitchen & Dining,Pots", "no", *said)],
        "2025-01-13/ko-KR": [
            ("dev-1", "꽃병", "Home,Vases > Tall", "yes", "cikm2025", "cikm2025 dev")
        ],
    }


def test_categories_alone_are_a_market(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_import("cikm2025", write_cikm(tmp_path / "data", {"train_QC.txt": CIKM["train_QC.txt"]}))
    assert "to train on them: tasks: [qc] (docs/TASKS.md)" in capsys.readouterr().out


def test_what_does_not_land_is_kept_by_reason_and_all_rows_are_accounted_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_cikm(tmp_path / "data")
    (folder / "dev_QI.txt.gz").touch()
    own = run_import("cikm2025", folder)
    assert left_out(own, "cikm2025") == {
        "no_category": [("train_QC.txt", 5)],
        "no_label": [
            ("dev_QC.txt", 2),
            ("test_QI.txt", 3),
            ("test_QI.txt", 4),
            ("test_QI.txt", 5),
        ],
        "no_title": [("train_QI.txt", 4), ("train_QI.txt", 5)],
        "not_english": [("train_QC.txt", 6), ("train_QI.txt", 10)],
        "nul_byte": [("train_QI.txt", 13)],
        "other_language": [("train_QC.txt", 3), ("train_QI.txt", 8), ("dev_QI.txt", 3)],
        "repeated_id": [("train_QC.txt", 4), ("train_QI.txt", 12)],
        "too_long": [("train_QI.txt", 14)],
    }
    files = landed(own, "cikm2025").items()
    labels = sum(len(r) for name, r in files if "/catalogue-" not in name)
    kept = sum(map(len, left_out(own, "cikm2025").values()))
    assert labels + kept == sum(map(len, CIKM.values()))
    path = own.home / "imports" / "cikm2025" / "left_out-no_category.jsonl"
    first = json.loads(path.read_text(encoding="utf-8").splitlines()[0])
    assert json.loads(first["content"]) == CIKM["train_QC.txt"][4]  # as it was delivered
    out = capsys.readouterr().out
    assert "train_QI.txt: 14 rows" in out and f"left out, no_label: 4 ({path.parent}" in out
    assert "not read: dev_QI.txt.gz\n" in out
    assert "to train on them: tasks: [qc, qi] (docs/TASKS.md)" in out
    assert "next: csrm ingest --market cikm2025 --day 2025-01-20" in out


def test_the_markets_file_is_written_once_and_other_languages_are_another_market(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = run_import(
        "cikm2025", write_cikm(tmp_path / "data"), "--target", "de-DE", "--market", "g"
    )
    config = load_market("g", own.markets)
    assert config.locales == ("en-US", "de-DE")
    file = own.markets / "g.yaml"
    file.write_text(file.read_text() + "seed: 3\n")
    before = tree(own.landing)
    capsys.readouterr()
    run_import("cikm2025", tmp_path / "data", "--target", "de-DE", "--market", "g")
    assert load_market("g", own.markets).seed == 3 and tree(own.landing) == before
    assert refused(capsys, tmp_path / "data", "--market", "g").endswith(
        "market g learns from en-US for de-DE, not from en-US for ko-KR; give another --market, or "
        "these --source and --target"
    )


def test_rows_of_several_sources_and_of_a_language_only_judged_in_go_to_their_locales(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, more = write_cikm(tmp_path / "data"), ("--source", "en-US", "--source", "fr-FR")
    own = run_import("cikm2025", folder, *more)
    assert load_market("cikm2025", own.markets).source_locales == ("en-US", "fr-FR")
    landed = {p.parent.name for p in own.landing.glob("cikm2025/*/*/labels-*.parquet")}
    assert landed == {"en-US", "fr-FR", "ko-KR"}
    file = own.markets / "cikm2025.yaml"
    file.write_text(file.read_text() + "evaluation_locales: [de-DE]\n")
    run_import("cikm2025", folder, *more)
    landed = {p.parent.name for p in own.landing.glob("cikm2025/*/*/labels-*.parquet")}
    assert landed == {"en-US", "fr-FR", "ko-KR", "de-DE"}
    said = refused(capsys, folder, "--source", "fr-FR")
    assert "learns from en-US and fr-FR for ko-KR, not from fr-FR for ko-KR" in said
    said = refused(capsys, folder, "--source", "fr-FR", "--source", "fr-FR", "--market", "x")
    assert "source_locales: fr-FR is given twice" in said


def refused(capsys: pytest.CaptureFixture[str], folder: Path, *more: str) -> str:
    from csrm_tasks.cli.main import main

    capsys.readouterr()
    assert main(["import", "cikm2025", "--data-dir", str(folder), *more]) == 2
    out, err = capsys.readouterr()
    assert out == "" and len(err.splitlines()) == 1, err
    return err.strip()


def row(**changes: Any) -> str:
    return json.dumps(CIKM["train_QI.txt"][0] | changes)


@pytest.mark.parametrize(
    ("name", "line", "expected"),
    [
        ("train_QI.txt", '{"id": 1,', "row 2: is no JSON"),
        ("train_QI.txt", "[1]", "row 2: is no JSON object"),
        ("train_QI.txt", row(task="QC"), "row 2: task: is 'QC' in a file of QI; put the row"),
        ("train_QI.txt", row(task=None), "row 2: task: is missing"),
        ("train_QI.txt", row(label=2), "row 2: label: is 2; 1 (relevant) or 0, or no label"),
        ("train_QI.txt", row(label="yes"), "row 2: label: is 'yes'; 1 (relevant)"),
        ("train_QI.txt", row(label=True), "row 2: label: is True; 1 (relevant)"),
        ("train_QI.txt", row(label=float("nan")), "row 2: label: is nan; 1 (relevant)"),
        ("train_QI.txt", row(language="xx"), "row 2: language: 'xx' is no language of two"),
        ("train_QI.txt", row(id=""), "row 2: id: is missing"),
        ("train_QI.txt", '{"id": 1, "task": "QI", "language": "en"}', "row 2: origin_query: is m"),
        ("train_QC.txt", row(task="QC"), "row 2: category_path: is missing"),
        ("train_QC.txt", row(category_path="a"), "row 2: task: is 'QI' in a file of QC; put the"),
        ("train_QC.txt", row(task="QC", category_path="a", label="no"), "row 2: label: is 'no'; 1"),
        ("train_QX.txt", row(), "train_QX.txt: is no file of this layout (dev_QC.txt, dev_QI"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_landed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, line: str, expected: str
) -> None:
    folder = write_cikm(tmp_path / "data", {"train_QI.txt": CIKM["train_QI.txt"][:1]})
    good = CIKM["train_QC.txt"][0] if name == "train_QC.txt" else CIKM["train_QI.txt"][0]
    (folder / name).write_text(f"{json.dumps(good)}\n{line}\n", encoding="utf-8")
    error = refused(capsys, folder)
    assert f"{folder / name}: " in error and expected in error
    own = load_settings(market="cikm2025")
    assert not (own.landing / "cikm2025").exists() and not own.markets.exists()
    assert not (own.home / "imports").exists()


def test_files_that_are_no_text_or_not_there_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_cikm(tmp_path / "data", {"train_QC.txt.gz": []})
    assert "has none of train_QC.txt, train_QI.txt, dev_QC.txt" in refused(capsys, folder)
    (folder / "train_QI.txt").write_bytes(json.dumps({"a": 1}).encode("utf-16"))
    assert "train_QI.txt: row 1: is not UTF-8" in refused(capsys, folder)
    assert "is no folder" in refused(capsys, tmp_path / "none")
    write_cikm(folder, {"train_QI.txt": [CIKM["train_QI.txt"][7]]})
    write_cikm(folder, {"train_QC.txt": [CIKM["train_QC.txt"][2]]})
    assert "no label is left to land: other_language 2" in refused(capsys, folder)
    write_cikm(folder)
    assert "the market's locales are sw-KE, zu-ZA" in refused(
        capsys, folder, "--source", "sw-KE", "--target", "zu-ZA"
    )


def test_another_import_into_the_same_market_is_not_mixed_with_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = run_import("cikm2025", write_cikm(tmp_path / "data"))
    before = tree(own.landing)
    (tmp_path / "data" / "test_QI.txt").unlink()
    error = refused(capsys, tmp_path / "data")
    assert "2025-01-20/ko-KR/catalogue-cikm2025_test.parquet: is of another import" in error
    assert tree(own.landing) == before


rows = st.lists(
    st.builds(
        lambda n, language, query, item, label: {
            k: v
            for k, v in {
                "id": n, "task": "QI", "language": language, "origin_query": query,
                "item_title": item, "label": label,
            }.items()
            if v is not ...
        },
        st.integers(0, 12),
        st.sampled_from(["en", "ko", "kr", "fr", "EN"]),
        st.sampled_from(["kettle", "", " ", "주전자", "théière", "a\u0000b", "q" * 501, "\u200b"]),
        st.sampled_from(["Pot, red", "Blue kettle", "é", "e\u0301", "", None, ..., "t" * 2001]),
        st.sampled_from([0, 1, "0", "1", 1.0, "", None, ...]),
    ),
    max_size=20,
)  # fmt: skip


def expected(row: dict[str, Any], known: set[int]) -> str | None:
    """The reason of one row, by the obvious reading; ``known``: identifiers that landed."""
    language, query, title = row["language"].lower(), row["origin_query"], row.get("item_title")
    if language not in ("en", "ko", "kr"):
        return "other_language"
    if row.get("label") in ("", None):
        return "no_label"
    if not query.strip():
        return "no_query"
    if row["id"] in known:
        return "repeated_id"
    why = odd(query, 500) or ("no_title" if not title else odd(title, 2000))
    if why is None and language == "en" and "주" in query:
        return "not_english"
    return why


def odd(text: str, most: int) -> str | None:
    if text == "\u200b":
        return "missing_value"
    return "too_long" if len(text) > most else "nul_byte" if "\0" in text else None


@settings(max_examples=150)
@given(files=st.fixed_dictionaries({"train_QI.txt": rows, "test_QI.txt": rows}))
def test_every_row_lands_once_or_is_kept_with_its_reason(files: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder, own = Path(name), load_settings({"CSRM_HOME": f"{name}/home"})
        write_cikm(folder / "data", files)
        locales = {"en": "en-US", "ko": "ko-KR"}
        into = Landing(
            "cikm2025", own.landing / "m", own.home / "imports" / "m", locales, date(2025, 1, 6),
            cikm2025.SPLITS,
        )  # fmt: skip
        cikm2025.read(folder / "data", into)
        want: Counter[str] = Counter()
        labels = []
        for file, lines in files.items():
            seen: set[int] = set()
            for one in lines:
                why = expected(one, seen)
                if why is None:
                    seen.add(one["id"])
                    labels.append((file[:-7] + f"-{one['id']}", str(one["label"])[0]))
                else:
                    want[why] += 1
        got: Counter[str] = Counter()
        for (reason, _), n in into.left_out.items():
            got[reason] += n
        assert sum(into.read.values()) == sum(map(len, files.values()))
        if not labels:
            into.abandon()
            assert got == want
            return
        into.show()
        _check(own, labels, want, got)


def _check(own: Settings, labels: list[Any], want: Counter[str], got: Counter[str]) -> None:
    files = landed(own, "m")
    grades = {"1": "exact", "0": "irrelevant"}
    found = [(r["label_id"], r["grade"]) for f, rows in files.items() if "/lab" in f for r in rows]
    assert sorted(found) == sorted((label, grades[grade]) for label, grade in labels)
    assert got == want
    for folder in {file.rpartition("/")[0] for file in files}:  # of a split and a locale
        here = {f: rows for f, rows in files.items() if f.startswith(f"{folder}/")}
        products = [r["product_id"] for f, rows in here.items() if "/cat" in f for r in rows]
        assert len(products) == len(set(products))
        asked = {r["product_id"] for f, rows in here.items() if "/lab" in f for r in rows}
        assert asked == set(products)
