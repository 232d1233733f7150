"""Amazon ESCI: two Parquet files; versions, locales, letters, and products that are missing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from csrm_tasks.cli.main import main
from csrm_tasks.settings import load_settings
from tests.layouts_fixtures import (
    EXAMPLES,
    ITEMS,
    example,
    item,
    landed,
    left_out,
    run_import,
    write_esci,
)

NAME = "shopping_queries_dataset_examples.parquet"


def test_examples_land_with_their_letters_and_products_with_brand_and_text(tmp_path: Path) -> None:
    own = run_import("esci", write_esci(tmp_path / "data"))
    files = landed(own, "esci")
    assert list(files) == [
        "2025-01-06/en-US/catalogue-esci_train.parquet",
        "2025-01-06/en-US/labels-esci_train.parquet",
        "2025-01-06/ja-JP/catalogue-esci_train.parquet",
        "2025-01-06/ja-JP/labels-esci_train.parquet",
        "2025-01-13/en-US/labels-esci_test.parquet",
    ]
    train = files["2025-01-06/en-US/labels-esci_train.parquet"]
    assert [(r["label_id"], r["product_id"], r["grade"]) for r in train] == [
        ("train-0", "B01", "E"), ("train-1", "B02", "C"), ("train-2", "B03", "S"),
    ]  # fmt: skip
    test = files["2025-01-13/en-US/labels-esci_test.parquet"]
    assert [(r["label_id"], r["product_id"], r["grade"]) for r in test] == [
        ("test-3", "0123456789", "I")
    ]
    products = {r["product_id"]: r for r in files["2025-01-06/en-US/catalogue-esci_train.parquet"]}
    assert set(products) == {"B01", "B02", "B03", "0123456789"}
    assert products["B01"]["brand"] == "Orla"
    assert products["B01"]["description"] == "A phone.\n- 5G"
    assert products["B02"]["brand"] == ""  # longer than the contract lets it be: counted
    assert len(products["B03"]["description"]) == 20_000
    assert left_out(own, "esci") == {
        "no_label": [(NAME, 9)],
        "no_title": [("shopping_queries_dataset_products.parquet", 4)],
        "other_language": [("shopping_queries_dataset_products.parquet", 7), (NAME, 8)],
        "unknown_product": [(NAME, 5), (NAME, 6)],
    }


def test_the_small_version_and_another_target(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = run_import(
        "esci", write_esci(tmp_path / "data"), "--version", "small", "--target", "es-MX",
        "--market", "small", "--day", "2025-03-03",
    )  # fmt: skip
    files = landed(own, "small")
    assert [r["label_id"] for r in files["2025-03-03/es-MX/labels-esci_train.parquet"]] == [
        "train-7"
    ]
    assert left_out(own, "small")["not_in_small_version"] == [(NAME, 3)]
    out = capsys.readouterr().out
    assert "brand_left_empty_too_long: 1" in out and "description_cut: 1" in out


def refused(capsys: pytest.CaptureFixture[str], folder: Path, *more: str) -> str:
    capsys.readouterr()
    assert main(["import", "esci", "--data-dir", str(folder), *more]) == 2
    out, err = capsys.readouterr()
    assert out == "" and len(err.splitlines()) == 1, err
    assert not (load_settings(market="esci").landing / "esci").exists()
    return err


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"product_locale": "uk"}, "row 10: product_locale: 'uk' is none of us, es, jp"),
        ({"esci_label": "X"}, "row 10: esci_label: is 'X'; E, S, C or I is expected"),
        ({"split": "dev"}, "row 10: split: 'dev' is none of train, test"),
        ({"large_version": 2}, "row 10: large_version: is 2; 1 (in this version) or 0"),
        ({"large_version": None}, "row 10: large_version: is None"),
        ({"product_id": None}, "row 10: product_id: is missing"),
        ({"example_id": None}, "row 10: example_id: is missing"),
    ],
)
def test_a_bad_example_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], expected: str
) -> None:
    bad = example(99, "us", "orla", "B01", "E") | changes
    error = refused(capsys, write_esci(tmp_path / "data", [*EXAMPLES, bad]))
    assert f"{NAME}: {expected}" in error


def test_bad_files_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_esci(tmp_path / "data", items=[*ITEMS, item("B1", "fr", "Livre")])
    assert "products.parquet: row 8: product_locale: 'fr' is none" in refused(capsys, folder)
    write_esci(folder)
    pl.DataFrame(EXAMPLES).drop("split").write_parquet(folder / NAME)
    assert f"{NAME}: split: there is no such column; the file has" in refused(capsys, folder)
    (folder / NAME).write_bytes((folder / NAME).read_bytes()[:-20])
    assert f"{NAME}: cannot be read as Parquet" in refused(capsys, folder)
    (folder / NAME).unlink()
    assert f"{NAME}: does not exist; this layout needs it" in refused(capsys, folder)
    write_esci(folder)
    pl.DataFrame(EXAMPLES).write_parquet(folder / "examples.parquet")
    assert "examples.parquet: is no file of this layout" in refused(capsys, folder)


def test_full_names_of_the_letters_are_known(tmp_path: Path) -> None:
    named = [e | {"esci_label": "Complement"} for e in EXAMPLES[:1]]
    own = run_import("esci", write_esci(tmp_path / "data", named))
    assert landed(own, "esci")["2025-01-06/en-US/labels-esci_train.parquet"][0]["grade"] == "C"
