"""Quepid: a book as JSON, with reasons and what cannot be judged, or as CSV, a column a rater.

The JSON says its scale: ``scale_with_labels`` of the book, or of its scorer in older exports. The
CSV has neither that nor reasons, and an empty cell in it is one not judged as well as one that
cannot be; of two raters of one name each has a column. Ratings come as 3.0 as well as 3.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from pathlib import Path
from typing import Any

from csrm_tasks.errors import DataError
from csrm_tasks.judgements.formats.book import (
    WORDS,
    Asked,
    Book,
    Judgement,
    Page,
    Rated,
    declared,
    ours,
)
from csrm_tasks.judgements.formats.fields import (
    Json,
    identifier,
    mapping,
    objects,
    query_text,
    read_json,
    word_of,
    write_document,
)
from csrm_tasks.layouts.files import fault, lines, text_of

NOBODY = ("", "Unknown", "rating")  # columns of ratings that are nobody's; and our own titles
FORMULA = ("=", "+", "-", "@")  # Quepid writes a blank before such a text


def read(path: Path, _asked: Asked) -> Book:
    """Read a book, JSON or CSV; raises :class:`DataError` naming file, entry and field."""
    first = next((text for _, text in lines(path)), "")
    if not first.strip():
        raise DataError(f"{path}: is empty; export the book again")
    return _read_json(path) if first.lstrip()[:1] in "{[" else _read_csv(path)


def _read_json(path: Path) -> Book:
    book = mapping(path, None, read_json(path), "book")
    if "query_doc_pairs" not in book:
        raise DataError(
            f"{path}: has no query_doc_pairs; export the book, as JSON or CSV, not a case"
        )
    rated: list[Rated] = []
    passed: Counter[str] = Counter()
    for pair in objects(path, book["query_doc_pairs"], "query_doc_pairs"):
        row = len(rated) + 1
        query = query_text(path, row, pair.get("query_text"), "query_text")
        product = identifier(path, row, pair.get("doc_id"), "doc_id")
        for one in objects(path, pair.get("judgements"), "judgements"):
            rating, unrateable = word_of(one.get("rating")), one.get("unrateable") is True
            if not rating and not unrateable:
                passed["not judged yet"] += 1
                continue
            rated.append(
                Rated(
                    len(rated) + 1, query, product, "" if unrateable else rating,
                    text_of(one.get("user_email")).strip(),
                    text_of(one.get("explanation")).strip(), unrateable,
                )
            )  # fmt: skip
    return Book(rated, _scale(book), ours(book.get("name")), passed)


def _scale(book: Json) -> dict[str, str]:
    """Return rating → label, of the book or of its scorer."""
    scorer = book.get("scorer")
    for place in (book, scorer if isinstance(scorer, dict) else {}):
        labels = place.get("scale_with_labels")
        if isinstance(labels, dict) and labels:
            return {word_of(rating): text_of(label).strip() for rating, label in labels.items()}
    return declared(book.get("name"))


def _read_csv(path: Path) -> Book:
    text = "\n".join(line for _, line in lines(path))
    rows: list[list[str]] = []
    try:
        rows.extend(csv.reader(io.StringIO(text), strict=True))  # keeps those before a fault
    except csv.Error as e:  # by the end of the file, or by a limit that is the whole process's
        what = f"cannot be read ({e}); look for a quote without its other"
        raise fault(path, len(rows) + 1, "", what) from e
    header = [name.strip() for name in rows[0]]
    if [name.lower() for name in header[:2]] != ["query", "docid"]:
        have = ", ".join(header)[:200]
        raise fault(path, 1, "", f"the header is {have}; query,docid and a column a rater expected")
    raters = _raters(header[2:])
    rated: list[Rated] = []
    for number, cells in enumerate(rows[1:], 2):
        if len(cells) != len(header):
            what = f"has {len(cells)} fields and the header {len(header)}; mend the row"
            raise fault(path, number, "", what)
        query = query_text(path, number, cells[0], "query")
        product = identifier(path, number, cells[1], "docid")
        for rater, cell in zip(raters, cells[2:], strict=True):
            if rating := word_of(cell):
                rated.append(Rated(len(rated) + 1, query, product, rating, rater))
    return Book(rated, {}, ours(*header))


def _raters(names: list[str]) -> list[str]:
    """Return whom the columns belong to: one of a name that was there already is somebody else."""
    seen: Counter[str] = Counter()
    found = []
    for name in names:
        seen[name] += 1
        again = f"{name}~{seen[name]}" if seen[name] > 1 else name
        found.append("" if name in NOBODY or ours(name) else again)
    return found


def write(page: Page, folder: Path) -> list[Path]:
    """Write a book as JSON; a judgement without a rater has no user, which Quepid may not know."""
    pairs: dict[tuple[str, str], list[Judgement]] = {}
    for one in page.judgements:
        pairs.setdefault((one.query, one.product_id), []).append(one)
    book = {
        "name": page.title,
        "show_rank": False,
        "support_implicit_judgements": False,
        "scale": [int(r) if r.isdecimal() else r for _, r in sorted(page.ratings.items())],
        "scale_with_labels": {r: WORDS[g].capitalize() for g, r in sorted(page.ratings.items())},
        "query_doc_pairs": [
            {
                "query_text": query, "doc_id": product, "position": None,
                "document_fields": dict(page.texts.get(product, {})),
                "judgements": [_judgement(page, one) for one in ones],
            }
            for (query, product), ones in pairs.items()
        ],
    }  # fmt: skip
    return [write_document(folder / "book.json", book)]


def _judgement(page: Page, one: Judgement) -> dict[str, Any]:
    rating = None if one.grade is None else page.rating(one)
    said: dict[str, Any] = {
        "rating": float(rating) if rating and rating.isdecimal() else rating,
        "unrateable": one.grade is None,
        "judge_later": False,
    }
    if one.rater:
        said["user_email"] = one.rater
    return said | {"explanation": one.explanation or None}


def write_csv(page: Page, folder: Path) -> list[Path]:
    """Write a book as CSV; what cannot be judged has an empty cell."""
    raters = sorted({one.rater for one in page.judgements})
    cells: dict[tuple[str, str], dict[str, list[str]]] = {}
    for one in page.judgements:
        said = cells.setdefault((one.query, one.product_id), {})
        said.setdefault(one.rater, []).append("" if one.grade is None else page.rating(one))
    path = folder / "book.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["query", "docid", *(_column(page, rater) for rater in raters)])
        for (query, product), said in cells.items():
            query = f" {query}" if query.startswith(FORMULA) else query
            writer.writerow([query, product, *(said.get(r, [""])[-1] for r in raters)])
    return [path]


def _column(page: Page, rater: str) -> str:
    return rater or page.title
