"""Read the demo market's lexicon from the TSV files beside this module.

========== =====================================================================================
tops       top categories
groups     leaf categories = substitute groups; ``attributes`` is a list of attribute names, each
           optionally narrowed to some of its values (``material:glass/steel``); ``unit`` names
           the list of pack sizes
types      product types with synonyms (``|`` between several)
attributes what values are values of
values     attribute values
brands     local and Latin spelling, and the top categories a brand may sell in
nicknames  opaque names of one language: seen in some titles, or in behaviour only
units      pack sizes
fillers    marketing words
========== =====================================================================================
"""

from __future__ import annotations

import csv
from functools import cache
from importlib.resources import files

from csrm_tasks.demo.market.lexicon.model import (
    Brand,
    Group,
    Lexicon,
    Nickname,
    ProductType,
    Value,
    Words,
)
from csrm_tasks.errors import DataError

Row = dict[str, str]


def read_rows(table: str) -> list[Row]:
    """Return the rows of ``{table}.tsv``; raises :class:`DataError` for a ragged row."""
    text = files(__package__).joinpath(f"{table}.tsv").read_text(encoding="utf-8")
    rows: list[Row] = []
    for number, row in enumerate(csv.DictReader(text.splitlines(), delimiter="\t"), start=2):
        if None in row or None in row.values():
            raise DataError(f"{table}.tsv:{number}: wrong number of columns; compare the header")
        rows.append(row)
    return rows


@cache
def load_lexicon() -> Lexicon:
    """Return the demo market's lexicon."""
    tops = {row["key"]: row for row in read_rows("tops")}
    group_rows, type_rows, brand_rows = (read_rows(t) for t in ("groups", "types", "brands"))
    known = {row["key"]: row for row in read_rows("attributes")}
    group_at = {row["key"]: i for i, row in enumerate(group_rows)}
    type_at = {row["key"]: i for i, row in enumerate(type_rows)}
    brand_at = {row["key"]: i for i, row in enumerate(brand_rows)}
    types = tuple(_type(row, group_at) for row in type_rows)
    nicknames = tuple(_nickname(row, type_at, brand_at) for row in read_rows("nicknames"))
    return Lexicon(
        types=types,
        groups=_groups(group_rows, tops),
        values=tuple(Value(_words(known[r["attribute"]]), _words(r)) for r in read_rows("values")),
        brands=_brands(brand_rows, group_rows, types, nicknames),
        nicknames=nicknames,
        fillers=tuple(Words(r["ko"], r["zh"], r["en"]) for r in read_rows("fillers")),
    )


def _words(row: Row) -> Words:
    return Words(row["ko"], row["zh"], row["en"])


def _type(row: Row, group_at: dict[str, int]) -> ProductType:
    ko, zh = (tuple(filter(None, row[f"synonyms_{lang}"].split("|"))) for lang in ("ko", "zh"))
    return ProductType(row["key"], group_at[row["group"]], _words(row), ko, zh)


def _groups(rows: list[Row], tops: dict[str, Row]) -> tuple[Group, ...]:
    values = read_rows("values")
    units: dict[str, list[Words]] = {}
    for row in read_rows("units"):
        units.setdefault(row["unit"], []).append(Words(row["ko"], row["zh"], row["en"]))
    groups = []
    for row in rows:
        top, words = _words(tops[row["top"]]), _words(row)
        path = Words(*(f"{a} > {b}" for a, b in zip(top, words, strict=True)))
        attributes = tuple(_narrow(part, values) for part in row["attributes"].split(","))
        groups.append(Group(words, path, attributes, tuple(units[row["unit"]])))
    return tuple(groups)


def _narrow(part: str, values: list[Row]) -> tuple[int, ...]:
    """Value positions of ``attribute`` or ``attribute:key/key``."""
    attribute, _, keys = part.partition(":")
    wanted = set(keys.split("/")) if keys else None
    return tuple(
        i
        for i, row in enumerate(values)
        if row["attribute"] == attribute and (wanted is None or row["key"] in wanted)
    )


def _nickname(row: Row, type_at: dict[str, int], brand_at: dict[str, int]) -> Nickname:
    lang, seen = row["lang"], row["seen"]
    if lang not in ("ko", "zh") or seen not in ("title", "behaviour"):
        raise DataError(f"nicknames.tsv: {row['text']}: lang is ko or zh, seen title or behaviour")
    return Nickname(
        text=row["text"],
        lang="ko" if lang == "ko" else "zh",
        type=type_at[row["type"]],
        brand=brand_at[row["brand"]],
        in_titles=seen == "title",
    )


def _brands(
    rows: list[Row],
    group_rows: list[Row],
    types: tuple[ProductType, ...],
    nicknames: tuple[Nickname, ...],
) -> tuple[Brand, ...]:
    """A brand sells in about half the groups of its tops, and wherever a nickname needs it."""
    brands = []
    for b, row in enumerate(rows):
        tops = row["tops"].split(",")
        known = [types[n.type].group for n in nicknames if n.brand == b]
        mine = [g for g, r in enumerate(group_rows) if r["top"] in tops]
        some = [g for g in mine if (b * 7 + g * 3) % 5 < 2] or mine[:1]
        words = Words(row["ko"], row["zh"], row["latin"])
        brands.append(Brand(words, tuple(dict.fromkeys(known + some))))
    return tuple(brands)
