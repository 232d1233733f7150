"""JSON texts decoded at once into the fields that a contract names, and what to do with odd ones.

A text that holds a named field in a shape in which no value can be read (an object where the page
says a number, say) loses that field and keeps the others; it is told which.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from csrm_tasks.ingest.contract.contracts import Column, Contract
from csrm_tasks.ingest.reading.values import LONG_FLOAT, json_loads, list_of

Tree = dict[str, Any]  # field name → subtree, or the column that is read there
DOT = 46  # the byte
LONG = 16  # digits from which a decoded number may be a rounded one


def tree_of(contract: Contract, dotted: bool) -> Tree:
    """Return the fields in which values usually are; ``dotted``: under names with dots as well."""
    tree: Tree = {}
    for column in contract.columns:
        for path in column.usual:
            for names in _spellings(path.split(".")) if dotted else [path.split(".")]:
                node = tree
                for name in names[:-1]:
                    node = node.setdefault(name, {})
                node[names[-1]] = column
    return tree


def roots(contract: Contract) -> dict[str, Tree]:
    """Return the subtrees of objects at the top: ``event_attributes``, say."""
    tree = tree_of(contract, dotted=False)
    return {name: inner for name, inner in tree.items() if isinstance(inner, dict)}


def has_dotted(data: bytes, contract: Contract) -> bool:
    """Return whether any name in ``data`` may be a path with dots."""
    body = np.frombuffer(data, np.uint8)
    # Those of numbers and times are the many, and much cheaper to find out than a name is to find.
    if not (body[np.flatnonzero(body[1:] == DOT)] >= ord("A")).any():
        return False
    firsts = {p.rpartition(".")[0].split(".")[-1] for c in contract.columns for p in c.usual}
    firsts |= {p.split(".")[0] for c in contract.columns for p in c.usual if "." in p}
    return any(f"{name}.".encode() in data for name in firsts if name)


def _spellings(names: Sequence[str]) -> Iterator[list[str]]:
    """Yield every way to write a path, nested ones first: a.b.c, a."b.c", "a.b".c, "a.b.c"."""
    if len(names) == 1:
        yield list(names)
        return
    for rest in _spellings(names[1:]):
        yield [names[0], *rest]
    for rest in _spellings([f"{names[0]}.{names[1]}", *names[2:]]):
        yield rest


def _struct(tree: Tree) -> pl.Struct:
    return pl.Struct([
        pl.Field(name, _struct(inner) if isinstance(inner, dict) else inner.read_as)
        for name, inner in tree.items()
    ])  # fmt: skip


def decode_all(texts: pl.Series, tree: Tree) -> pl.DataFrame | None:
    """Decode every text at once; None when any is not an object with the tree's shapes.

    Each is wrapped with its number: two objects in one text, or one over two, would otherwise
    shift every row after them without a word.
    """
    shape = pl.Struct({"n": pl.Int64, "v": _struct(tree)})
    number = pl.int_range(pl.len())
    wrapped = pl.concat_str(
        pl.lit('{"n":'), number.cast(pl.String), pl.lit(',"v":'), "text", pl.lit("}")
    )
    try:
        decoded = texts.to_frame("text").select(wrapped.str.json_decode(shape))
        found = decoded.to_series().struct.unnest()
    except pl.exceptions.PolarsError:
        return None
    if found["v"].has_nulls() or not found["n"].equals(pl.Series("n", range(len(texts)))):
        return None
    return found["v"].struct.unnest()


def guessed(values: pl.DataFrame, texts: pl.Series, columns: Sequence[Column]) -> pl.Series:
    """Return in which of decoded ``texts`` a value is perhaps another than the one written.

    The quick decoder rounds a long float, and makes a list of a text or number that stands where
    one belongs. ``values`` are its, of ``columns``: few need a look at the text.
    """
    found = pl.repeat(False, values.height, dtype=pl.Boolean, eager=True)
    names = [c.name for c in columns if c.holds == "identifier"]
    longest = values.select(pl.col(names).str.len_bytes().max()).row(0, named=True)
    for column in columns:
        if (longest.get(column.name) or 0) < LONG and column.holds != "list":
            continue
        for rows, pattern in _may_be_guessed(column, values[column.name]):
            wrong = rows.filter(texts.gather(rows).str.contains(pattern))
            found = found.scatter(wrong, True)
    return found


def _may_be_guessed(column: Column, values: pl.Series) -> Iterator[tuple[pl.Series, str]]:
    """Yield rows to be looked at, and the pattern of what must not be in their texts."""
    long = rf"^-?\d{{{LONG},}}$"
    if column.holds == "list":
        names = "|".join(re.escape(name) for name in column.usual)
        yield (values.list.len() == 1).arg_true(), rf'"(?:{names})"\s*:\s*[^\[n\s]'
        if values.explode().str.contains(long).any():
            rows = values.list.eval(pl.element().str.contains(long).any()).list.first()
            yield rows.arg_true(), LONG_FLOAT
    else:
        yield values.str.contains(long).arg_true(), LONG_FLOAT


def loads(text: str) -> dict[str, Any] | None:
    """Return the object that a text is; None when it is none. Of equal keys the first counts."""
    try:
        value = json_loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _misfits(value: object, tree: Tree | Column) -> Iterator[Column]:
    """Yield the columns of ``tree`` that have no value because of the shape of ``value``."""
    if value is None:
        return
    if not isinstance(tree, dict):
        if not _is_plain(value, tree):
            yield tree
        return
    for name, inner in tree.items():
        yield from _misfits(value.get(name) if isinstance(value, dict) else value, inner)


def _is_plain(value: object, column: Column) -> bool:
    if column.holds == "list":
        return value is None or _items(value) is not None
    return not isinstance(value, dict | list)


def _items(value: object) -> list[Any] | None:
    """Return the items of a list, also of one that is written as text; else null."""
    if isinstance(value, str):
        value = list_of(value) if value.strip() else []
    plain = isinstance(value, list) and not any(isinstance(v, dict | list) for v in value)
    return value if plain else None  # type: ignore[return-value]


def mend(text: str, tree: Tree, columns: Iterable[Column] = ()) -> tuple[str, set[str]] | None:
    """Return an object's text with the shapes of ``tree``, and which columns lost their value.

    None: it is no object at all.
    """
    value = loads(text)
    if value is None:
        return None
    value = _opened(value, tree)
    kept = _pruned(value, tree)
    for column in columns:
        elsewhere = (_at(value, path.split(".")) for path in column.also)
        if kept.get(column.name) is None:
            plain = (v for v in elsewhere if v is not None and _is_plain(v, column))
            kept[column.name] = next(plain, None)
    lost = {c.name: c for c in _misfits(value, tree)}
    return json.dumps(kept), {name for name, c in lost.items() if not _has(kept, c)}


def _has(value: dict[str, Any], column: Column) -> bool:
    return any(_at(value, path.split(".")) is not None for path in (column.name, *column.usual))


def _opened(value: Mapping[str, Any], tree: Tree) -> dict[str, Any]:
    """Read texts that stand where objects belong as JSON."""
    found = dict(value)
    for name, inner in tree.items():
        if isinstance(inner, dict):
            part = found.get(name)
            part = loads(part) or part if isinstance(part, str) else part
            found[name] = _opened(part, inner) if isinstance(part, dict) else part
    return found


def _pruned(value: Mapping[str, Any], tree: Tree) -> dict[str, Any]:
    """Return what fits of the fields that ``tree`` names."""
    found: dict[str, Any] = {}
    for name, inner in tree.items():
        part = value.get(name)
        if isinstance(inner, dict):
            found[name] = _pruned(part, inner) if isinstance(part, dict) else None
        elif inner.holds == "list":
            found[name] = _items(part)
        else:
            found[name] = part if _is_plain(part, inner) else None
    return found


def _at(value: object, names: Sequence[str]) -> object:
    for name in names:
        if not isinstance(value, dict):
            return None
        value = value.get(name)
    return value


def open_cells(cells: pl.Series, tree: Tree) -> tuple[pl.Series, pl.Series]:
    """Decode the texts of a column into structs; also tell which of them lost something thereby.

    An empty cell is null; one that is no object is null, and lost.
    """
    numbered = pl.DataFrame({"n": pl.int_range(len(cells), eager=True), "text": cells})
    full = numbered.filter(pl.col("text").str.strip_chars() != "")
    table, lost = decode_all(full["text"], tree), pl.repeat(False, full.height, eager=True)
    if table is None or full["text"].str.contains(LONG_FLOAT).any():
        mended = [mend(text, tree) for text in full["text"]]
        texts = [m[0] if m else "{}" for m in mended]
        lost = pl.Series([m is None or bool(m[1]) for m in mended], dtype=pl.Boolean)
        table = decode_all(pl.Series(texts, dtype=pl.String), tree)
        assert table is not None  # what json writes
    opened = full.select("n", table.to_struct("value"), lost.alias("lost"))
    both = numbered.join(opened, on="n", how="left", maintain_order="left")
    return both["value"].alias(cells.name), both["lost"].fill_null(False)
