"""Judging a batch: each column's declaration becomes expressions over all rows at once.

A row's reason is the first rule it breaks, in the order of the contract's columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta

import polars as pl

from csrm_tasks.ingest.contracts import Column, Contract, Reason
from csrm_tasks.ingest.records import FAULT, Records

REJECTED: dict[str, type[pl.DataType]] = {
    "row": pl.Int64, "reason": pl.String, "detail": pl.String, "raw": pl.Binary,
}  # fmt: skip
DAY_END = timedelta(hours=36)  # a day ends last at UTC-12


@dataclass(frozen=True)
class Judged:
    """Rows that keep the contract, and rows that do not: together every row of the file."""

    clean: pl.DataFrame  # Contract.schema
    rejected: pl.DataFrame  # REJECTED
    fault: str | None = None  # the file as a whole is wrong: its day must not be published


def judge(records: Records, contract: Contract, day: str) -> Judged:
    """Split the rows of one file; no event of ``day`` may be later than that day's end anywhere."""
    if records.missing:
        return _all_rejected(records, contract)
    latest = datetime.combine(date.fromisoformat(day), time(), UTC) + DAY_END
    frame = records.frame.with_columns(
        _trimmed(c.name).alias(c.name) for c in contract.columns
    ).with_columns(_value(c).alias(f"{c.name}!") for c in contract.columns)
    rules = [rule for c in contract.columns for rule in _rules(c, latest)]
    verdict = pl.coalesce(
        pl.col(FAULT), *(pl.when(broken).then(pl.lit(text)) for text, broken in rules)
    )
    judged = frame.with_columns(verdict.alias(FAULT))
    clean = judged.filter(pl.col(FAULT).is_null()).select(
        "row", *(pl.col(f"{c.name}!").alias(c.name) for c in contract.columns)
    )
    return Judged(clean, _rejected(judged.filter(pl.col(FAULT).is_not_null()), records))


def unreadable(contract: Contract, why: str, head: bytes) -> Judged:
    """Return the verdict on a file without rows: itself, as row 0."""
    row = (0, str(Reason.UNREADABLE), why[:200], head)
    rejected = pl.DataFrame([row], schema=REJECTED, orient="row")
    return Judged(pl.DataFrame(schema=contract.schema), rejected, str(Reason.UNREADABLE))


def _all_rejected(records: Records, contract: Contract) -> Judged:
    verdict = f"{Reason.MISSING_COLUMN}:{records.missing[0]}"
    frame = records.frame.with_columns(pl.lit(verdict).alias(FAULT))
    rejected = _rejected(frame, records)
    return Judged(pl.DataFrame(schema=contract.schema), rejected, str(Reason.MISSING_COLUMN))


def _rejected(frame: pl.DataFrame, records: Records) -> pl.DataFrame:
    parts = pl.col(FAULT).str.splitn(":", 2).struct
    found = frame.select("row", parts[0].alias("reason"), parts[1].fill_null("").alias("detail"))
    raw = pl.Series("raw", records.raw_of(found["row"].to_list()), dtype=pl.Binary)
    return found.with_columns(raw).cast(REJECTED)  # type: ignore[arg-type]


def _trimmed(name: str) -> pl.Expr:
    text = pl.col(name).str.strip_chars()
    return pl.when(text != "").then(text)


def _value(column: Column) -> pl.Expr:
    text = pl.col(column.name)
    if column.vocabulary is not None:
        return text.str.to_lowercase().replace_strict(
            column.vocabulary, default=None, return_dtype=column.dtype
        )
    if column.holds == "integer":
        return text.str.replace(r"\.0+$", "").cast(pl.Int64, strict=False)
    if column.holds == "time":
        return parse_time(text)
    return text if column.required else text.fill_null("")


def parse_time(text: pl.Expr) -> pl.Expr:
    """Parse ISO 8601 (no offset means UTC) or an epoch in s or ms; null where it is neither."""
    iso = text.str.replace("[Tt]", " ").str.replace(r"\s*[Zz]$", "+00:00")
    stamp = "%Y-%m-%d %H:%M:%S%.f"
    number = text.cast(pl.Int64, strict=False)
    milliseconds = (
        pl.when(text.str.contains(r"^\d{13}$")).then(number)
        .when(text.str.contains(r"^\d{9,10}$")).then(number * 1000)
    )  # fmt: skip
    return pl.coalesce(
        iso.str.to_datetime(f"{stamp}%#z", strict=False, time_unit="us", time_zone="UTC"),
        iso.str.to_datetime(stamp, strict=False, time_unit="us").dt.replace_time_zone("UTC"),
        iso.str.to_date("%Y-%m-%d", strict=False).cast(pl.Datetime("us", "UTC")),
        pl.from_epoch(milliseconds, "ms").cast(pl.Datetime("us", "UTC")),
    )


def _rules(column: Column, latest: datetime) -> list[tuple[str, pl.Expr]]:
    """Return (verdict, rows that earn it), the first that applies counting."""
    text, value = pl.col(column.name), pl.col(f"{column.name}!")
    wrong = Reason.VOCABULARY if column.vocabulary is not None else Reason.TYPE
    rules = [
        (Reason.MISSING, text.is_null() if column.required else pl.lit(False)),
        (Reason.NUL, text.str.contains("\0", literal=True)),
        (Reason.TOO_LONG, text.str.len_chars() > column.max_chars),
        (wrong, text.is_not_null() & value.is_null()),
    ]
    if column.at_least is not None:
        rules.append((Reason.RANGE, value < column.at_least))
    if column.at_most is not None:
        rules.append((Reason.RANGE, value > column.at_most))
    if column.holds == "time":
        rules.append((Reason.FUTURE, value > latest))
    return [(f"{reason}:{column.name}", broken) for reason, broken in rules]
