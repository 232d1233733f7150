"""Amazon's Shopping Queries Data Set (ESCI): two Parquet files, examples and products.

The grades land as the letters they are: what C means is the market's ``ingest.complement``.
"""

from __future__ import annotations

from pathlib import Path

from csrm_tasks.layouts.files import (
    Row,
    check_folder,
    fault,
    needed,
    parquet_rows,
    required,
    text_of,
)
from csrm_tasks.layouts.landing import Landing

EXAMPLES = "shopping_queries_dataset_examples.parquet"
PRODUCTS = "shopping_queries_dataset_products.parquet"
SPLITS = ("train", "test")
SPOKEN = {"us": "en", "es": "es", "jp": "ja"}  # product_locale → language
LETTERS = {"exact": "E", "substitute": "S", "complement": "C", "irrelevant": "I"}
EXAMPLE_COLUMNS = (
    "example_id", "query", "product_id", "product_locale", "esci_label", "small_version",
    "large_version", "split",
)  # fmt: skip
PRODUCT_COLUMNS = (
    "product_id", "product_title", "product_description", "product_bullet_point", "product_brand",
    "product_locale",
)  # fmt: skip


def read(folder: Path, landing: Landing, version: str) -> None:
    """Read both files into ``landing``; ``version``: small (task 1) or large (tasks 2 and 3)."""
    landing.remarks += check_folder(folder, (EXAMPLES, PRODUCTS), (".parquet",))
    products, examples = needed(folder / PRODUCTS), needed(folder / EXAMPLES)
    for number, row in parquet_rows(products, PRODUCT_COLUMNS):
        landing.read[PRODUCTS] += 1
        why = _product(products, number, row, landing)
        if why is not None:
            told = {name: row[name] for name in ("product_id", "product_locale", "product_title")}
            landing.leave_out(why, products, number, told)
    for number, row in parquet_rows(examples, EXAMPLE_COLUMNS):
        landing.read[EXAMPLES] += 1
        why = _example(examples, number, row, landing, f"{version}_version")
        if why is not None:
            landing.leave_out(why, examples, number, row)


def _product(path: Path, number: int, row: Row, landing: Landing) -> str | None:
    locale = landing.locales.get(_language(path, number, row))
    if locale is None:
        return "other_language"
    about = (text_of(row["product_description"]), text_of(row["product_bullet_point"]))
    return landing.product(
        SPLITS[0], locale, required(path, number, row, "product_id"), text_of(row["product_title"]),
        brand=text_of(row["product_brand"]), description="\n".join(filter(None, about)),
    )  # fmt: skip


def _example(path: Path, number: int, row: Row, landing: Landing, version: str) -> str | None:
    split, grade = _split(path, number, row), _grade(path, number, row)
    locale = landing.locales.get(_language(path, number, row))
    if _flag(path, number, row, version) == 0:
        return f"not_in_{version}"
    if locale is None:
        return "other_language"
    if not grade:
        return "no_label"
    product_id = required(path, number, row, "product_id")
    example = required(path, number, row, "example_id")
    return landing.label(split, locale, example, text_of(row["query"]), product_id, grade)


def _language(path: Path, number: int, row: Row) -> str:
    given = required(path, number, row, "product_locale")
    if given not in SPOKEN:
        what = f"{given!r} is none of {', '.join(SPOKEN)}; correct the row"
        raise fault(path, number, "product_locale", what)
    return SPOKEN[given]


def _split(path: Path, number: int, row: Row) -> str:
    given = required(path, number, row, "split")
    if given not in SPLITS:
        raise fault(path, number, "split", f"{given!r} is none of {', '.join(SPLITS)}")
    return given


def _grade(path: Path, number: int, row: Row) -> str:
    given = text_of(row["esci_label"]).strip()
    letter = LETTERS.get(given.lower(), given.upper())
    if letter and letter not in LETTERS.values():
        what = f"is {given!r}; E, S, C or I is expected"
        raise fault(path, number, "esci_label", what)
    return letter


def _flag(path: Path, number: int, row: Row, version: str) -> int:
    given = row[version]
    if given not in (0, 1):
        raise fault(path, number, version, f"is {given!r}; 1 (in this version) or 0 is expected")
    return int(given)  # type: ignore[call-overload,no-any-return]
