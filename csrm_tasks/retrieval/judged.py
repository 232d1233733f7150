"""Judgements of retrieved titles by people (A26): the sheet that they fill in, and its reading.

Files lie in ``{landing}/{market}/judged/{locale}/``, as CSV or Parquet, with the columns
``query``, ``product_id`` and ``correct`` (yes/no, true/false or 1/0; empty: not judged), and
``rater_id`` where several people judge. They measure; no threshold and no model is chosen by them.

A person's latest answer counts: files that were accepted are numbered in that order and come after
those that were laid there by hand (by name). Without ``rater_id``, what was accepted is one
person's, and what a file laid there by hand says is another's for each file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import polars as pl

from csrm_tasks.artifacts import file_digest
from csrm_tasks.errors import DataError
from csrm_tasks.records import Schema
from csrm_tasks.retrieval.rqa import Title
from csrm_tasks.spreadsheets import Row, read_sheet, refuse_damaged, word, write_sheet
from csrm_tasks.text import composed_frame, query_id

ANSWERS: Schema = {"query_id": pl.String, "product_id": pl.String, "correct": pl.Boolean}
SHEET = ("query", "product_id", "title", "correct", "rater_id")
KEYS = ("query", "product_id")
NEEDED = (*KEYS, "correct")
YES, NO = ("yes", "y", "true", "1", "1.0"), ("no", "n", "false", "0", "0.0")
MEANING = dict.fromkeys(YES, True) | dict.fromkeys(NO, False)
ACCEPTED = re.compile(r"(\d{6})-[0-9a-f]{16}\.csv")


def judged_files(landing: Path, market: str) -> list[Path]:
    """Return the files of judgements by locale, in the order in which they count."""
    folder = landing / market / "judged"
    files = (p for p in folder.glob("*/*") if p.suffix.lower() in (".csv", ".parquet"))
    shown = (p for p in files if not p.name.startswith((".", "~")))  # what a program keeps open
    return sorted(shown, key=lambda p: (p.parent.name, _number(p), p.name))


def _number(path: Path) -> int:
    """Return where an accepted file stands, from 1; 0 of one that was laid there by hand."""
    match = ACCEPTED.fullmatch(path.name)
    return int(match[1]) if match else 0


def judged_identity(landing: Path, market: str) -> list[list[str]]:
    """Return what a step that reads them depends on: locale, name and digest of each."""
    return [[p.parent.name, p.name, file_digest(p)] for p in judged_files(landing, market)]


def read_judged(landing: Path, market: str, locale: str) -> pl.DataFrame:
    """Return ANSWERS of one locale; of several raters the majority, half counts as correct.

    Raises :class:`DataError` naming file, row and field of what cannot be read.
    """
    votes: dict[tuple[str, str, str], bool] = {}
    for path in (p for p in judged_files(landing, market) if p.parent.name == locale):
        nameless = "" if _number(path) else path.name
        for answer in _read(path, locale):
            rater = f"rater {answer.rater_id}" if answer.rater_id else nameless
            votes[query_id(locale, answer.query), answer.product_id, rater] = answer.correct
    rows = [(query, product, correct) for (query, product, _), correct in votes.items()]
    every = pl.DataFrame(rows, schema=ANSWERS, orient="row")
    voted = every.group_by("query_id", "product_id").agg(pl.col("correct").mean() >= 0.5)
    return voted.sort("query_id", "product_id")


def accept(landing: Path, market: str, locale: str, path: Path) -> tuple[Path, int]:
    """Check a filled-in sheet and put it last among the judgements; return where, and its answers.

    The same sheet again is there already. Raises :class:`DataError` as :func:`read_judged` does,
    and for a sheet without any answer.
    """
    answers = _read(path, locale)
    if not answers:
        raise DataError(f"{path}: no row has an answer in field 'correct'; write yes or no")
    folder = landing / market / "judged" / locale
    there = [p for p in judged_files(landing, market) if p.parent == folder and _number(p)]
    digest = file_digest(path)[:16]
    if there and there[-1].stem.endswith(digest):
        return there[-1], len(answers)
    number = _number(there[-1]) + 1 if there else 1
    target = folder / f"{number:06d}-{digest}.csv"
    rows = ({**asdict(a), "correct": "yes" if a.correct else "no"} for a in answers)
    write_sheet(target, [f.name for f in fields(Answer)], rows, KEYS)
    return target, len(answers)


@dataclass(frozen=True)
class Answer:
    """What a person said of one retrieved title."""

    query: str  # as it was shown
    product_id: str
    correct: bool
    rater_id: str  # "": not said


def _read(path: Path, locale: str) -> list[Answer]:
    """Return the answers of a sheet in its order; a row without one is not judged yet."""
    sheet = _parquet_rows if path.suffix.lower() == ".parquet" else read_sheet
    answers = []
    for row in sheet(path, NEEDED, locale):
        said = word(row.cells["correct"])
        if not said:
            continue
        if said not in MEANING:
            raise DataError(
                f"{path}: row {row.number}, field 'correct' is {row.cells['correct']!r}: "
                "write yes or no, or leave it empty"
            )
        refuse_damaged(path, row, (*KEYS, "rater_id"))
        query, product_id = (row.cells[c] for c in KEYS)
        rater = row.cells.get("rater_id", "").strip()
        answers.append(Answer(query, product_id, MEANING[said], rater))
    return answers


def _parquet_rows(path: Path, required: Sequence[str], _: str) -> list[Row]:
    try:
        frame = pl.read_parquet(path)
    except pl.exceptions.PolarsError as e:
        raise DataError(f"{path} is no Parquet file: write it again") from e
    if missing := [c for c in required if c not in frame.columns]:
        raise DataError(f"{path}: column {missing[0]!r} is missing; a sheet has {', '.join(SHEET)}")
    known = frame.select(c for c in SHEET if c in frame.columns)
    texts = composed_frame(known.cast(pl.String).fill_null(""))
    return [Row(n, cells) for n, cells in enumerate(texts.iter_rows(named=True), start=2)]


def judged_accuracy(
    titles_of: Mapping[str, Sequence[Title]], answers: pl.DataFrame
) -> tuple[float | None, int]:
    """Return the share of judged retrieved titles that are correct (None of none), and how many."""
    known = {(q, p): c for q, p, c in answers.iter_rows()}
    marks = [known[q, t.product_id] for q, ts in titles_of.items() for t in ts
             if (q, t.product_id) in known]  # fmt: skip
    return (sum(marks) / len(marks) if marks else None), len(marks)


def sheet(rqa: pl.DataFrame, queries: pl.DataFrame, answers: pl.DataFrame) -> pl.DataFrame:
    """Return the rows for people to judge: retrieved titles (RQA) of ``queries`` not yet judged."""
    rows = (
        rqa.explode("titles", "product_ids", "scores")
        .rename({"titles": "title", "product_ids": "product_id"})
        .drop_nulls("product_id")
        .join(queries.select("query_id", "query"), on="query_id")
        .join(answers, on=["query_id", "product_id"], how="anti")
    )
    blank = {"correct": pl.lit(""), "rater_id": pl.lit("")}
    return rows.sort("query", "product_id").with_columns(**blank).select(list(SHEET))


def write_judging_sheet(rows: pl.DataFrame, path: Path) -> None:
    """Write what :func:`sheet` found for people to fill in."""
    write_sheet(path, SHEET, rows.to_dicts(), KEYS)
