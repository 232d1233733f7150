"""A snapshot's tables: the one place where they are opened, whole or by locale."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import polars as pl

from csrm_tasks.records import (
    BEHAVIOUR,
    CONVERSIONS,
    PAIRS,
    PRODUCTS,
    QUERIES,
    TASK_PAIRS,
    TRANSLATIONS,
    VOTES,
    Schema,
    read_table,
)

SCHEMAS: Mapping[str, Schema] = {
    "products": PRODUCTS, "queries": QUERIES, "pairs": PAIRS, "votes": VOTES,
    "translations": TRANSLATIONS, "conversions": CONVERSIONS, "behaviour": BEHAVIOUR,
    "task_pairs": TASK_PAIRS,
}  # fmt: skip


def table(snapshot: Path, name: str) -> pl.DataFrame:
    """Read the table ``name`` of :data:`SCHEMAS` from a snapshot's folder.

    Raises :class:`DataError` naming file and column where it is not as declared.
    """
    return read_table(snapshot / f"{name}.parquet", SCHEMAS[name])


def by_locale(snapshot: Path) -> dict[str, dict[str, pl.DataFrame]]:
    """Split a snapshot's tables by the locales that have products: locale → name → rows."""
    tables = {name: table(snapshot, name) for name in ("products", "queries", "pairs", "behaviour")}
    return {
        locale: {k: t.filter(pl.col("locale") == locale) for k, t in tables.items()}
        for locale in sorted(tables["products"]["locale"].unique())
    }


def judged_anywhere(snapshot: Path) -> pl.DataFrame:
    """Return query_id, product_id, locale and split of what people judged in any task, each once.

    A label of qi that was read from a relevance label is one with it. Of qc the "product" is the
    digest of a category's path.
    """
    columns = ["query_id", "product_id", "locale", "split"]
    found = [table(snapshot, "pairs").select(columns)]
    if (snapshot / "task_pairs.parquet").is_file():  # a snapshot from before there were tasks
        found.append(table(snapshot, "task_pairs").select(columns))
    return pl.concat(found).unique().sort(columns)
