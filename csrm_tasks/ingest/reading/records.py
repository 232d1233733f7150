"""What every reader returns: values as text by contract column, and the bytes of any row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from csrm_tasks.ingest.contract.contracts import Column, Contract, Reason
from csrm_tasks.ingest.reading.json_values import open_cells, roots
from csrm_tasks.ingest.reading.values import Found, fields, is_plain, places, read

Offsets = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]
RawOf = Callable[[Sequence[int]], list[bytes]]
FAULT = "_fault"  # column of a Reason: the reader could not make values of this row
UNREAD = "_unread"  # names of the columns whose value has a shape that cannot be read, or null
NEWLINE = 10  # the byte
BOM = b"\xef\xbb\xbf"
BLANK_UP_TO = 32  # a line that begins with a greater byte is not blank


class UnreadableError(Exception):
    """The file cannot be read, or not to its end; the text says why."""


@dataclass(frozen=True)
class Records:
    """Rows of one delivery that follow each other, not yet judged."""

    frame: pl.DataFrame  # row (from 1, over the whole file), FAULT, UNREAD, the contract's columns
    missing: tuple[str, ...]  # required columns that the file does not have at all
    raw_of: RawOf  # row numbers → bytes as delivered
    header: bytes = b""  # a CSV file's first line
    columns: tuple[str, ...] = ()  # what the file has instead of what is missing


def pick(table: pl.DataFrame, contract: Contract) -> tuple[pl.DataFrame, tuple[str, ...]]:
    """Choose the contract's columns of ``table`` as text; also name the required ones it lacks.

    The first place with a value that is not empty wins. :data:`UNREAD` names the optional columns
    for which a row has something, but nothing that can be read. Raises :class:`UnreadableError`
    where a required column holds nothing but lists or the like.
    """
    table, shut = _opened(table, contract)
    chosen: list[pl.Expr] = []
    unread = [pl.when(lost).then(pl.lit(name)) for name, lost in shut]
    missing: list[str] = []
    for column in contract.columns:
        found = [p for path in column.paths for p in places(table.schema, path)]
        found = [p for p in found if not _is_outer(p, column)]
        plain = [p for p in found if is_plain(p.dtype, column.read_as)]
        if column.required and not plain:
            if found:
                raise UnreadableError(f"column {column.paths[0]} is {found[0].dtype}, not text")
            missing.append(column.name)
        value = _first([read(p, column.read_as) for p in _used(table, plain)], column)
        chosen.append(value.alias(column.name))
        if odd := [p for p in found if _may_be_lost(p, column)]:
            there = pl.any_horizontal(_is_something(p) for p in odd)
            unread.append(pl.when(there & value.is_null()).then(pl.lit(column.name)))
    named = pl.concat_str(unread, separator=",", ignore_nulls=True) if unread else pl.lit("")
    chosen.append(named.replace("", None).alias(UNREAD))
    # with_columns on an empty frame would lose the height when nothing is found
    return table.with_columns(pl.lit(0).alias(FAULT)).select(FAULT, *chosen).drop(FAULT), tuple(
        missing
    )


def _opened(
    table: pl.DataFrame, contract: Contract
) -> tuple[pl.DataFrame, list[tuple[str, pl.Series]]]:
    """Read columns of text as JSON where they stand for objects; also which rows that failed in."""
    shut: list[tuple[str, pl.Series]] = []
    for name, tree in roots(contract).items():
        if table.schema.get(name) == pl.String:
            structs, lost = open_cells(table[name], tree)
            table = table.with_columns(structs)
            shut.append((name, lost))
    return table, shut


def _first(values: list[pl.Expr], column: Column) -> pl.Expr:
    if not values:
        return pl.lit(None, dtype=column.read_as)
    if len(values) == 1 or column.holds == "list":
        return pl.coalesce(values)
    return pl.coalesce(pl.when(v.str.strip_chars() != "").then(v) for v in values)


def _used(table: pl.DataFrame, found: list[Found]) -> list[Found]:
    """Leave out places that hold nothing: most names that a column may have are in no file."""
    if len(found) < 2:
        return found
    nothing = table.select(p.expr.is_null().all().alias(str(i)) for i, p in enumerate(found))
    return [p for p, empty in zip(found, nothing.row(0), strict=True) if not empty] or found[:1]


def _is_outer(place: Found, column: Column) -> bool:
    """Return whether a place is the object in which the column's value usually is."""
    inner = (path for path in column.usual if path.startswith(f"{place.path}."))
    return isinstance(place.dtype, pl.Struct) and any(inner)


def _may_be_lost(place: Found, column: Column) -> bool:
    return column.holds == "list" or place.dtype == pl.Binary or place.dtype.is_nested()


def _is_something(place: Found) -> pl.Expr:
    if isinstance(place.dtype, pl.Struct):
        return pl.any_horizontal(_is_something(p) for p in fields(place))
    if isinstance(place.dtype, pl.List):
        return place.expr.list.len() > 0
    if place.dtype == pl.String:
        return place.expr.str.strip_chars() != ""
    return place.expr.is_not_null()


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


def behind_marks(data: bytes, starts: Offsets) -> Offsets:
    """Return the starts of records without the byte order marks before some of them.

    Every part of a file that was joined of several may begin with one.
    """
    body = np.frombuffer(data, np.uint8)
    # Only what begins with the mark's first bytes is looked at: no pass over the text.
    marked = np.flatnonzero(body[starts] == BOM[0])
    marked = marked[body[np.minimum(starts[marked] + 1, len(body) - 1)] == BOM[1]]
    if not len(marked):
        return starts
    moved = starts.copy()
    moved[marked] = [past_marks(data, at) for at in starts[marked].tolist()]
    return moved


def past_marks(data: bytes, at: int) -> int:
    """Return where the text at ``at`` begins, behind any byte order marks."""
    while data.startswith(BOM, at):
        at += len(BOM)
    return at


def blank_lines(data: bytes, starts: Offsets, ends: Offsets) -> Flags:
    """Return which spans hold nothing but white space."""
    body = np.frombuffer(data, np.uint8)
    blank = np.asarray(starts == ends)
    blank[~blank] = body[starts[~blank]] <= BLANK_UP_TO
    for i in np.flatnonzero(blank):  # few: hardly a line begins so
        blank[i] = not data[starts[i] : ends[i]].strip()
    return blank


def assemble(
    parsed: Sequence[tuple[Sequence[int] | npt.NDArray[Any], pl.DataFrame]],
    faults: dict[int, Reason],
    contract: Contract,
) -> pl.DataFrame:
    """Join frames of rows (each with its row numbers) and rows that have only a fault, by row."""
    types: dict[str, Any] = {FAULT: pl.String, UNREAD: pl.String}
    types |= {c.name: c.read_as for c in contract.columns}
    parts = [_complete(frame, rows).select("row", *types) for rows, frame in parsed if len(rows)]
    if len(parts) == 1 and not faults:
        return parts[0]
    bad = [{"row": r, FAULT: str(reason)} for r, reason in faults.items()]
    return pl.concat([*parts, pl.DataFrame(bad, schema={"row": pl.Int64} | types)]).sort("row")


def _complete(frame: pl.DataFrame, rows: Sequence[int] | npt.NDArray[Any]) -> pl.DataFrame:
    numbered = frame.with_columns(pl.Series("row", rows, dtype=pl.Int64))
    return numbered if FAULT in frame.columns else numbered.with_columns(_NO_FAULT)


_NO_FAULT = pl.lit(None, dtype=pl.String).alias(FAULT)
