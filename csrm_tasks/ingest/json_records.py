"""JSON Lines: all lines decoded at once into the contract's fields.

Where that fails, the lines are halved until the faulty ones are found; what a good line decodes to
does not depend on its neighbours. Of a key that an object has twice the first value counts.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NoReturn

import numpy as np
import polars as pl

from csrm_tasks.ingest.contracts import Contract, Reason
from csrm_tasks.ingest.records import (
    NEWLINE,
    Flags,
    RawOf,
    Records,
    assemble,
    blank_lines,
    cut_lines,
    pick,
    spans,
)

Tree = dict[str, Any]  # field name → subtree, empty for a leaf
FEW = 256  # lines that are looked at one by one


def read_jsonl(data: bytes, contract: Contract, first: int = 1) -> Records:
    """Read one object per line, numbered from ``first``; blank lines are no rows."""
    full, raw = _full_lines(data, first)
    lines, faults = _decoded_lines(data, full, first)
    tree = _tree(contract)
    parts: list[tuple[Any, pl.DataFrame]] = []
    for rows, table in _decode(lines, tree):
        if table is None:
            faults |= dict.fromkeys(rows["row"].to_list(), Reason.MALFORMED)
        else:
            parts.append((rows["row"], pick(table, contract)[0]))
    return Records(assemble(parts, faults, contract), (), raw)


def jsonl_rows(data: bytes, first: int) -> tuple[int, RawOf]:
    """Return how many rows :func:`read_jsonl` finds, and their bytes, without reading values."""
    full, raw = _full_lines(data, first)
    return int(full.sum()), raw


def _full_lines(data: bytes, first: int) -> tuple[Flags, RawOf]:
    """Return which lines are not blank, and those lines' bytes."""
    starts, ends = cut_lines(np.flatnonzero(np.frombuffer(data, np.uint8) == NEWLINE), len(data))
    full = ~blank_lines(data, starts, ends)
    return full, spans(data, starts[full], ends[full], first)


def _decoded_lines(data: bytes, full: Flags, first: int) -> tuple[pl.DataFrame, dict[int, Reason]]:
    """Return row and line (text) of every full line that is UTF-8, and faults of the others."""
    import pyarrow as pa

    newlines = np.flatnonzero(np.frombuffer(data, np.uint8) == NEWLINE)
    bounds = np.append(cut_lines(newlines, len(data))[0], len(data))
    buffers = [None, pa.py_buffer(bounds), pa.py_buffer(data)]
    lines = pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(bounds) - 1, buffers)
    rows = np.arange(first, first + int(full.sum()))
    chosen = lines.filter(pa.array(full))
    try:
        texts = chosen.cast(pa.large_string())
        return pl.DataFrame({"row": rows, "line": pl.from_arrow(texts)}), {}
    except pa.ArrowInvalid:
        good = [_utf8(line.as_py()) for line in chosen]
        frame = pl.DataFrame({"row": rows, "line": pl.Series(good, dtype=pl.String)})
        bad = frame.filter(pl.col("line").is_null())["row"].to_list()
        return frame.drop_nulls("line"), dict.fromkeys(bad, Reason.ENCODING)


def _utf8(line: bytes) -> str | None:
    try:
        return line.decode()
    except UnicodeDecodeError:
        return None


def _tree(contract: Contract) -> Tree:
    tree: Tree = {}
    for column in contract.columns:
        for path in column.paths:
            node = tree
            for name in path.split("."):
                node = node.setdefault(name, {})
    return tree


def _struct(tree: Tree) -> pl.DataType | type[pl.DataType]:
    if not tree:
        return pl.String
    return pl.Struct([pl.Field(name, _struct(inner)) for name, inner in tree.items()])


def _decode(lines: pl.DataFrame, tree: Tree) -> Iterator[tuple[pl.DataFrame, pl.DataFrame | None]]:
    """Yield lines and what they decode to, or None for lines that are no such objects."""
    if lines.is_empty():
        return
    table = _decode_all(lines["line"], tree)
    if table is not None:
        yield lines, table
    elif lines.height == 1:
        yield lines, None
    elif lines.height > FEW:
        half = lines.height // 2
        yield from _decode(lines[:half], tree)
        yield from _decode(lines[half:], tree)
    else:
        yield from _decode_few(lines, tree)


def _decode_few(
    lines: pl.DataFrame, tree: Tree
) -> Iterator[tuple[pl.DataFrame, pl.DataFrame | None]]:
    plain = pl.Series([_is_plain(line, tree) for line in lines["line"]], dtype=pl.Boolean)
    if not plain.all():
        yield lines.filter(~plain), None
        yield from _decode(lines.filter(plain), tree)
    else:  # the two parsers disagree about one of them
        for one in lines.iter_slices(1):
            yield from _decode(one, tree)


def _decode_all(lines: pl.Series, tree: Tree) -> pl.DataFrame | None:
    """Decode every line at once; None when any line is not a plain object of the contract.

    Each line is wrapped with its number: two objects on one line, or one over two, would
    otherwise shift every row after them without a word.
    """
    shape = pl.Struct({"n": pl.Int64, "v": _struct(tree)})
    number = pl.int_range(pl.len())
    wrapped = pl.concat_str(
        pl.lit('{"n":'), number.cast(pl.String), pl.lit(',"v":'), "line", pl.lit("}")
    )
    try:
        decoded = lines.to_frame("line").select(wrapped.str.json_decode(shape))
        found = decoded.to_series().struct.unnest()
    except pl.exceptions.PolarsError:
        return None
    if found["v"].has_nulls() or not found["n"].equals(pl.Series("n", range(len(lines)))):
        return None
    return found["v"].struct.unnest()


def _is_plain(line: str, tree: Tree) -> bool:
    try:
        value = json.loads(line, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and _fits(value, tree)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")


def _fits(value: Any, tree: Tree) -> bool:
    """Return whether the part of ``value`` that ``tree`` names has plain values for leaves."""
    if value is None:
        return True
    if tree:
        return isinstance(value, dict) and all(_fits(value.get(k), t) for k, t in tree.items())
    return not isinstance(value, dict | list)
