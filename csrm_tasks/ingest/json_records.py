"""JSON Lines: all lines decoded at once into the contract's fields; one by one where that fails."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import polars as pl

from csrm_tasks.ingest.contracts import Contract, Reason
from csrm_tasks.ingest.records import Offsets, Records, assemble, pick, spans

Tree = dict[str, Any]  # field name → subtree, empty for a leaf


def read_jsonl(data: bytes, contract: Contract) -> Records:
    """Read one object per line; blank lines are no rows."""
    starts, ends = _lines(data)
    rows = range(1, len(starts) + 1)
    fast = _decode_all(data, starts, ends, contract)
    if fast is not None:
        frame = assemble([(rows, pick(fast, contract)[0])], {}, contract)
    else:
        frame = _decode_each(spans(data, starts, ends)(rows), contract)
    return Records(frame, (), spans(data, starts, ends))


def _lines(data: bytes) -> tuple[Offsets, Offsets]:
    """Return where each line that is not blank starts and ends (its newline not included)."""
    newlines = np.flatnonzero(np.frombuffer(data, np.uint8) == ord("\n"))
    starts = np.concatenate(([0], newlines + 1)).astype(np.int64)
    ends = np.concatenate((newlines, [len(data)])).astype(np.int64)
    blank = [not data[s:e].strip() for s, e in zip(starts, ends, strict=True)]
    return starts[~np.array(blank)], ends[~np.array(blank)]


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


def _decode_all(
    data: bytes, starts: Offsets, ends: Offsets, contract: Contract
) -> pl.DataFrame | None:
    """Decode every line at once; None when any line is not a plain object of the contract.

    Each line is wrapped with its number: two objects on one line, or one over two, would
    otherwise shift every row after them without a word.
    """
    try:
        lines = [data[s:e].decode() for s, e in zip(starts, ends, strict=True)]
        wrapped = pl.Series([f'{{"n":{i},"v":{line}}}' for i, line in enumerate(lines)])
        shape = pl.Struct({"n": pl.Int64, "v": _struct(_tree(contract))})
        decoded = wrapped.str.json_decode(shape).struct.unnest()
    except (UnicodeDecodeError, pl.exceptions.PolarsError):
        return None
    if decoded["n"].to_list() != list(range(len(lines))) or decoded["v"].has_nulls():
        return None
    return decoded["v"].struct.unnest()


def _decode_each(lines: list[bytes], contract: Contract) -> pl.DataFrame:
    tree = _tree(contract)
    good: list[Tree] = []
    rows: list[int] = []
    faults: dict[int, Reason] = {}
    for row, line in enumerate(lines, start=1):
        try:
            good.append(_leaves(json.loads(line.decode()), tree))
            rows.append(row)
        except UnicodeError:
            faults[row] = Reason.ENCODING
        except (ValueError, RecursionError):
            faults[row] = Reason.MALFORMED
    table = pl.DataFrame({"v": good}, schema={"v": _struct(tree)}).unnest("v")
    return assemble([(rows, pick(table, contract)[0])], faults, contract)


def _leaves(value: Any, tree: Tree) -> Any:
    """Return the part of ``value`` that ``tree`` names, leaves as text; ValueError otherwise."""
    if value is None:
        return None
    if tree:
        if not isinstance(value, dict):
            raise ValueError("an object was expected")
        return {name: _leaves(value.get(name), inner) for name, inner in tree.items()}
    if isinstance(value, str):
        value.encode()  # a lone surrogate raises UnicodeEncodeError
        return value
    if isinstance(value, dict | list):
        raise ValueError("a plain value was expected")
    return json.dumps(value)
