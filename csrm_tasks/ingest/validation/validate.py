"""Judging a batch: values are parsed column by column, then checked by the contract's schema.

A row's reason is the first rule it breaks, in the order of the contract's columns. Rows that are
about something else (:mod:`csrm_tasks.ingest.validation.ignored`) are counted and break none.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import date, timedelta

import polars as pl

from csrm_tasks import clocks
from csrm_tasks.ingest.contract.contracts import (
    Column,
    Contract,
    Reason,
    with_grades,
)
from csrm_tasks.ingest.contract.identity import refuse
from csrm_tasks.ingest.reading.records import FAULT, UNREAD, Records
from csrm_tasks.ingest.reading.values import digits, inexact
from csrm_tasks.ingest.validation.ignored import Notes, apart, marked, without_text
from csrm_tasks.ingest.validation.looks import Look, look
from csrm_tasks.ingest.validation.schemas import Times, first_failures, is_parsed, parsed, schema_of
from csrm_tasks.ingest.validation.times import parse_times
from csrm_tasks.sections import Ingest
from csrm_tasks.text import INVISIBLE, LEVEL_SEPARATOR, composed_frame

REJECTED: dict[str, type[pl.DataType]] = {
    "row": pl.Int64, "reason": pl.String, "detail": pl.String, "raw": pl.Binary,
}  # fmt: skip
# Where a market has not said its zone, which then is UTC, its day may end as late as UTC-12's and
# begin as early as UTC+14's; where it has, sessions that go on after midnight are still the day's.
AFTER, BEFORE = timedelta(hours=12), timedelta(hours=14)
DETAIL = 200  # characters
# White space and what nobody can see: a query of nothing else asks for nothing.
UNSEEN = "".join(c for c in map(chr, range(0x10000)) if c.isspace()) + "".join(map(chr, INVISIBLE))


@dataclass(frozen=True)
class ValidationResult:
    """Rows that keep the contract, rows that do not, and rows that are ignored: every row of the
    batch. Of ignored searches those that events may refer to are among the clean ones.
    """

    clean: pl.DataFrame  # Contract.schema
    rejected: pl.DataFrame  # REJECTED
    fault: str | None = None  # the file as a whole is wrong: its day must not be published
    header: bytes = b""  # a CSV file's first line
    ignored: int = 0  # rows that are in neither
    notes: Notes = field(default_factory=Notes)


def validate_batch(
    records: Records, contract: Contract, day: str, terms: Ingest, zone: str = "UTC"
) -> ValidationResult:
    """Split the rows of a batch by the contract and the market's terms.

    No time of a delivery of ``day`` may be later than half a day after its end in ``zone``, and no
    search or event more than ``terms.late_days`` earlier than its beginning. Texts and identifiers
    are composed first (Unicode NFC).
    """
    records = replace(records, frame=composed_frame(records.frame))
    contract = with_grades(contract, terms.complement, terms.grades)
    if records.missing:
        return _all_rejected(records, contract)
    times = times_of(day, terms.late_days, zone)
    frame, looks = _texts(records.frame, contract, terms)
    notes = Notes()
    frame, besides = apart(frame, contract, terms, notes)
    notes.unread(frame[UNREAD])
    readable = frame.filter(pl.col(FAULT).is_null()) if frame[FAULT].null_count() else frame.clear()
    readable = pl.concat([readable, marked(besides, contract)]).sort("row")
    values = readable.with_columns(
        _value(c, readable[c.name]).alias(parsed(c.name)) for c in contract.columns if is_parsed(c)
    )
    values = _unreadable_left_out(values, contract, notes)
    values = values.with_columns(_spared(c) for c in contract.columns if c.unless)
    failures = first_failures(schema_of(contract, times, looks), values)
    unread = frame.filter(pl.col(FAULT).is_not_null())
    verdicts = pl.concat([
        failures.select(values["row"].gather(failures["index"]), "reason", "detail"),
        unread.select("row", pl.col(FAULT).alias("reason"), pl.lit("").alias("detail")),
        *_rounded(values, contract),
    ]).unique("row", keep="first", maintain_order=True)  # fmt: skip
    kept = ~values["row"].is_in(verdicts["row"].implode())
    clean = values.filter(kept).select("row", *(_clean(c) for c in contract.columns if c.kept))
    wrong = verdicts.join(besides, on="row", how="anti").sort("row")
    clean = without_text(clean, besides)
    ignored = besides.height - clean.join(besides, on="row", how="semi").height
    return ValidationResult(clean, _rejected(wrong, records), ignored=ignored, notes=notes)


def _texts(
    frame: pl.DataFrame, contract: Contract, terms: Ingest
) -> tuple[pl.DataFrame, dict[str, Look]]:
    """Return every column's values in the form in which they are compared and stored, and what a
    look at the columns of texts told.
    """
    looks = {c.name: look(frame[c.name]) for c in contract.columns if c.holds != "list"}
    frame = frame.with_columns(
        _trimmed(c) for c in contract.columns if _may_change(c, frame[c.name], looks)
    )
    numbers = [c.name for c in contract.columns if c.holds != "text" or c.vocabulary is not None]
    frame = frame.with_columns(digits(frame[n]) for n in numbers if n in looks and looks[n].decimal)
    has_path = contract.kind in ("catalogue", "query_categories")
    if has_path and terms.category_separator != LEVEL_SEPARATOR:
        levels = pl.col("category").str.split(terms.category_separator)
        frame = frame.with_columns(levels.map_batches(_path, return_dtype=pl.String))
        looks["category"] = look(frame["category"])
    return frame, looks


def _unreadable_left_out(values: pl.DataFrame, contract: Contract, notes: Notes) -> pl.DataFrame:
    """Leave an optional number out where there is none: its row says enough without."""
    for column in (c for c in contract.columns if not c.required):
        texts = values[column.name]
        if column.holds == "integer":
            odd = texts.is_not_null() & values[parsed(column.name)].is_null()
        elif column.holds == "identifier":
            odd = inexact(texts)
        else:
            continue
        if odd.any():
            notes.count("unreadable", column.name, int(odd.sum()))
            values = values.with_columns(texts.set(odd, None))
    return values


def _rounded(values: pl.DataFrame, contract: Contract) -> Iterator[pl.DataFrame]:
    """Yield verdicts on rows with a required identifier that may stand for several."""
    for column in (c for c in contract.columns if c.required and c.holds == "identifier"):
        odd = inexact(values[column.name])
        if odd.any():
            yield refuse(values.filter(odd), Reason.TYPE, column.name)


def times_of(day: str, late_days: int, zone: str) -> Times:
    """Return between which moments (UTC) a day's times lie; a day may have 23 or 25 hours."""
    named = date.fromisoformat(day)
    first = clocks.begins(named - timedelta(days=late_days), zone)
    last = clocks.ends(named, zone)
    return Times(first - BEFORE, last + AFTER)


def unreadable(contract: Contract, why: str, head: bytes) -> ValidationResult:
    """Return the verdict on a file without rows: itself, as row 0."""
    row = (0, str(Reason.UNREADABLE), why[:DETAIL], head)
    rejected = pl.DataFrame([row], schema=REJECTED, orient="row")
    return ValidationResult(pl.DataFrame(schema=contract.schema), rejected, str(Reason.UNREADABLE))


def _all_rejected(records: Records, contract: Contract) -> ValidationResult:
    reason = str(Reason.MISSING_COLUMN)
    detail = f"{records.missing[0]} (the file has {', '.join(records.columns)})"
    detail = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in detail[:DETAIL])
    verdicts = records.frame.select(
        "row", pl.lit(reason).alias("reason"), pl.lit(detail).alias("detail")
    )
    return ValidationResult(
        pl.DataFrame(schema=contract.schema), _rejected(verdicts, records), reason
    )


def _rejected(verdicts: pl.DataFrame, records: Records) -> pl.DataFrame:
    raw = pl.Series("raw", records.raw_of(verdicts["row"].to_list()), dtype=pl.Binary)
    return verdicts.with_columns(raw).cast(REJECTED)  # type: ignore[arg-type]


def _may_change(column: Column, values: pl.Series, looks: Mapping[str, Look]) -> bool:
    """Return whether trimming does anything; items of lists are many, and hardly any needs it."""
    if column.name in looks:
        return not looks[column.name].trimmed
    return bool(values.explode().str.contains(r"^$|^[^!-~]|[^!-~]$|\.0+$").any())


def _trimmed(column: Column) -> pl.Expr:
    if column.holds == "list":
        whole = pl.element().str.strip_chars(UNSEEN).str.replace(r"^(-?\d{1,15})\.0+$", "$1")
        items = whole.replace("", None)
        return pl.col(column.name).list.eval(items)
    return pl.col(column.name).str.strip_chars(UNSEEN).replace("", None)


def _path(levels: pl.Series) -> pl.Series:
    """Join a category's levels as everywhere else, without empty ones."""
    names = levels.list.eval(pl.element().str.strip_chars(UNSEEN).replace("", None).drop_nulls())
    return names.list.join(LEVEL_SEPARATOR).replace("", None)


def _value(column: Column, texts: pl.Series) -> pl.Series:
    if column.vocabulary is not None:
        return texts.str.to_lowercase().replace_strict(
            column.vocabulary, default=None, return_dtype=column.dtype
        )
    if column.holds == "integer":
        return texts.cast(pl.Int64, strict=False)
    return parse_times(texts)


def _spared(column: Column) -> pl.Expr:
    """Let a required value be empty where another column says that there need be none."""
    absent = pl.col(column.name).is_null() & (pl.col(parsed(column.unless)) == 1)
    return pl.when(absent).then(pl.lit("")).otherwise(column.name).alias(column.name)


def _clean(column: Column) -> pl.Expr:
    if is_parsed(column):
        value = pl.col(parsed(column.name)).alias(column.name)
        return value if column.default is None else value.fill_null(column.default)
    if column.holds == "list" or column.required:
        return pl.col(column.name)
    return pl.col(column.name).fill_null("")
