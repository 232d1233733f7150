"""WANDS of Wayfair: ``query.csv``, ``product.csv`` and ``label.csv``, separated by tabs."""

from __future__ import annotations

from pathlib import Path

from csrm_tasks.layouts.files import (
    check_folder,
    fault,
    needed,
    required,
    tab_separated,
    text_of,
)
from csrm_tasks.layouts.landing import Landing
from csrm_tasks.text import LEVEL_SEPARATOR

SPLITS = ("all",)  # the data set has none
SPOKEN = ("en",)
GRADES = {"Exact": "exact", "Partial": "substitute", "Irrelevant": "irrelevant"}
SEPARATOR = "/"  # between the levels of a category, most often with blanks around it
QUERIES = {name: (name,) for name in ("query_id", "query")}
LABELS = {name: (name,) for name in ("id", "query_id", "product_id", "label")}
PRODUCTS = {
    "product_id": ("product_id",), "title": ("product_name",),
    "category": ("category hierarchy", "category_hierarchy"),
    "description": ("product_description",),
}  # fmt: skip


def read(folder: Path, landing: Landing) -> None:
    """Read the three files into ``landing``; raises :class:`DataError` naming file and row."""
    landing.remarks += check_folder(folder, ("query.csv", "product.csv", "label.csv"), (".csv",))
    queries_file, products, labels = (
        needed(folder / name) for name in ("query.csv", "product.csv", "label.csv")
    )
    locale = landing.locales[SPOKEN[0]]
    queries = _queries(queries_file)
    for number, row in tab_separated(products, PRODUCTS):
        landing.read[products.name] += 1
        levels = (level.strip() for level in text_of(row["category"]).split(SEPARATOR))
        why = landing.product(
            SPLITS[0], locale, required(products, number, row, "product_id"),
            text_of(row["title"]), category=LEVEL_SEPARATOR.join(filter(None, levels)),
            description=text_of(row["description"]),
        )  # fmt: skip
        if why is not None:
            landing.leave_out(why, products, number, row)
    for number, row in tab_separated(labels, LABELS):
        landing.read[labels.name] += 1
        grade = required(labels, number, row, "label")
        if grade not in GRADES:
            what = f"is {grade!r}; one of {', '.join(GRADES)} is expected"
            raise fault(labels, number, "label", what)
        query = queries.get(required(labels, number, row, "query_id"))
        why = "unknown_query" if query is None else landing.label(
            SPLITS[0], locale, required(labels, number, row, "id"), query,
            required(labels, number, row, "product_id"), GRADES[grade],
        )  # fmt: skip
        if why is not None:
            landing.leave_out(why, labels, number, row)


def _queries(path: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    for number, row in tab_separated(path, QUERIES):
        query_id, query = required(path, number, row, "query_id"), text_of(row["query"])
        if found.setdefault(query_id, query) != query:
            what = f"{query_id} is there already with another query; correct one of them"
            raise fault(path, number, "query_id", what)
    return found
