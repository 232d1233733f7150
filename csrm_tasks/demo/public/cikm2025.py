"""``csrm study cikm2025``: the ladder on AnalytiCup's files, and the competition's submission.

The files land as a market, and the training split's day alone is taken in: models and thresholds
come of it, and dev of it is drawn by query. The public dev and test rows are read from the files as
they are, every row of every language, and choose nothing. Where the test files lack labels, the
model that is best on our own dev answers them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from csrm_tasks.demo.market.files import jsonl_bytes, put
from csrm_tasks.demo.public import tables
from csrm_tasks.demo.public.ladder import Rung, Study, judged, left_to_the_week
from csrm_tasks.demo.public.published import CIKM_FIGURES
from csrm_tasks.errors import DataError
from csrm_tasks.layouts import cikm2025
from csrm_tasks.layouts.languages import locale_of
from csrm_tasks.markets import MarketConfig
from csrm_tasks.records import Schema
from csrm_tasks.sections.tasks import BINARY
from csrm_tasks.settings import Settings
from csrm_tasks.steps.night import take_in
from csrm_tasks.steps.running import run_step
from csrm_tasks.text import compose, normalised, query_ids

JUDGED = ("dev", "test")
ROWS: Schema = {
    "task": pl.String, "locale": pl.String, "query": pl.String, "item": pl.String,
    "grade": pl.Int8,  # null where the row has no label
    "line": pl.String,  # as it stands in the file
}  # fmt: skip
GRADES = {"exact": 1, "irrelevant": 0, "": None}


def run_cikm2025(
    folder: Path, market: MarketConfig, settings: Settings, day: str, out: Path
) -> Iterator[str]:
    """Yield the report, part by part; submissions are written into ``out``.

    The import has been done, and ``day`` is the training split's.
    """
    market = with_tasks(folder, market)
    take_in(market, settings, day)
    snapshot = run_step("snapshot", market, {}, {"stage": 2, "until": day}, settings)
    study = Study(market, settings, snapshot)
    locales = locale_of(market.locales)
    splits = {s: read_rows(folder, s, market.tasks, locales) for s in JUDGED}
    rows = pl.concat([own.with_columns(split=pl.lit(s)) for s, own in splits.items()])
    if rows.is_empty():
        raise DataError(f"{folder}: has neither dev nor test files of {', '.join(market.tasks)}")
    rungs = study.rungs(rows.drop("split"))
    yield _head(market, rows)
    for split in JUDGED:
        mask = rows["split"] == split
        yield from _judged(split, rows.filter(mask), [r.only(mask) for r in rungs], market)
    yield tables.published_table("cikm2025", CIKM_FIGURES)
    mask = rows["split"] == "test"
    unlabelled = rows.filter(mask, pl.col("grade").is_null()).height
    if unlabelled:
        best = max(rungs, key=lambda r: r.dev_f1)
        for path in write_submission(rows.filter(mask), best.only(mask), out):
            yield f"{path}: by {best.name}, the best on our own dev ({unlabelled:,} without label)"


def with_tasks(folder: Path, market: MarketConfig) -> MarketConfig:
    """Return the market with the binary tasks that have training rows, among those it names.

    A market that names none of them learns all there are.
    """
    there = [t for t in BINARY if (folder / f"train_{t.upper()}.txt").is_file()]
    wanted = [t for t in there if t in market.binary_tasks] if market.binary_tasks else there
    if not wanted:
        asked = market.binary_tasks or BINARY
        raise DataError(f"{folder}: has no training file of {', '.join(asked)}")
    return market.model_copy(update={"tasks": tuple(wanted)})


def read_rows(
    folder: Path, split: str, tasks: Sequence[str], locales: Mapping[str, str]
) -> pl.DataFrame:
    """Return ROWS and ``query_id`` of a split's files, in their order, first QC's, then QI's.

    A language that the market does not have goes by its own name: a model reads it all the same.
    """
    found: list[tuple[Any, ...]] = []
    for task in tasks:
        path = folder / f"{split}_{task.upper()}.txt"
        if not path.is_file():
            continue
        for row in cikm2025.rows(path, task.upper()):
            locale = locales.get(row.language, row.language)
            texts = (_readable(row.query), _readable(row.item))
            found.append((task, locale, *texts, GRADES[row.grade], row.text))
    rows = pl.DataFrame(found, ROWS, orient="row")
    return rows.with_columns(query_ids("*", normalised(rows["query"])).alias("query_id"))


def _readable(text: str) -> str:
    """Return a text composed; half a UTF-16 character, which JSON can say, is a question mark."""
    return compose(text.encode("utf-8", "replace").decode("utf-8")).strip()


def _head(market: MarketConfig, rows: pl.DataFrame) -> str:
    learnt = ", ".join((*market.source_locales, market.target_locale))
    later = left_to_the_week(market)
    note = f"\nleft to csrm_retrain, which brings them: {', '.join(later)}" if later else ""
    counts = "; ".join(
        f"{split}: {n:,} rows, {labelled:,} labelled"
        for split, n, labelled in rows.group_by("split", maintain_order=True)
        .agg(pl.len(), pl.col("grade").count().alias("labelled"))
        .iter_rows()
    )
    return f"learnt: {learnt}; LLM: {market.llm.base}, {market.llm.steps} steps\n{counts}{note}\n"


def _judged(
    split: str, rows: pl.DataFrame, rungs: Sequence[Rung], market: MarketConfig
) -> Iterator[str]:
    """Yield the tables of one split, where it has labels."""
    if rows["grade"].count() == 0:
        yield f"public {split}: no row has a label\n"
        return
    found = [(rung.name, judged(rows, rung)) for rung in rungs]
    absent = sorted(set(rows["locale"]) - {*market.source_locales, market.target_locale})
    for task in found[0][1]["by_task"]:
        yield f"public {split}: {tables.by_language(task, found, absent)}"
    means = [(name, figures["mean_f1"]) for name, figures in found]
    yield f"public {split}, mean F1 of {' and '.join(t.upper() for t in market.tasks)}: " + (
        "; ".join(f"{name} {tables.number(value)}" for name, value in means) + "\n"
    )


def write_submission(rows: pl.DataFrame, rung: Rung, out: Path) -> list[Path]:
    """Write ``submit_{task}.txt`` of each task: of every row its ``id`` and ``prediction``.

    One JSON object a line, in the order of the test file, the identifier as it was given.
    """
    written = []
    for (task,), own in rung.said(rows).group_by("task", maintain_order=True):
        records = (
            {"id": json.loads(line)["id"], "prediction": said}
            for line, said in own.select("line", "said").iter_rows()
        )
        path = out / f"submit_{str(task).upper()}.txt"
        put(path, jsonl_bytes(records))
        written.append(path)
    return written
