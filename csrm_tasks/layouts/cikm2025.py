"""CIKM AnalytiCup 2025: ``{train,dev,test}_{QC,QI}.txt``, one JSON object a line.

A query-item row is a label, and its title a product: there are no identifiers of products, so the
title's digest is one. A query-category row is an answer of that task, its path one text: levels are
separated by commas and hold commas, so nobody can take them apart.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from csrm_tasks.blobs import text_digest
from csrm_tasks.errors import DataError
from csrm_tasks.layouts import languages
from csrm_tasks.layouts.files import Row, check_folder, fault, json_lines, required, text_of
from csrm_tasks.layouts.landing import Landing, refused_title
from csrm_tasks.text import compose

SPLITS = ("train", "dev", "test")
SPOKEN = ("en", "fr", "es", "ko", "pt", "ja", "de", "it", "pl", "ar", "th", "vi", "id")
CODES = {"jp": "ja", "kr": "ko", "vn": "vi"}  # countries that stand for languages in such files
GRADES = {"1": "exact", "0": "irrelevant"}
ANSWERS = {"exact": "yes", "irrelevant": "no"}  # of a QC row
QUERY, ITEM, CATEGORY = "origin_query", "item_title", "category_path"


@dataclass(frozen=True)
class Judgement:
    """One row of a file; ``grade`` is empty where the row has no label."""

    row: int
    text: str  # the line itself
    id: str
    language: str  # ISO 639-1
    query: str
    item: str  # title, or category path
    grade: str


def read(folder: Path, landing: Landing) -> None:
    """Read the files that there are into ``landing``; raises :class:`DataError`."""
    names = [f"{split}_{task}.txt" for split in SPLITS for task in ("QC", "QI")]
    landing.remarks += check_folder(folder, names, (".txt",))
    there = [name for name in names if (folder / name).is_file()]
    if not there:
        raise DataError(f"{folder}: has none of {', '.join(names)}")
    for name in there:
        split, _, task = name.removesuffix(".txt").partition("_")
        landing.read[name] = 0
        for judged in rows(folder / name, task):
            landing.read[name] += 1
            why = _land(judged, task, split, landing)
            if why is not None:
                landing.leave_out(why, folder / name, judged.row, judged.text)
    tasks = {name.removesuffix(".txt").partition("_")[2].lower() for name in there}
    landing.remarks.append(f"to train on them: tasks: [{', '.join(sorted(tasks))}] (docs/TASKS.md)")


def rows(path: Path, task: str) -> Iterator[Judgement]:
    """Yield the rows of a file of task QC or QI; raises :class:`DataError` naming row and field."""
    item = ITEM if task == "QI" else CATEGORY
    for number, text, row in json_lines(path):
        found = required(path, number, row, "task").upper()
        if found != task:
            what = f"is {found!r} in a file of {task}; put the row into its own task's file"
            raise fault(path, number, "task", what)
        for field in (QUERY, item):
            if field not in row and field != ITEM:
                raise fault(path, number, field, "is missing; every row of this layout has it")
        yield Judgement(
            number, text, required(path, number, row, "id"), _language(path, number, row),
            text_of(row[QUERY]), text_of(row.get(item)), _grade(path, number, row),
        )  # fmt: skip


def _language(path: Path, number: int, row: Row) -> str:
    given = required(path, number, row, "language").lower()
    language = CODES.get(given, given)
    if language not in languages.KNOWN:
        what = f"{given!r} is no language of two letters (ISO 639-1, such as en); correct the row"
        raise fault(path, number, "language", what)
    return language


def _grade(path: Path, number: int, row: Row) -> str:
    given = row.get("label")
    text = text_of(given).strip().removesuffix(".0")
    if not text and (given is None or isinstance(given, str)):
        return ""
    if text not in GRADES:
        what = f"is {given!r}; 1 (relevant) or 0, or no label at all, is expected"
        raise fault(path, number, "label", what)
    return GRADES[text]


def _land(judged: Judgement, task: str, split: str, landing: Landing) -> str | None:
    """Land one row of QC or QI; returns why it does not, else None."""
    locale = landing.locales.get(judged.language)
    if locale is None:
        return "other_language"
    if not judged.grade:
        return "no_label"
    land = _land_category if task == "QC" else _land_item
    return land(judged, split, locale, landing)


def _land_category(judged: Judgement, split: str, locale: str, landing: Landing) -> str | None:
    if _is_foreign(judged):
        return "not_english"
    path, answer = compose(judged.item).strip(), ANSWERS[judged.grade]
    return landing.category_label(split, locale, judged.id, judged.query, path, answer)


def _land_item(judged: Judgement, split: str, locale: str, landing: Landing) -> str | None:
    title = compose(judged.item).strip()
    why = landing.refused_label(split, judged.id, judged.query) or refused_title(title)
    if why is not None:
        return why
    if _is_foreign(judged):
        return "not_english"
    product_id = f"t{text_digest(title)}"  # a letter first: digits with an e are no identifier
    if not landing.has_product(split, locale, product_id):
        landing.product(split, locale, product_id, title)
    return landing.label(split, locale, judged.id, judged.query, product_id, judged.grade)


def _is_foreign(judged: Judgement) -> bool:
    return judged.language == "en" and languages.is_plainly_not_english(judged.query)
