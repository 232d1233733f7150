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
from csrm_tasks.ingest.records import Offsets, Records, UnreadableError, assemble, pick, spans

QUOTE, COMMA, NEWLINE = b'",\n'
FIELD_LIMIT = 100_000_000  # characters of one field; the standard library's 131,072 is too few


@dataclass(frozen=True)
class Layout:
    """Where records start and end, and which of them need a closer look."""

    starts: Offsets
    ends: Offsets
    doubtful: npt.NDArray[np.bool_]


def read_csv(data: bytes, contract: Contract) -> Records:
    """Read ``data``; blank lines are no rows. Raises :class:`UnreadableError` on a bad header."""
    head_end = data.find(b"\n") + 1 or len(data)
    header = _header(data[:head_end])
    layout = _layout(data, head_end, len(header))
    raw = spans(data, layout.starts, layout.ends)
    sure = (np.flatnonzero(~layout.doubtful) + 1).tolist()
    doubtful = (np.flatnonzero(layout.doubtful) + 1).tolist()
    table = _parse_all(raw(sure), header)
    if table is None:  # polars and the parity disagree about the records
        sure, doubtful, table = [], [*sure, *doubtful], _table([], header)
    parsed, faults = _parse_each(dict(zip(doubtful, raw(doubtful), strict=True)), len(header))
    frames = [(sure, pick(table, contract)[0])]
    frames.append((list(parsed), pick(_table(list(parsed.values()), header), contract)[0]))
    missing = pick(_table([], header), contract)[1]
    return Records(assemble(frames, faults, contract), missing, raw)


def _header(line: bytes) -> list[str]:
    try:
        fields = next(csv.reader([line.decode().rstrip("\r\n")], strict=True))
    except (UnicodeDecodeError, csv.Error, StopIteration) as e:
        raise UnreadableError("the first line is not a CSV header in UTF-8") from e
    header = [f.strip() for f in fields]
    if twice := [h for h in header if header.count(h) > 1]:
        raise UnreadableError(f"column {twice[0]!r} occurs twice in the header")
    return header


def _layout(data: bytes, start: int, fields: int) -> Layout:
    body = np.frombuffer(data, np.uint8)[start:]
    inside = np.logical_xor.accumulate(body == QUOTE) if len(body) else np.zeros(0, bool)
    if len(body) and inside[-1]:  # an odd number of quotes: every line for itself
        inside = np.zeros(len(body), bool)
    starts, ends = _cut(np.flatnonzero((body == NEWLINE) & ~inside), len(body))
    commas = np.flatnonzero((body == COMMA) & ~inside)
    counts = np.searchsorted(commas, ends) - np.searchsorted(commas, starts) + 1
    starts, ends, wrong = _resplit(data, starts + start, ends + start, counts != fields)
    full = np.array([bool(data[s:e].strip()) for s, e in zip(starts, ends, strict=True)], bool)
    return Layout(starts[full], ends[full], wrong[full])


def _cut(newlines: npt.NDArray[np.intp], length: int) -> tuple[Offsets, Offsets]:
    starts = np.concatenate(([0], newlines + 1)).astype(np.int64)
    return starts, np.concatenate((newlines, [length])).astype(np.int64)


def _resplit(
    data: bytes, starts: Offsets, ends: Offsets, wrong: npt.NDArray[np.bool_]
) -> tuple[Offsets, Offsets, npt.NDArray[np.bool_]]:
    """Cut records that have a wrong number of fields into their lines."""
    cuts = []
    for s, e in zip(starts[wrong], ends[wrong], strict=True):
        newlines = np.flatnonzero(np.frombuffer(data, np.uint8)[s:e] == NEWLINE)
        lines = _cut(newlines, int(e - s))
        cuts.append((lines[0] + s, lines[1] + s))
    if not cuts:
        return starts, ends, wrong
    line_starts = np.concatenate([c[0] for c in cuts])
    all_starts = np.concatenate([starts[~wrong], line_starts])
    all_ends = np.concatenate([ends[~wrong], *[c[1] for c in cuts]])
    doubtful = np.arange(len(all_starts)) >= len(all_starts) - len(line_starts)
    order = np.argsort(all_starts, kind="stable")
    return all_starts[order], all_ends[order], doubtful[order]


def _parse_all(records: list[bytes], header: list[str]) -> pl.DataFrame | None:
    if not records:
        return _table([], header)
    try:
        table = pl.read_csv(
            io.BytesIO(b"\n".join(records)), has_header=False, new_columns=header,
            infer_schema=False, quote_char='"',
        )  # fmt: skip
    except pl.exceptions.PolarsError:
        return None
    return table if table.shape == (len(records), len(header)) else None


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
