"""JSON Lines: all lines decoded at once into the contract's fields.

Where that fails, the lines are halved until the odd ones are found; what a good line decodes to
does not depend on its neighbours. Of a key that an object has twice the first value counts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from csrm_tasks.ingest.contract.contracts import Contract, Reason
from csrm_tasks.ingest.reading.json_values import (
    Tree,
    decode_all,
    guessed,
    has_dotted,
    mend,
    tree_of,
)
from csrm_tasks.ingest.reading.records import (
    BOM,
    FAULT,
    NEWLINE,
    UNREAD,
    Flags,
    Offsets,
    RawOf,
    Records,
    assemble,
    behind_marks,
    blank_lines,
    cut_lines,
    pick,
    spans,
)

Values = pl.DataFrame | None  # the contract's columns; None: no object
FEW = 256  # lines that are looked at one by one


def read_jsonl(data: bytes, contract: Contract, first: int = 1) -> Records:
    """Read one object per line, numbered from ``first``; blank lines are no rows."""
    found = _lines(data)
    lines, faults = _decoded_lines(data, found, first)
    shape = _Shape(contract, tree_of(contract, has_dotted(data, contract)))
    parts: list[tuple[Any, pl.DataFrame]] = []
    for rows, values in _decode(lines, shape):
        if values is None:
            faults |= dict.fromkeys(rows["row"].to_list(), Reason.MALFORMED)
        else:
            parts.append((rows["row"], values))
    return Records(assemble(parts, faults, contract), (), found.raw_of(data, first))


def jsonl_rows(data: bytes, first: int) -> tuple[int, RawOf]:
    """Return how many rows :func:`read_jsonl` finds, and their bytes, without reading values."""
    found = _lines(data)
    return int(found.full.sum()), found.raw_of(data, first)


@dataclass(frozen=True)
class _Lines:
    """Where the lines of a text are, and which of them are not blank."""

    begins: Offsets  # with the byte order marks of those that have one
    starts: Offsets  # without
    ends: Offsets
    full: Flags

    def raw_of(self, data: bytes, first: int) -> RawOf:
        """Return a function from row numbers to the bytes of full lines."""
        return spans(data, self.starts[self.full], self.ends[self.full], first)


def _lines(data: bytes) -> _Lines:
    newlines = np.flatnonzero(np.frombuffer(data, np.uint8) == NEWLINE)
    begins, ends = cut_lines(newlines, len(data))
    starts = behind_marks(data, begins)
    return _Lines(begins, starts, ends, ~blank_lines(data, starts, ends))


def _decoded_lines(
    data: bytes, found: _Lines, first: int
) -> tuple[pl.DataFrame, dict[int, Reason]]:
    """Return row and line (text) of every full line that is UTF-8, and faults of the others."""
    import pyarrow as pa

    bounds = np.append(found.begins, len(data))
    buffers = [None, pa.py_buffer(bounds), pa.py_buffer(data)]
    lines = pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(bounds) - 1, buffers)
    rows = np.arange(first, first + int(found.full.sum()))
    chosen = lines.filter(pa.array(found.full))
    faults: dict[int, Reason] = {}
    try:
        texts = pl.from_arrow(chosen.cast(pa.large_string()))
        frame = pl.DataFrame({"row": rows, "line": texts})
    except pa.ArrowInvalid:
        good = [_utf8(line.as_py()) for line in chosen]
        frame = pl.DataFrame({"row": rows, "line": pl.Series(good, dtype=pl.String)})
        bad = frame.filter(pl.col("line").is_null())["row"].to_list()
        frame, faults = frame.drop_nulls("line"), dict.fromkeys(bad, Reason.ENCODING)
    if found.starts is not found.begins:
        frame = frame.with_columns(pl.col("line").str.strip_chars_start(BOM.decode()))
    return frame, faults


def _utf8(line: bytes) -> str | None:
    try:
        return line.decode()
    except UnicodeDecodeError:
        return None


@dataclass(frozen=True)
class _Shape:
    """What lines are decoded into."""

    contract: Contract
    tree: Tree

    def values(self, texts: pl.Series) -> pl.DataFrame | None:
        """Return the contract's columns; None when any text has another shape."""
        table = decode_all(texts, self.tree)
        return None if table is None else pick(table, self.contract)[0]


def _decode(lines: pl.DataFrame, shape: _Shape) -> Iterator[tuple[pl.DataFrame, Values]]:
    """Yield lines and what they decode to, or None for lines that are no objects."""
    if lines.is_empty():
        return
    values = shape.values(lines["line"])
    if values is not None:
        odd = guessed(values, lines["line"], shape.contract.columns)
        if not odd.any():
            yield lines, values
            return
        yield lines.filter(~odd), values.filter(~odd)
        yield from _decode_few(lines.filter(odd), shape)
    elif lines.height > FEW:
        half = lines.height // 2
        yield from _decode(lines[:half], shape)
        yield from _decode(lines[half:], shape)
    else:
        yield from _decode_few(lines, shape)


def _decode_few(lines: pl.DataFrame, shape: _Shape) -> Iterator[tuple[pl.DataFrame, Values]]:
    """Look at every line: what has an odd shape keeps its other values."""
    if lines.is_empty():
        return
    mended = [mend(line, shape.tree, shape.contract.columns) for line in lines["line"]]
    objects = pl.Series([m is not None for m in mended], dtype=pl.Boolean)
    if not objects.all():
        yield lines.filter(~objects), None
    found = [m for m in mended if m is not None]
    values = shape.values(pl.Series([text for text, _ in found], dtype=pl.String))
    good = lines.filter(objects)
    if values is not None:
        yield good, _noted(values, [lost for _, lost in found], shape.contract)
    elif good.height == 1:  # the two parsers disagree about it
        yield good, None
    else:
        for one in good.iter_slices(1):
            yield from _decode_few(one, shape)


def _noted(values: pl.DataFrame, lost: list[set[str]], contract: Contract) -> pl.DataFrame:
    """Say which columns' values were lost; where that is a required one, the row is at fault."""
    required = {c.name for c in contract.columns if c.required}
    faults = [str(Reason.MALFORMED) if names & required else None for names in lost]
    unread = [",".join(sorted(names)) or None for names in lost]
    return values.with_columns(
        pl.Series(FAULT, faults, dtype=pl.String), pl.Series(UNREAD, unread, dtype=pl.String)
    )
