"""Points in time as markets write them: ISO 8601 with or without offset, or an epoch."""

from __future__ import annotations

from datetime import UTC, datetime

import polars as pl

PYTHON = (datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC))
MOMENT = pl.Datetime("us", "UTC")


def parse_times(texts: pl.Series) -> pl.Series:
    """Parse a column; null where a text is no time, or none that Python has (years 1 to 9999).

    ISO 8601 without an offset means UTC; a date is its first moment; 9 or 10 digits (decimals
    allowed) are seconds since 1970, 13 digits milliseconds. The two commonest spellings are tried
    first on the whole column, the rest only on what they leave: they are ten times as fast.
    """
    found = _naive(texts, "%Y-%m-%dT%H:%M:%SZ")
    for parse in (_fraction, _any):
        left = (found.is_null() & texts.is_not_null()).arg_true()
        if left.is_empty():
            break
        found = found.scatter(left, parse(texts.gather(left)))
    return found.set(~found.is_between(*PYTHON), None)


def _fraction(texts: pl.Series) -> pl.Series:
    return _naive(texts, "%Y-%m-%dT%H:%M:%S%.3fZ")


def _naive(texts: pl.Series, form: str) -> pl.Series:
    parsed = texts.str.to_datetime(form, strict=False, time_unit="us")
    return parsed.dt.replace_time_zone("UTC")


def _any(texts: pl.Series) -> pl.Series:
    return texts.to_frame("t").select(parse_time(pl.col("t")))["t"]


def parse_time(text: pl.Expr) -> pl.Expr:
    """Parse any of the spellings, each tried on every value."""
    iso = text.str.replace("[Tt]", " ").str.replace(r"\s*[Zz]$", "+00:00")
    stamp = "%Y-%m-%d %H:%M:%S%.f"
    seconds = pl.when(text.str.contains(r"^\d{9,10}(\.\d+)?$")).then(text)
    milliseconds = pl.when(text.str.contains(r"^\d{13}$")).then(text)
    return pl.coalesce(
        iso.str.to_datetime(f"{stamp}%#z", strict=False, time_unit="us", time_zone="UTC"),
        iso.str.to_datetime(stamp, strict=False, time_unit="us").dt.replace_time_zone("UTC"),
        iso.str.to_date("%Y-%m-%d", strict=False).cast(MOMENT),
        pl.from_epoch(milliseconds.cast(pl.Int64), "ms").cast(MOMENT),
        pl.from_epoch((seconds.cast(pl.Float64) * 1e6).cast(pl.Int64), "us").cast(MOMENT),
    )
