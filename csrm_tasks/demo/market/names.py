"""A lexicon of real names: categories, attributes and values in Korean and Traditional Chinese.

Read from three Parquet files (a public product taxonomy): leaf categories are product types, their
parent is the substitute group, and each group gets two attributes with real values. What the files
lack is taken from the demo market's lexicon: brands, nicknames, pack sizes, marketing words.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl

from csrm_tasks.demo.market.compose import pick
from csrm_tasks.demo.market.lexicon import (
    Brand,
    Group,
    Lexicon,
    ProductType,
    Value,
    Words,
    load_lexicon,
)
from csrm_tasks.demo.market.world import stream
from csrm_tasks.errors import CsrmError

CATEGORIES = "shopify_categories_multilingual.parquet"
ATTRIBUTES = "shopify_attributes_multilingual.parquet"
VALUES = "shopify_values_multilingual.parquet"
EVENTS = "ubi_events_esci_synthetic.parquet"

TYPES = 420  # about so many leaf categories are used
IN_GROUP = (3, 8)  # leaves of one parent, at least and at most
ATTRIBUTE_VALUES = (4, 10)  # values of one attribute, at least and at most
BRANDS_IN_GROUP = 8
# Attributes that most things have, as the files name them in English.
GENERAL = ("Color", "Material", "Pattern", "Style", "Shape", "Theme", "Finish")
LONGEST = 14  # letters of a name: what titles and queries can bear

ByAttribute = dict[str, tuple[int, ...]]  # English name of an attribute → its values
NAMES = ["name_ko", "name_zh_tw", "name_en"]
OTHER = "기타"  # says nothing of a product
HANGUL, HAN = re.compile(r"[가-힣]"), re.compile(r"[一-鿿]")


def data_file(data: Path, name: str) -> Path:
    """Return ``data/name``; raises :class:`CsrmError` where it is absent."""
    path = data / name
    if not path.is_file():
        raise CsrmError(
            f"{path} is absent: the names market needs it; say where it lies with --data FOLDER"
        )
    return path


def names_lexicon(data: Path, seed: int) -> Lexicon:
    """Return a lexicon over a seeded choice of the categories and values below ``data``."""
    rng = stream(seed, "names")
    values, by_attribute = _values(data, rng)
    groups, types = _groups(data, by_attribute, rng)
    brands = _brands(len(groups), rng)
    demo = load_lexicon()
    meant = rng.permutation(len(types))[: len(demo.nicknames)].tolist()
    sellers = {g: b for b, brand in reversed(list(enumerate(brands))) for g in brand.groups}
    nicknames = tuple(
        replace(nickname, type=t, brand=sellers[types[t].group])
        for nickname, t in zip(demo.nicknames, meant, strict=True)
    )
    return Lexicon(types, groups, values, brands, nicknames, demo.fillers)


def _usable(frame: pl.DataFrame) -> pl.DataFrame:
    """Rows whose names are in their own script, short, and each like no other's."""
    ok = [
        bool(HANGUL.search(ko) and HAN.search(zh))
        and max(len(ko), len(zh)) <= LONGEST
        and ko != OTHER
        for ko, zh in frame.select("name_ko", "name_zh_tw").iter_rows()
    ]
    kept = frame.filter(pl.Series(ok, dtype=pl.Boolean))
    return kept.unique("name_ko", keep="first", maintain_order=True).unique(
        "name_zh_tw", keep="first", maintain_order=True
    )


def _values(data: Path, rng: np.random.Generator) -> tuple[tuple[Value, ...], ByAttribute]:
    """Some values of every attribute, and for each attribute the positions of its values."""
    attributes = pl.read_parquet(data_file(data, ATTRIBUTES)).select(NAMES)
    names = {en: Words(ko, zh, en) for ko, zh, en in attributes.iter_rows()}
    found: list[Value] = []
    by_attribute: ByAttribute = {}
    least, most = ATTRIBUTE_VALUES
    table = pl.read_parquet(data_file(data, VALUES)).sort("id")
    for (attribute,), rows in table.group_by(["attribute_en"], maintain_order=True):
        usable = _usable(rows).select(NAMES).rows()
        if attribute not in names or len(usable) < least:
            continue
        chosen = sorted(rng.permutation(len(usable))[:most].tolist())
        by_attribute[str(attribute)] = tuple(range(len(found), len(found) + len(chosen)))
        found += [Value(names[str(attribute)], Words(*usable[i])) for i in chosen]
    return tuple(found), by_attribute


def _groups(
    data: Path, by_attribute: ByAttribute, rng: np.random.Generator
) -> tuple[tuple[Group, ...], tuple[ProductType, ...]]:
    """Parents with enough usable leaves, in seeded order, until there are :data:`TYPES` types."""
    parent = pl.col("id").str.replace(r"-\d+$", "").alias("parent")
    table = pl.read_parquet(data_file(data, CATEGORIES)).sort("id").with_columns(parent)
    inner = table.filter(pl.col("id").is_in(table["parent"].implode()))
    leaves = _usable(table.filter(~pl.col("id").is_in(inner["id"].implode())))
    families = {str(k): f.rows(named=True) for (k,), f in leaves.group_by(["parent"])}
    named = {row["id"]: row for row in _usable(inner).rows(named=True)}
    known = sorted(k for k in families if k in named and len(families[k]) >= IN_GROUP[0])
    units = tuple(u for g in load_lexicon().groups for u in g.units)
    groups: list[Group] = []
    types: list[ProductType] = []
    for key in rng.permutation(known).tolist():
        if len(types) >= TYPES:
            break
        row = named[key]
        path = Words(row["path_ko"], row["path_zh_tw"], row["path_en"])
        attributes = _attributes_of(row["name_en"], by_attribute, rng)
        some = tuple(units[i] for i in rng.integers(0, len(units), 5).tolist())
        groups.append(Group(Words(*(row[n] for n in NAMES)), path, attributes, some))
        for leaf in families[key][: IN_GROUP[1]]:
            words = Words(*(leaf[n] for n in NAMES))
            types.append(ProductType(leaf["id"], len(groups) - 1, words))
    return tuple(groups), tuple(types)


def _attributes_of(
    name: str, by_attribute: ByAttribute, rng: np.random.Generator
) -> tuple[tuple[int, ...], ...]:
    """A general attribute, and one that shares a word with the group's name or else another."""
    general = [a for a in rng.permutation(GENERAL).tolist() if a in by_attribute]
    words = {w.rstrip("s") for w in name.lower().split() if len(w) > 3}
    own = [a for a in by_attribute if words & {w.rstrip("s") for w in a.lower().split()}]
    second = pick(own, float(rng.random())) if own else general[1]
    return by_attribute[general[0]], by_attribute[second]


def _brands(groups: int, rng: np.random.Generator) -> tuple[Brand, ...]:
    """The demo market's brands, :data:`BRANDS_IN_GROUP` of them in each group."""
    words = [brand.words for brand in load_lexicon().brands]
    sells: list[list[int]] = [[] for _ in words]
    for group in range(groups):
        for brand in rng.choice(len(words), BRANDS_IN_GROUP, replace=False).tolist():
            sells[brand].append(group)
    return tuple(Brand(w, tuple(g)) for w, g in zip(words, sells, strict=True) if g)
