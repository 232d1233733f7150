"""Which queries towers have learnt from, so that a judgement by them can leave these out (A10).

Written with the towers and copied with their export, as ``learnt.parquet``: one column
``query_id``, of the target locale, sorted. A release that was made before a query became gold may
have been taught it as traffic; the release that it is compared with never was.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import polars as pl

from csrm_tasks.text import normalised, query_ids

FILE = "learnt.parquet"


def write_learnt(folder: Path, texts: Iterable[str], locale: str) -> None:
    """Write the queries among ``texts``, misspelt copies included."""
    norms = normalised(pl.Series("query_id", list(texts), dtype=pl.String)).unique()
    query_ids(locale, norms).sort().to_frame().write_parquet(folder / FILE)


def read_learnt(folder: Path) -> set[str] | None:
    """Return the identifiers; None where an older export does not say."""
    path = folder / FILE
    return set(pl.read_parquet(path)["query_id"]) if path.is_file() else None
