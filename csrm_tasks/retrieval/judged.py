"""Judgements of retrieved titles by people (A26): the sheet that they fill in, and its reading.

Files lie in ``{landing}/{market}/judged/{locale}/``, as CSV or Parquet, with the columns
``query``, ``product_id`` and ``correct`` (yes/no, true/false or 1/0; empty: not judged). They
measure; no threshold and no model is chosen by them.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from csrm_tasks.artifacts import file_digest
from csrm_tasks.dataset.text import normalised, query_ids
from csrm_tasks.errors import DataError
from csrm_tasks.records import Schema
from csrm_tasks.retrieval.rqa import Title

ANSWERS: Schema = {"query_id": pl.String, "product_id": pl.String, "correct": pl.Boolean}
SHEET = ("query", "product_id", "title", "correct")
MEANING = {"yes": True, "true": True, "1": True, "no": False, "false": False, "0": False}


def judged_files(landing: Path, market: str) -> list[Path]:
    """Return the files of judgements, sorted."""
    folder = landing / market / "judged"
    return sorted(p for p in folder.glob("*/*") if p.suffix in (".csv", ".parquet"))


def judged_identity(landing: Path, market: str) -> list[list[str]]:
    """Return what a step that reads them depends on: locale, name and digest of each."""
    return [[p.parent.name, p.name, file_digest(p)] for p in judged_files(landing, market)]


def read_judged(landing: Path, market: str, locale: str) -> pl.DataFrame:
    """Return ANSWERS of one locale; of several raters the majority, half counts as correct.

    Raises :class:`DataError` naming file, row and field of what cannot be read.
    """
    files = [p for p in judged_files(landing, market) if p.parent.name == locale]
    frames = [_read(path, locale) for path in files]
    every = pl.concat([pl.DataFrame(schema=ANSWERS), *frames])
    voted = every.group_by("query_id", "product_id").agg(pl.col("correct").mean() >= 0.5)
    return voted.sort("query_id", "product_id")


def accept(landing: Path, market: str, locale: str, path: Path) -> tuple[Path, int]:
    """Check a filled-in sheet and put it among the judgements; return where, and its answers.

    The same sheet again is there already. Raises :class:`DataError` as :func:`read_judged` does,
    and for a sheet without any answer.
    """
    answers = len(_read(path, locale))
    if not answers:
        raise DataError(f"{path}: no row has an answer in field 'correct'; write yes or no")
    target = landing / market / "judged" / locale / f"{file_digest(path)[:16]}{path.suffix}"
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_suffix(".part")
    shutil.copyfile(path, part)
    part.replace(target)
    return target, answers


def _read(path: Path, locale: str) -> pl.DataFrame:
    csv = path.suffix == ".csv"
    frame = pl.read_csv(path, infer_schema=False) if csv else pl.read_parquet(path)
    for column in ("query", "product_id", "correct"):
        if column not in frame.columns:
            raise DataError(f"{path}: column {column!r} is missing; a sheet has {', '.join(SHEET)}")
    said = frame["correct"].cast(pl.String).str.strip_chars().str.to_lowercase().fill_null("")
    answer = said.replace_strict(MEANING, default=None, return_dtype=pl.Boolean)
    wrong = (answer.is_null() & (said != "")).arg_true()
    if len(wrong):
        row = int(wrong[0])
        raise DataError(
            f"{path}: row {row + 2}, field 'correct' is {frame['correct'][row]!r}: "
            "write yes or no, or leave it empty"
        )
    named = frame.with_columns(
        query_ids(locale, normalised(frame["query"])).alias("query_id"), answer.alias("correct")
    )
    return named.filter(pl.col("correct").is_not_null()).select(list(ANSWERS))


def judged_accuracy(
    found: Mapping[str, Sequence[Title]], answers: pl.DataFrame
) -> tuple[float | None, int]:
    """Return the share of judged retrieved titles that are correct (None of none), and how many."""
    known = {(q, p): c for q, p, c in answers.iter_rows()}
    marks = [known[q, t.product_id] for q, ts in found.items() for t in ts
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
    blank: Any = pl.lit("").alias("correct")
    return rows.sort("query", "product_id").with_columns(blank).select(list(SHEET))
