"""Judging a batch: values are parsed column by column, then checked by the contract's schema.

A row's reason is the first rule it breaks, in the order of the contract's columns.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, time, timedelta

import polars as pl

from csrm_tasks.dataset.text import INVISIBLE, composed_frame
from csrm_tasks.ingest.contracts import Column, Contract, Reason, with_complement
from csrm_tasks.ingest.records import FAULT, Records
from csrm_tasks.ingest.schemas import Times, first_failures, is_parsed, parsed, schema_of
from csrm_tasks.ingest.times import parse_times
from csrm_tasks.sections import Ingest

REJECTED: dict[str, type[pl.DataType]] = {
    "row": pl.Int64, "reason": pl.String, "detail": pl.String, "raw": pl.Binary,
}  # fmt: skip
DAY_END = timedelta(hours=36)  # a day ends last at UTC-12
DAY_START = timedelta(hours=-14)  # and begins first at UTC+14
DETAIL = 200  # characters
# White space and what nobody can see: a query of nothing else asks for nothing.
UNSEEN = "".join(c for c in map(chr, range(0x10000)) if c.isspace() or ord(c) in INVISIBLE)


@dataclass(frozen=True)
class Judged:
    """Rows that keep the contract, and rows that do not: together every row of the batch."""

    clean: pl.DataFrame  # Contract.schema
    rejected: pl.DataFrame  # REJECTED
    fault: str | None = None  # the file as a whole is wrong: its day must not be published
    header: bytes = b""  # a CSV file's first line


def judge(records: Records, contract: Contract, day: str, terms: Ingest) -> Judged:
    """Split the rows of a batch by the contract and the market's terms.

    No time of a delivery of ``day`` may be later than that day's end anywhere on Earth, and no
    search or event more than ``terms.late_days`` earlier than its beginning. Texts and identifiers
    are composed first (Unicode NFC).
    """
    records = replace(records, frame=composed_frame(records.frame))
    contract = with_complement(contract, terms.complement)
    if records.missing:
        return _all_rejected(records, contract)
    midnight = datetime.combine(date.fromisoformat(day), time(), UTC)
    times = Times(midnight + DAY_START - timedelta(days=terms.late_days), midnight + DAY_END)
    frame = records.frame.with_columns(_trimmed(c.name) for c in contract.columns)
    readable = frame.filter(pl.col(FAULT).is_null()) if frame[FAULT].null_count() else frame.clear()
    values = readable.with_columns(
        _value(c, readable[c.name]).alias(parsed(c.name)) for c in contract.columns if is_parsed(c)
    )
    failures = first_failures(schema_of(contract, times), values)
    unread = frame.filter(pl.col(FAULT).is_not_null())
    verdicts = pl.concat([
        failures.select(values["row"].gather(failures["index"]), "reason", "detail"),
        unread.select("row", pl.col(FAULT).alias("reason"), pl.lit("").alias("detail")),
    ])  # fmt: skip
    kept = ~values["row"].is_in(verdicts["row"].implode())
    clean = values.filter(kept).select("row", *(_clean(c) for c in contract.columns))
    return Judged(clean, _rejected(verdicts.sort("row"), records))


def unreadable(contract: Contract, why: str, head: bytes) -> Judged:
    """Return the verdict on a file without rows: itself, as row 0."""
    row = (0, str(Reason.UNREADABLE), why[:DETAIL], head)
    rejected = pl.DataFrame([row], schema=REJECTED, orient="row")
    return Judged(pl.DataFrame(schema=contract.schema), rejected, str(Reason.UNREADABLE))


def _all_rejected(records: Records, contract: Contract) -> Judged:
    reason = str(Reason.MISSING_COLUMN)
    detail = f"{records.missing[0]} (the file has {', '.join(records.columns)})"
    detail = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in detail[:DETAIL])
    verdicts = records.frame.select(
        "row", pl.lit(reason).alias("reason"), pl.lit(detail).alias("detail")
    )
    return Judged(pl.DataFrame(schema=contract.schema), _rejected(verdicts, records), reason)


def _rejected(verdicts: pl.DataFrame, records: Records) -> pl.DataFrame:
    raw = pl.Series("raw", records.raw_of(verdicts["row"].to_list()), dtype=pl.Binary)
    return verdicts.with_columns(raw).cast(REJECTED)  # type: ignore[arg-type]


def _trimmed(name: str) -> pl.Expr:
    return pl.col(name).str.strip_chars(UNSEEN).replace("", None)


def _value(column: Column, texts: pl.Series) -> pl.Series:
    if column.vocabulary is not None:
        return texts.str.to_lowercase().replace_strict(
            column.vocabulary, default=None, return_dtype=column.dtype
        )
    if column.holds == "integer":
        return texts.str.replace(r"\.0+$", "").cast(pl.Int64, strict=False)
    return parse_times(texts)


def _clean(column: Column) -> pl.Expr:
    if is_parsed(column):
        return pl.col(parsed(column.name)).alias(column.name)
    return pl.col(column.name) if column.required else pl.col(column.name).fill_null("")
