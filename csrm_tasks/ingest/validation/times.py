"""Points in time as markets write them: ISO 8601 with or without offset, or an epoch."""

from __future__ import annotations

from datetime import UTC, datetime

import polars as pl

PYTHON = (datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC))
MOMENT = pl.Datetime("us", "UTC")


def parse_times(texts: pl.Series) -> pl.Series:
    """Parse a column; null where a text is no time, or none that Python has (years 1 to 9999).

    ISO 8601 without an offset means UTC; a date is its first moment; 9 or 10 digits (decimals
    allowed) are seconds since 1970, 13 milliseconds, 16 microseconds, 19 nanoseconds. What could be
    two times (a day or month first, a zone by its letters) is none. The two commonest spellings are
    tried first on the whole column, the rest only on what they leave: they are ten times as fast.
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


# Spellings of one meaning, each turned into "YYYY-MM-DD HH:MM:SS[.ffffff][±HH[:MM]]" in turn.
SPELLINGS = (
    (r"^[A-Za-z]{3}, (\d{1,2} [A-Za-z]{3} \d{4})", "$1"),  # RFC 5322: the day of the week
    # What Java and JavaScript (RFC 9557), and Go, add to an offset: it says what to show, not when.
    (r"((?:[Zz]|[+-]\d{2}(?::?\d{2})?))(?:\[!?[\w/+=.-]+\])+$", "$1"),
    (r"([+-]\d{2}:?\d{2}) (?:[A-Z]{3,5}|[+-]\d{2}(?:\d{2})?)(?: m=[+-][\d.]+)?$", "$1"),
    (r"(?:\s*[Zz]|\s*(?i:utc|gmt))$", "+00:00"),
    (r"^(\d{4})/(\d{1,2})/(\d{1,2})", "$1-$2-$3"),
    (r"^(\d{4})(\d{2})(\d{2})[Tt](\d{2})(\d{2})(\d{2})?", "$1-$2-$3 $4:$5:$6"),
    (r"^(\d{4})(\d{2})(\d{2})[Tt](\d{2})(\D|$)", "$1-$2-$3 $4$5"),
    (r"^(\d{4}-\d{1,2}-\d{1,2})(?:[Tt]|\s+)(\d)", "$1 $2"),
    (r"^(\S+ \d{2})([+-]\d{2}:?(?:\d{2})?)?$", "$1:00$2"),  # no minutes
    (r"^(\S+ \d{2}:\d{2}):?(\s*[+-]\d{2}:?(?:\d{2})?)?$", "$1:00$2"),  # no seconds
    (r"(:\d{2})[.,](\d{1,6})\d*", "$1.$2"),  # below a microsecond nothing is kept
    (r"\s+([+-]\d{2}:?(?:\d{2})?)$", "$1"),
)
# The end of a day (ISO 8601) is the beginning of the next one; 24:00:01 is no time.
END_OF_DAY = r"^(\d{4}-\d{1,2}-\d{1,2}) 24(:00:00(?:\.0+)?(?:[+-].*)?)$"
EPOCHS = {10: 1_000_000, 13: 1_000, 16: 1}  # digits before the point → microseconds
NANOSECONDS = r"^\d{19}$"


def parse_time(text: pl.Expr) -> pl.Expr:
    """Parse any of the spellings, each tried on every value."""
    iso = text
    for pattern, meant in SPELLINGS:
        iso = iso.str.replace(pattern, meant)
    # The year comes first and has four digits, or the month has a name: nothing else is certain.
    iso = pl.when(iso.str.contains(r"^\d{4}-|^\d{1,2} [A-Za-z]{3} \d{4} ")).then(iso)
    ended = iso.str.contains(END_OF_DAY)
    iso = iso.str.replace(END_OF_DAY, "$1 00$2")
    stamp = "%Y-%m-%d %H:%M:%S%.f"
    found = pl.coalesce(
        iso.str.to_datetime(f"{stamp}%#z", strict=False, time_unit="us", time_zone="UTC"),
        iso.str.to_datetime(stamp, strict=False, time_unit="us").dt.replace_time_zone("UTC"),
        iso.str.to_date("%Y-%m-%d", strict=False).cast(MOMENT),
        iso.str.to_datetime("%d %b %Y %H:%M:%S%#z", strict=False, time_unit="us", time_zone="UTC"),
        *_epochs(text),
    )
    return pl.when(ended).then(found + pl.duration(days=1)).otherwise(found)


def _epochs(text: pl.Expr) -> list[pl.Expr]:
    """Parse numbers since 1970: how many digits there are tells the unit, for times since 2001."""
    number = pl.when(text.str.contains(r"^\d(\.\d+)?[eE]\+?\d{1,2}$")).then(text)
    plain = number.cast(pl.Float64, strict=False).round(6).cast(pl.Decimal(38, 6)).cast(pl.String)
    digits = pl.coalesce(plain, text)
    found = [
        pl.from_epoch(
            (pl.when(digits.str.contains(rf"^\d{{{low},{n}}}(\.\d+)?$")).then(digits))
            .cast(pl.Decimal(38, 9), strict=False)
            .mul(unit)
            .cast(pl.Int64, strict=False),
            "us",
        ).cast(MOMENT)
        for n, unit in EPOCHS.items()
        for low in [9 if n == 10 else n]
    ]
    nanoseconds = pl.when(text.str.contains(NANOSECONDS)).then(text).cast(pl.Int64, strict=False)
    return [*found, pl.from_epoch(nanoseconds // 1_000, "us").cast(MOMENT)]
