"""What every reader returns: values as text by contract column, and the bytes of any row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from csrm_tasks.ingest.contracts import Contract, Reason

Offsets = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]
RawOf = Callable[[Sequence[int]], list[bytes]]
FAULT = "_fault"  # column of a Reason: the reader could not make values of this row
NEWLINE = 10  # the byte
BLANK_UP_TO = 32  # a line that begins with a greater byte is not blank


class UnreadableError(Exception):
    """The file cannot be read, or not to its end; the text says why."""


@dataclass(frozen=True)
class Records:
    """Rows of one delivery that follow each other, not yet judged."""

    frame: pl.DataFrame  # row (from 1, over the whole file), FAULT, the contract's columns as text
    missing: tuple[str, ...]  # required columns that the file does not have at all
    raw_of: RawOf  # row numbers → bytes as delivered
    header: bytes = b""  # a CSV file's first line
    columns: tuple[str, ...] = ()  # what the file has instead of what is missing


def pick(table: pl.DataFrame, contract: Contract) -> tuple[pl.DataFrame, tuple[str, ...]]:
    """Choose the contract's columns of ``table`` as text; also name the required ones it lacks.

    Raises :class:`UnreadableError` for a column that holds lists or the like where text belongs.
    """
    chosen: list[pl.Expr] = []
    missing: list[str] = []
    for column in contract.columns:
        found = [e for p in column.paths if (e := _as_text(table.schema, p)) is not None]
        if not found and column.required:
            missing.append(column.name)
        value = pl.coalesce(found) if found else pl.lit(None, dtype=pl.String)
        chosen.append(value.alias(column.name))
    # with_columns on an empty frame would lose the height when nothing is found
    return table.with_columns(pl.lit(0).alias(FAULT)).select(FAULT, *chosen).drop(FAULT), tuple(
        missing
    )


def _as_text(schema: pl.Schema, path: str) -> pl.Expr | None:
    first, *rest = path.split(".")
    if first not in schema:
        return None
    expr, dtype = pl.col(first), schema[first]
    for name in rest:
        inner = {f.name: f.dtype for f in dtype.fields} if isinstance(dtype, pl.Struct) else {}
        if name not in inner:
            return None
        expr, dtype = expr.struct.field(name), inner[name]  # type: ignore[assignment]
    return _text(expr, dtype, path)


def _text(expr: pl.Expr, dtype: pl.DataType, path: str) -> pl.Expr:
    if dtype.is_nested() or dtype == pl.Binary:
        raise UnreadableError(f"column {path} is {dtype}, not text")
    if isinstance(dtype, pl.Datetime):
        utc = expr.dt.convert_time_zone("UTC") if dtype.time_zone else expr
        return utc.dt.strftime("%Y-%m-%dT%H:%M:%S%.fZ")
    return expr.cast(pl.String)


def spans(data: bytes, starts: Offsets, ends: Offsets, first: int = 1) -> RawOf:
    """Return a function from row numbers (from ``first``) to the bytes between the offsets."""

    def raw_of(rows: Sequence[int]) -> list[bytes]:
        return [data[starts[r - first] : ends[r - first]].rstrip(b"\r\n") for r in rows]

    return raw_of


def cut_lines(newlines: npt.NDArray[np.intp], length: int) -> tuple[Offsets, Offsets]:
    """Return where lines start and end (newline not included); no line after the last newline."""
    starts = np.concatenate(([0], newlines + 1)).astype(np.int64)
    ends = np.concatenate((newlines, [length])).astype(np.int64)
    return (starts[:-1], ends[:-1]) if starts[-1] == length else (starts, ends)


def blank_lines(data: bytes, starts: Offsets, ends: Offsets) -> Flags:
    """Return which spans hold nothing but white space."""
    body = np.frombuffer(data, np.uint8)
    blank = np.asarray(starts == ends)
    blank[~blank] = body[starts[~blank]] <= BLANK_UP_TO
    for i in np.flatnonzero(blank):  # few: hardly a line begins so
        blank[i] = not data[starts[i] : ends[i]].strip()
    return blank


def assemble(
    parsed: Sequence[tuple[Sequence[int], pl.DataFrame]],
    faults: dict[int, Reason],
    contract: Contract,
) -> pl.DataFrame:
    """Join frames of rows (each with its row numbers) and rows that have only a fault, by row."""
    columns = [c.name for c in contract.columns]
    parts = [
        frame.select(
            pl.Series("row", rows, dtype=pl.Int64),
            pl.lit(None, dtype=pl.String).alias(FAULT),
            *columns,
        )
        for rows, frame in parsed
        if len(rows)
    ]
    if len(parts) == 1 and not faults:
        return parts[0]
    schema = {"row": pl.Int64, FAULT: pl.String} | dict.fromkeys(columns, pl.String)
    bad = [{"row": r, FAULT: str(reason)} for r, reason in faults.items()]
    return pl.concat([*parts, pl.DataFrame(bad, schema=schema)]).sort("row")
