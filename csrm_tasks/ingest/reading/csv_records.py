"""CSV (RFC 4180, comma, header): the records of a layout, parsed by polars in one go.

What is not plain is parsed record by record, to the letter of the RFC.
"""

from __future__ import annotations

import csv
import re
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from csrm_tasks.ingest.contract.contracts import Contract, Reason
from csrm_tasks.ingest.reading.csv_layout import UNNAMED, Layout, csv_header, shape_of
from csrm_tasks.ingest.reading.csv_quotes import ESCAPES_IN_QUOTES, read_record
from csrm_tasks.ingest.reading.csv_shape import Shape
from csrm_tasks.ingest.reading.records import (
    Flags,
    Offsets,
    RawOf,
    Records,
    UnreadableError,
    assemble,
    pick,
    spans,
)

if TYPE_CHECKING:
    from typing import TypedDict, Unpack

    class _Escapes(TypedDict, total=False):
        """How csv.reader takes a quote within a quoted field."""

        doublequote: bool
        escapechar: str


FIELD_LIMIT = 100_000_000  # characters of one field; the standard library's 131,072 is too few
# What a writer that escapes by backslashes means otherwise than the RFC does.
ESCAPE = re.compile(r'\\(?:[",\\\r\n]|\Z)')


def read_csv(
    data: bytes, layout: Layout, head: bytes, contract: Contract, first: int = 1
) -> Records:
    """Read whole records, numbered from ``first``; ``head`` is the header. Blank lines are no rows.

    Raises :class:`UnreadableError` on a bad header.
    """
    header, shape = csv_header(head), shape_of(head)
    raw = spans(data, layout.starts, layout.ends, first)
    table, doubtful = _parse_sure(data, layout, header)
    sure = np.flatnonzero(~doubtful & ~layout.unclear) + first
    rows = (np.flatnonzero(doubtful & ~layout.unclear) + first).tolist()
    parsed, faults = _parse_each(dict(zip(rows, raw(rows), strict=True)), shape)
    unclear = (np.flatnonzero(layout.unclear) + first).tolist()
    faults |= dict.fromkeys(unclear, Reason.QUOTES)
    each = _table(list(parsed.values()), header)
    sure, table, heads = _without_heads(sure, table, header)
    others, each, more = _without_heads(np.array([*parsed], np.int64), each, header)
    faults |= dict.fromkeys([*heads, *more], Reason.MALFORMED)
    (chosen, missing), (again, _) = pick(table, contract), pick(each, contract)
    frame = assemble([(sure, chosen), (others, again)], faults, contract)
    columns = tuple(h for h in header if not h.startswith(UNNAMED))
    return Records(frame, missing, raw, head, columns)


def csv_rows(data: bytes, layout: Layout, first: int) -> tuple[int, RawOf]:
    """Return how many rows :func:`read_csv` finds, and their bytes, without reading values."""
    return len(layout.starts), spans(data, layout.starts, layout.ends, first)


def _parse_sure(data: bytes, layout: Layout, header: list[str]) -> tuple[pl.DataFrame, Flags]:
    """Parse what is not doubtful at once; also return what is doubtful after all."""
    doubtful = layout.doubtful
    table = _parse_all(data, layout, ~doubtful, header)
    if table is None:
        doubtful = doubtful | _undecodable(data, layout)
        table = _parse_all(data, layout, ~doubtful, header)
    if table is None:  # polars and the parity disagree about the records
        return _table([], header), np.ones(len(doubtful), bool)
    return table, doubtful


def _parse_all(data: bytes, layout: Layout, sure: Flags, header: list[str]) -> pl.DataFrame | None:
    starts, ends = layout.starts[sure], layout.ends[sure]
    if not len(starts):
        return _table([], header)
    gaps = np.flatnonzero(starts[1:] != ends[:-1] + 1)  # a run is cut out in one piece
    firsts, lasts = np.append(0, gaps + 1), np.append(gaps, len(starts) - 1)
    view = memoryview(data)
    runs = b"\n".join(
        [view[s:e] for s, e in zip(starts[firsts].tolist(), ends[lasts].tolist(), strict=True)]
    )
    try:
        table = pl.read_csv(
            runs, has_header=False, new_columns=header, infer_schema=False, quote_char='"'
        )
    except pl.exceptions.PolarsError:
        return None
    return table if table.shape == (len(starts), len(header)) else None


def _without_heads(
    numbers: Offsets, table: pl.DataFrame, header: list[str]
) -> tuple[Offsets, pl.DataFrame, list[int]]:
    """Take out the rows that are the header again, as a file that was joined of several has them.

    Returns their numbers as well. Raises :class:`UnreadableError` where one names the same columns
    in another order: the records behind it have another meaning.
    """
    named = table[header[0]].is_in(header).arg_true().to_list() if header else []
    if not named:
        return numbers, table, []
    heads = []
    for i, row in zip(named, table[named].rows(), strict=True):
        names = [(value or "").strip() or f"{UNNAMED}{n}" for n, value in enumerate(row)]
        if names == header:
            heads.append(i)
        elif sorted(names) == sorted(header):
            raise UnreadableError(
                "is joined of parts whose columns are in different orders; deliver each part as a "
                "file of its own"
            )
    others = np.delete(np.arange(table.height), heads)
    return numbers[others], table[others], numbers[heads].tolist()


def _undecodable(data: bytes, layout: Layout) -> Flags:
    found = np.zeros(len(layout.starts), bool)
    for i, (s, e) in enumerate(zip(layout.starts.tolist(), layout.ends.tolist(), strict=True)):
        try:
            data[s:e].decode()
        except UnicodeDecodeError:
            found[i] = True
    return found


def _parse_each(
    records: dict[int, bytes], shape: Shape
) -> tuple[dict[int, list[str]], dict[int, Reason]]:
    csv.field_size_limit(FIELD_LIMIT)
    good: dict[int, list[str]] = {}
    faults: dict[int, Reason] = {}
    for row, raw in records.items():
        try:
            values = _values(raw.decode(), shape)
        except UnicodeDecodeError:
            values = Reason.ENCODING
        if isinstance(values, Reason):
            faults[row] = values
        else:
            good[row] = values
    return good, faults


def _values(text: str, shape: Shape) -> list[str] | Reason:
    """Return the fields of one record, as many as the header has, or why there are none.

    Backslashes before quotes are taken for escapes where the RFC cannot read the record and they
    are all the backslashes that it has; where both can, nobody knows.
    """
    values = _fields(text, shape, doublequote=True)
    if ESCAPE.search(text) is None:
        return values or Reason.MALFORMED
    escaped = _fields(text, shape, doublequote=False, escapechar="\\")
    if values is not None:
        return Reason.QUOTES if escaped or _escaped_in_quotes(text, shape) else values
    alone = "\\" not in text.replace('\\"', "")
    return escaped if escaped is not None and alone else Reason.MALFORMED


def _escaped_in_quotes(text: str, shape: Shape) -> bool:
    """Return whether the record can be read with escapes in its quoted fields alone."""
    if re.search(r'\\["\\]', text) is None or '"' not in text:
        return False
    record = text.encode()
    found = read_record(record, 0, len(record), ESCAPES_IN_QUOTES)
    return found.end == len(record) and shape.fits(record, found.fields)


def _fields(text: str, shape: Shape, **dialect: Unpack[_Escapes]) -> list[str] | None:
    try:
        values = next(csv.reader([text], strict=True, **dialect))
    except (csv.Error, StopIteration):
        return None
    wanted = values[: shape.fields]
    if len(values) < shape.least or any(v.strip() for v in values[shape.fields :]):
        return None
    return wanted + [""] * (shape.fields - len(wanted))


def _table(rows: list[list[str]], header: list[str]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=dict.fromkeys(header, pl.String), orient="row")
