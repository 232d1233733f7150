"""CSV (RFC 4180, comma, header): records found by quote parity, parsed by polars in one go.

A record with another number of fields than the header is looked at again line by line, so that a
stray quote costs the lines it stands in and not the rest of the file.
"""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from csrm_tasks.ingest.contracts import Contract, Reason
from csrm_tasks.ingest.records import (
    NEWLINE,
    Flags,
    Offsets,
    RawOf,
    Records,
    UnreadableError,
    assemble,
    blank_lines,
    cut_lines,
    pick,
    spans,
)

QUOTE, COMMA = b'",'
FIELD_LIMIT = 100_000_000  # characters of one field; the standard library's 131,072 is too few
QUOTED_LIMIT = 16 << 20  # bytes after which an open quote is taken for a stray one


@dataclass(frozen=True)
class Layout:
    """Where records start and end, and which of them need a closer look."""

    starts: Offsets
    ends: Offsets
    doubtful: Flags


def csv_end(data: bytes) -> int:
    """Return where the last whole record of ``data`` ends; 0 when there is none."""
    last = place = data.rfind(b"\n")
    inside = data.count(b'"', 0, place + 1) % 2 == 1
    while inside and place >= 0 and last - place < QUOTED_LIMIT:
        before = data.rfind(b"\n", 0, place)
        inside ^= data.count(b'"', before + 1, place + 1) % 2 == 1
        place = before
    return (last if inside else place) + 1


def csv_header(line: bytes) -> list[str]:
    """Return the column names; raises :class:`UnreadableError` when ``line`` names none."""
    try:
        fields = next(csv.reader([line.decode().rstrip("\r\n")], strict=True))
    except (UnicodeDecodeError, csv.Error, StopIteration) as e:
        raise UnreadableError("the first line is not a CSV header in UTF-8") from e
    header = [f.strip() for f in fields]
    if twice := [h for h in header if header.count(h) > 1]:
        raise UnreadableError(f"column {twice[0]!r} occurs twice in the header")
    return header


def read_csv(data: bytes, head: bytes, contract: Contract, first: int = 1) -> Records:
    """Read whole records, numbered from ``first``; ``head`` is the header. Blank lines are no rows.

    Raises :class:`UnreadableError` on a bad header.
    """
    header = csv_header(head)
    layout = _layout(data, len(header))
    raw = spans(data, layout.starts, layout.ends, first)
    table, doubtful = _parse_sure(data, layout, header)
    sure = np.flatnonzero(~doubtful) + first
    rows = (np.flatnonzero(doubtful) + first).tolist()
    parsed, faults = _parse_each(dict(zip(rows, raw(rows), strict=True)), len(header))
    chosen, missing = pick(table, contract)
    again = pick(_table(list(parsed.values()), header), contract)[0]
    frame = assemble([(sure, chosen), (list(parsed), again)], faults, contract)  # type: ignore[list-item]
    return Records(frame, missing, raw, head, tuple(header))


def csv_rows(data: bytes, head: bytes, first: int) -> tuple[int, RawOf]:
    """Return how many rows :func:`read_csv` finds, and their bytes, without reading values."""
    layout = _layout(data, len(csv_header(head)))
    return len(layout.starts), spans(data, layout.starts, layout.ends, first)


def _layout(data: bytes, fields: int) -> Layout:
    body = np.frombuffer(data, np.uint8)
    newlines, commas = np.flatnonzero(body == NEWLINE), np.flatnonzero(body == COMMA)
    if b'"' in data:
        inside = np.add.accumulate(body == QUOTE, dtype=np.uint8) & 1  # wraps at 256: parity holds
        if not inside[-1]:  # else an odd number of quotes: every line for itself
            newlines, commas = newlines[inside[newlines] == 0], commas[inside[commas] == 0]
    starts, ends = cut_lines(newlines, len(data))
    wrong = _miscounted(commas, starts, ends, fields)
    if wrong.any():
        starts, ends, wrong = _resplit(data, starts, ends, wrong)
    suspects = np.flatnonzero(wrong) if fields > 1 else np.arange(len(starts))
    full = np.ones(len(starts), bool)
    full[suspects] = ~blank_lines(data, starts[suspects], ends[suspects])
    return Layout(starts[full], ends[full], wrong[full])


def _miscounted(commas: npt.NDArray[np.intp], starts: Offsets, ends: Offsets, fields: int) -> Flags:
    """Return which records have another number of fields."""
    if fields > 1 and len(commas) == (fields - 1) * len(starts):
        by_record = commas.reshape(-1, fields - 1)
        if (by_record[:, 0] >= starts).all() and (by_record[:, -1] < ends).all():
            return np.zeros(len(starts), bool)
    counts = np.searchsorted(commas, ends) - np.searchsorted(commas, starts) + 1
    return np.asarray(counts != fields)


def _resplit(
    data: bytes, starts: Offsets, ends: Offsets, wrong: Flags
) -> tuple[Offsets, Offsets, Flags]:
    """Cut records that have a wrong number of fields into their lines."""
    cuts = []
    for s, e in zip(starts[wrong], ends[wrong], strict=True):
        newlines = np.flatnonzero(np.frombuffer(data, np.uint8)[s:e] == NEWLINE)
        lines = cut_lines(newlines, int(e - s))
        cuts.append((lines[0] + s, lines[1] + s))
    line_starts = np.concatenate([c[0] for c in cuts])
    all_starts = np.concatenate([starts[~wrong], line_starts])
    all_ends = np.concatenate([ends[~wrong], *[c[1] for c in cuts]])
    doubtful = np.arange(len(all_starts)) >= len(all_starts) - len(line_starts)
    order = np.argsort(all_starts, kind="stable")
    return all_starts[order], all_ends[order], doubtful[order]


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


def _undecodable(data: bytes, layout: Layout) -> Flags:
    found = np.zeros(len(layout.starts), bool)
    for i, (s, e) in enumerate(zip(layout.starts.tolist(), layout.ends.tolist(), strict=True)):
        try:
            data[s:e].decode()
        except UnicodeDecodeError:
            found[i] = True
    return found


def _parse_each(
    records: dict[int, bytes], fields: int
) -> tuple[dict[int, list[str]], dict[int, Reason]]:
    csv.field_size_limit(FIELD_LIMIT)
    good: dict[int, list[str]] = {}
    faults: dict[int, Reason] = {}
    for row, raw in records.items():
        try:
            values = next(csv.reader(io.StringIO(raw.decode(), newline=""), strict=True))
        except UnicodeDecodeError:
            faults[row] = Reason.ENCODING
        except (csv.Error, StopIteration):
            faults[row] = Reason.MALFORMED
        else:
            if len(values) == fields:
                good[row] = values
            else:
                faults[row] = Reason.MALFORMED
    return good, faults


def _table(rows: list[list[str]], header: list[str]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=dict.fromkeys(header, pl.String), orient="row")
