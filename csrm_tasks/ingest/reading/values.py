"""One rule of reading a value, whatever carries it.

Text stays as it is. A number is its shortest decimal writing: 7, 7.0 and DECIMAL 7.00 are ``7``.
NaN and infinite are no value. A float too large to tell whole numbers apart is written with an
exponent or ``.0``, and one below a thousandth with an exponent or without, as its writer likes:
neither is an identifier (:func:`inexact`). Bytes are UTF-8, true is
``true``. A value of another shape (an object, a list) is none: the reader counts it.

A dotted path is a nested field, a name with dots, or any mixture of the two; a text in the place of
an object is read as JSON.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NoReturn

import polars as pl

if TYPE_CHECKING:
    from polars.datatypes import DataTypeClass

# A number in JSON that a 64-bit float may not hold: a quick decoder rounds it.
LONG_FLOAT = r"(?:^|[:,\[])\s*-?(\d{16,}\.\d|\d+(\.\d+)?[eE]\+?\d)"
EXACT = {pl.Float64: 2**53, pl.Float32: 2**24}  # below, a float tells whole numbers apart
Type = pl.DataType | type[pl.DataType]


@dataclass(frozen=True)
class Found:
    """A place in a table where a value of a column may be."""

    expr: pl.Expr
    dtype: pl.DataType
    path: str = ""


def places(schema: pl.Schema, path: str) -> Iterator[Found]:
    """Yield where ``path`` is in a table, nested fields before names with dots."""
    for name, rest in _cuts(path):
        if name in schema:
            for found in _inside(Found(pl.col(name), schema[name]), rest):
                yield replace(found, path=path)


def _cuts(path: str) -> Iterator[tuple[str, str]]:
    names = path.split(".")
    for i in range(1, len(names) + 1):
        yield ".".join(names[:i]), ".".join(names[i:])


def _inside(found: Found, path: str) -> Iterator[Found]:
    if not path:
        yield found
        return
    for name, rest in _cuts(path):
        field = _field(found, name)
        if field is not None:
            yield from _inside(field, rest)


def _field(found: Found, name: str) -> Found | None:
    """Return a field of a struct, or the value of a key of a map."""
    dtype = found.dtype
    if isinstance(dtype, pl.Struct):
        inner = {f.name: f.dtype for f in dtype.fields}
        return _of(found.expr.struct.field(name), inner[name]) if name in inner else None
    if isinstance(dtype, pl.Map):
        return _of(found.expr.map.get(name), dtype.value)
    return None


def fields(found: Found) -> Iterator[Found]:
    """Yield the fields of a struct."""
    assert isinstance(found.dtype, pl.Struct)
    for field in found.dtype.fields:
        yield _of(found.expr.struct.field(field.name), field.dtype)


def _of(expr: pl.Expr, dtype: pl.DataType | DataTypeClass) -> Found:
    return Found(expr, dtype if isinstance(dtype, pl.DataType) else dtype())


def is_plain(dtype: pl.DataType, read_as: Type) -> bool:
    """Return whether values of ``dtype`` can be read as text, or as a list of texts."""
    if isinstance(dtype, pl.List | pl.Array) and read_as == pl.List(pl.String):
        return not dtype.inner.is_nested()
    return not dtype.is_nested() and dtype != pl.Object


def read(found: Found, read_as: Type) -> pl.Expr:
    """Return a place's values as text, or as lists of texts, empty ones as null."""
    if read_as == pl.List(pl.String):
        if isinstance(found.dtype, pl.Array):
            return read(replace(found, expr=found.expr.arr.to_list(),
                                dtype=pl.List(found.dtype.inner)), read_as)  # fmt: skip
        if isinstance(found.dtype, pl.List):
            inner = _of(pl.element(), found.dtype.inner)
            return found.expr.list.eval(as_text(inner.expr, inner.dtype))
        return _json_list(as_text(found.expr, found.dtype))
    return as_text(found.expr, found.dtype)


def as_text(expr: pl.Expr, dtype: pl.DataType) -> pl.Expr:
    """Return scalars as text by the rule above."""
    if isinstance(dtype, pl.Datetime):
        utc = expr.dt.convert_time_zone("UTC") if dtype.time_zone else expr
        return utc.dt.strftime("%Y-%m-%dT%H:%M:%S%.fZ")
    if dtype == pl.Binary:
        return expr.map_batches(_utf8, return_dtype=pl.String)
    if isinstance(dtype, pl.Decimal):
        text = expr.cast(pl.String)
        short = text.str.strip_chars_end("0").str.strip_chars_end(".")
        return pl.when(text.str.contains(".", literal=True)).then(short).otherwise(text)
    if dtype.is_float():
        return _float_text(expr, EXACT[pl.Float32 if dtype == pl.Float32 else pl.Float64])
    return expr.cast(pl.String)


def _float_text(expr: pl.Expr, exact: int) -> pl.Expr:
    finite = pl.when(expr.is_finite()).then(expr)
    text = finite.cast(pl.String)
    plain = text.str.strip_suffix(".0")
    large = pl.format("{}e+0", plain)  # as good a number, and no identifier
    whole = (expr.abs() < exact) | text.str.contains("e", literal=True)
    return pl.when(whole).then(plain).otherwise(large)


def _utf8(values: pl.Series) -> pl.Series:
    try:
        return values.cast(pl.String)
    except pl.exceptions.PolarsError:
        return pl.Series(values.name, [_decoded(v) for v in values], dtype=pl.String)


def _decoded(value: bytes | None) -> str | None:
    try:
        return None if value is None else value.decode()
    except UnicodeDecodeError:
        return None


def _json_list(texts: pl.Expr) -> pl.Expr:
    """Read ``["a", "b"]``, or ``['a', 'b']`` as pandas writes it into a cell; else null."""
    cells = pl.when(texts.str.contains(r"^\s*\[.*\]\s*$")).then(texts)
    return cells.map_batches(_lists, return_dtype=pl.List(pl.String))


def _lists(cells: pl.Series) -> pl.Series:
    kind = pl.List(pl.String)
    if not cells.str.contains(LONG_FLOAT).any():
        try:
            return cells.str.json_decode(kind)
        except pl.exceptions.PolarsError:
            pass
    return pl.Series(cells.name, [None if c is None else _list(c) for c in cells], dtype=kind)


def _list(cell: str) -> list[str] | None:
    """Read one cell as the quick decoder reads a list; a cell of another shape is null."""
    try:
        found = pl.Series([json.dumps(list_of(cell))]).str.json_decode(pl.List(pl.String))
    except pl.exceptions.PolarsError:  # not all items are plain
        return None
    items: list[list[str] | None] = found.to_list()
    return items[0]


def list_of(cell: str) -> list[Any] | None:
    """Return the items of a list that is written as text; null where it is none."""
    for text in (cell, cell.replace("'", '"')):
        try:
            items = json_loads(text)
        except (ValueError, RecursionError):
            continue
        return items if isinstance(items, list) else None
    return None


def json_loads(text: str) -> object:
    """Read JSON; of equal keys the first counts, and a long float keeps what was written.

    Raises :class:`ValueError` or :class:`RecursionError`.
    """
    return json.loads(
        text, parse_constant=_refuse, parse_float=_number,
        object_pairs_hook=lambda pairs: dict(reversed(pairs)),
    )  # fmt: skip


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")


def _number(written: str) -> float | str:
    """Keep the writing of a number that a float may not hold, with an exponent: see inexact()."""
    value = float(written)
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"{written} is no number that anything holds")
    if abs(value) < EXACT[pl.Float64]:
        return value
    digits, _, exponent = written.lower().partition("e")
    return f"{digits}e+{exponent.lstrip('+') or 0}"


def digits(texts: pl.Series) -> pl.Series:
    """Return whole numbers without the ``.0`` that a carrier of floats gave them."""
    if not texts.str.contains(r"^-?\d+\.0+$").any():
        return texts
    number = texts.str.extract(r"^(-?\d+)\.0+$")
    sure = number.cast(pl.Int64, strict=False).abs() < EXACT[pl.Float64]
    return number.zip_with(sure.fill_null(False), texts)


def inexact(texts: pl.Series) -> pl.Series:
    """Return which identifiers are floats so large that several have the same writing, or so small
    that one has several: 0.0000001 is 1e-7, 1e-07 and 1.0E-7, as writers of floats have it.
    """
    if str(texts.min() or "~") > ":":  # they all begin with a letter
        return pl.repeat(False, texts.len(), eager=True)
    large = r"\d+(\.0+|(\.\d+)?[eE]\+\d+)"  # digits() took the exact ones
    small = r"0\.000\d+|[1-9](\.\d+)?e-\d+|[1-9]\.\d+E-\d+"
    return texts.str.contains(rf"^-?({large}|{small})$").fill_null(False)
