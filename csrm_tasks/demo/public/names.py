"""Real names of categories in many languages, split so that a language can be held out.

Read from a public product taxonomy (as ``make demo MARKET=names`` reads it): every category has an
English path and a name in each language. A category is on one side, by its English name: so is its
name in every other language. What is judged by is neither a category nor, of a language that is
held out, a language that anything was learnt of; and a text that train holds in any language is not
asked again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from csrm_tasks.dataset.splits import uniform
from csrm_tasks.demo.market.names import CATEGORIES, data_file
from csrm_tasks.demo.market.world import stream
from csrm_tasks.errors import ConfigError, CsrmError
from csrm_tasks.text import normalise, normalised, query_ids

COLUMNS = {  # locale → column with the names
    "en-US": "name_en", "de-DE": "name_de", "es-ES": "name_es", "ko-KR": "name_ko",
    "zh-TW": "name_zh_tw", "ja-JP": "name_ja", "fr-FR": "name_fr", "th-TH": "name_th",
}  # fmt: skip
HELD_OUT = ("zh-TW", "ja-JP", "fr-FR", "th-TH")
SHARES = {"train": 0.7, "dev": 0.8}  # of the English names, the rest is test: the upper ends
QUERIES = ("locale", "query", "norm", "query_id", "category", "split")


@dataclass(frozen=True)
class Names:
    """Categories, and what they are called: one query for each name."""

    paths: list[str]  # of every category, in English
    parents: list[int]  # row of the category above, -1: none
    queries: pl.DataFrame  # QUERIES; ``category`` is a row of paths
    held_out: tuple[str, ...]

    def of(self, split: str) -> pl.DataFrame:
        """Return the queries of a split; train and dev have none of a language held out."""
        own = self.queries.filter(split=split)
        return own if split == "test" else own.filter(~pl.col("locale").is_in(self.held_out))


def read_names(data: Path, held_out: Sequence[str], seed: int, most: int | None = None) -> Names:
    """Read and split the names below ``data``; ``most`` categories, drawn by ``seed``; None: all.

    Raises :class:`CsrmError` where the file is absent or lacks a column, :class:`ConfigError` for a
    language that it does not have, or where fewer than two would be learnt.
    """
    strange = sorted(set(held_out) - set(COLUMNS))
    if strange or len(COLUMNS) - len(set(held_out)) < 2:
        what = f"{', '.join(strange)} is unknown" if strange else "fewer than two would be learnt"
        raise ConfigError(f"languages to hold out: {what}; there are {', '.join(COLUMNS)}")
    file = data_file(data, CATEGORIES)
    table = pl.read_parquet(file)
    lacking = sorted({"id", "path_en", *COLUMNS.values()} - set(table.columns))
    if lacking:
        raise CsrmError(f"{file}: has no column {', '.join(lacking)}; another file is meant")
    table = table.filter(pl.col("path_en") != "").unique("path_en", keep="first").sort("id")
    if most is not None and most < table.height:
        table = table.sample(most, seed=seed).sort("id")
    row = {key: i for i, key in enumerate(table["id"])}
    parents = [row.get(key.rpartition("-")[0], -1) for key in table["id"]]
    return Names(table["path_en"].to_list(), parents, _queries(table, seed), tuple(held_out))


def _queries(table: pl.DataFrame, seed: int) -> pl.DataFrame:
    sides = [_side(uniform(seed, "names", normalise(name))) for name in table["name_en"]]
    table = table.with_row_index("category").with_columns(split=pl.Series(sides, dtype=pl.String))
    parts = []
    for locale, column in COLUMNS.items():
        own = table.select(pl.col("category").cast(pl.Int64), "split", query=column).drop_nulls()
        own = own.with_columns(norm=normalised(own["query"]), locale=pl.lit(locale))
        parts.append(own.with_columns(query_ids(locale, own["norm"]).alias("query_id")))
    named = pl.concat(parts).filter(pl.col("norm") != "")
    # A text may name several categories, and be a word of several languages: it is on the side
    # where it is learnt, if on any, and else on dev's.
    order = pl.col("split").replace_strict({"train": 0, "dev": 1, "test": 2}, return_dtype=pl.Int8)
    first = order.min().over("norm")
    return named.filter(order == first).select(QUERIES).sort("locale", "query_id", "category")


def _side(draw: float) -> str:
    return next((split for split, end in SHARES.items() if draw < end), "test")


def category_answers(names: Names, queries: pl.DataFrame, seed: int) -> pl.DataFrame:
    """Return for each query a right path and a wrong one: locale, query, query_id, item, grade.

    A wrong path is a sibling's (of the same parent) for every other query that has one, else any
    other's: what the query names as well is never wrong.
    """
    rng = stream(seed, f"names-{queries.height}")
    children: dict[int, list[int]] = {}
    for row, parent in enumerate(names.parents):
        children.setdefault(parent, []).append(row)
    named = {q: set(c) for q, c in queries.group_by("query_id").agg("category").iter_rows()}
    rows: list[tuple[str, str, str, str, int]] = []
    for i, (locale, query, query_id, own) in enumerate(
        queries.select("locale", "query", "query_id", "category").iter_rows()
    ):
        near = [r for r in children[names.parents[own]] if r not in named[query_id]]
        wrong = near[int(rng.integers(len(near)))] if near and i % 2 else None
        while wrong is None or wrong in named[query_id]:
            wrong = int(rng.integers(len(names.paths)))
        told = (locale, query, query_id)
        rows += [(*told, names.paths[own], 1), (*told, names.paths[wrong], 0)]
    schema = {c: pl.String for c in ("locale", "query", "query_id", "item")} | {"grade": pl.Int8}
    answers = pl.DataFrame(rows, schema, orient="row")
    return answers.unique(["query_id", "item"], keep="first", maintain_order=True)


def relevant(queries: pl.DataFrame) -> list[np.ndarray[tuple[int], np.dtype[np.int64]]]:
    """Return of each distinct query, in the order of their first rows, the categories it names."""
    grouped = queries.group_by("query_id", maintain_order=True).agg("category")
    return [np.asarray(c, np.int64) for c in grouped["category"]]
