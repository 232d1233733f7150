"""A snapshot's tables as retrieval reads them: whole, or by locale."""

from __future__ import annotations

import polars as pl

from csrm_tasks import records
from csrm_tasks.artifacts import Artifact


def table(snapshot: Artifact, name: str) -> pl.DataFrame:
    """Read the snapshot's table ``name``, one of those in :mod:`csrm_tasks.records`."""
    schema: records.Schema = getattr(records, name.upper())
    return records.read_table(snapshot.file(f"{name}.parquet"), schema)


def by_locale(snapshot: Artifact) -> dict[str, dict[str, pl.DataFrame]]:
    """Split the snapshot's tables by the locales that have products: locale → name → rows."""
    tables = {name: table(snapshot, name) for name in ("products", "queries", "pairs", "behaviour")}
    return {
        locale: {k: t.filter(pl.col("locale") == locale) for k, t in tables.items()}
        for locale in sorted(tables["products"]["locale"].unique())
    }
