"""JSON texts decoded at once into the fields that a contract names, and what to do with odd ones.

A text that holds a named field in a shape in which no value can be read (an object where the page
says a number, say) loses that field and keeps the others; it is told which.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

import polars as pl

from csrm_tasks.ingest.contracts import Column, Contract
from csrm_tasks.ingest.values import EXACT

Tree = dict[str, Any]  # field name → subtree, or the column that is read there
# A number that a 64-bit float may not hold: the quick decoder would round it.
LONG_FLOAT = r"[:,\[]\s*-?(\d{16,}\.\d|\d+(\.\d+)?[eE]\+?\d)"
MAYBE_LONG = (b".0,", b".0}", b"e+")  # as writers of floats end them; quick to look for


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


def loads(text: str) -> dict[str, Any] | None:
    """Return the object that a text is; None when it is none. Of equal keys the first counts."""
    try:
        value = json.loads(
            text, parse_constant=_refuse, parse_float=_number,
            object_pairs_hook=lambda pairs: dict(reversed(pairs)),
        )  # fmt: skip
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")


def _number(written: str) -> float | str:
    """Keep the writing of a number that a float may not hold."""
    value = float(written)
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"{written} is no number that anything holds")
    if abs(value) < EXACT[pl.Float64]:
        return value
    return written.lower().replace("e", "e+").replace("e++", "e+")


def _misfits(value: Any, tree: Tree | Column) -> Iterator[Column]:
    """Yield the columns of ``tree`` that have no value because of the shape of ``value``."""
    if value is None:
        return
    if not isinstance(tree, dict):
        if not _is_plain(value, tree):
            yield tree
        return
    for name, inner in tree.items():
        yield from _misfits(value.get(name) if isinstance(value, dict) else value, inner)


def _is_plain(value: Any, column: Column) -> bool:
    items = value if isinstance(value, list) and column.holds == "list" else [value]
    return not any(isinstance(v, dict | list) for v in items)


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
        else:
            found[name] = part if _is_plain(part, inner) else None
    return found


def _at(value: Any, names: Sequence[str]) -> Any:
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
    if table is None:
        mended = [mend(text, tree) for text in full["text"]]
        texts = [m[0] if m else "{}" for m in mended]
        lost = pl.Series([m is None or bool(m[1]) for m in mended], dtype=pl.Boolean)
        table = decode_all(pl.Series(texts, dtype=pl.String), tree)
        assert table is not None  # what json writes
    opened = full.select("n", table.to_struct("value"), lost.alias("lost"))
    both = numbered.join(opened, on="n", how="left", maintain_order="left")
    return both["value"].alias(cells.name), both["lost"].fill_null(False)
