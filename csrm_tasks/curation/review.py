"""Flagged pairs looked at again by people: the sheet they get, and its way back as labels (A39).

The sheet is blind, like an audit's: it says neither which label was given nor what the model holds
it to be, and its rows are in no order of suspicion. What comes back lands as an ordinary delivery
of labels, each by the rater who is named; the market's consensus then decides among all raters.
"""

from __future__ import annotations

from pathlib import Path

import polars as pl

from csrm_tasks.dataset.tables import table
from csrm_tasks.errors import DataError
from csrm_tasks.ingest.reading.landing import check_day
from csrm_tasks.layouts import labels
from csrm_tasks.release.online.audits import items, read_answers, require_raters, write_tasks
from csrm_tasks.sections import Ingest

GUIDELINE = "review"  # guideline_version of the labels, by which they are found again


def write_sheets(snapshot: Path, flagged: pl.DataFrame, out: Path, ordered: bool = False) -> None:
    """Write ``review-{locale}.csv`` below ``out`` for each language of the flagged pairs.

    ``ordered``: as ``flagged`` is, what is worth most first; else in an order that says nothing.
    """
    queries = table(snapshot, "queries").select("query_id", "query").unique("query_id")
    products = table(snapshot, "products").select(
        "product_id", "locale", "title", "brand", "category"
    )
    for (locale,), own in flagged.sort("locale").group_by("locale", maintain_order=True):
        named = items(own, GUIDELINE)
        if ordered:
            keys = ["query_id", "product_id"]
            named = own.select(keys).join(named, on=keys, maintain_order="left")
        shown = named.join(queries, on="query_id", maintain_order="left")
        here = products.filter(pl.col("locale") == locale).drop("locale")
        rows = shown.join(here, on="product_id", maintain_order="left")
        write_tasks(rows.drop("query_id", "product_id").to_dicts(), sheet_path(out, str(locale)))


def sheet_path(folder: Path, locale: str) -> Path:
    """Return where the sheet of a language lies in the filter's artifact."""
    return folder / f"review-{locale}.csv"


def read_review(path: Path, sent: Path, decisions: pl.DataFrame, locale: str) -> pl.DataFrame:
    """Read a filled-in sheet: query_id, product_id, grade, rater_id, one row per pair and rater.

    ``sent``: the sheet as it was written, of ``decisions`` (DECISIONS). Rows without a grade are
    not judged yet. Raises :class:`DataError` naming file, row or item, and field.
    """
    flagged = decisions.filter((pl.col("action") != "keep") & (pl.col("locale") == locale))
    known = items(flagged, GUIDELINE)
    answers = read_answers(path, known, locale, sent).unique(maintain_order=True)
    require_raters(path, "item", answers)
    return known.join(answers, on="item", maintain_order="left").drop("item")


def land(
    folder: Path, day: str, answers: pl.DataFrame, queries: pl.DataFrame, ingest: Ingest
) -> tuple[Path, bool]:
    """Put answers (see :func:`read_review`) among a day's deliveries; return the file, and if new.

    ``folder``: a market's landing zone; ``queries``: query_id, query, locale; the rest is
    :func:`csrm_tasks.layouts.labels.land`. Raises :class:`DataError` where nothing was judged.
    """
    if answers.is_empty():
        raise DataError("the sheet has no grade yet: fill in 'grade' and 'rater_id'")
    named = answers.join(queries, on="query_id").sort("query_id", "product_id", "rater_id")
    (locale,) = named["locale"].unique()
    columns = ("query_id", "query", "product_id", "grade", "rater_id")
    rows = [
        (
            (query_id, product_id, rater),
            {
                "query": query, "product_id": product_id, "grade": grade, "rater_id": rater,
                "guideline_version": GUIDELINE,
            },
        )
        for query_id, query, product_id, grade, rater in named.select(columns).iter_rows()
    ]  # fmt: skip
    return labels.land(folder / check_day(day) / locale, GUIDELINE, rows, ingest)
