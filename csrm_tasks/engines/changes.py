"""What an index that has one snapshot lacks of a later one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from csrm_tasks.engines.live import Catalogue
from csrm_tasks.errors import DataError
from csrm_tasks.towers.serving.embed import RETRIEVAL, Floats

CHUNK = 4_096  # products held at once
LENGTH = 1e-3  # that a vector's length may be off 1


@dataclass(frozen=True)
class Changes:
    """Rows of the later snapshot that are new or have another vector, and products that left."""

    upserts: npt.NDArray[np.int64]
    deletes: pl.Series


def changes(now: Catalogue, before: Catalogue | None) -> Changes:
    """Compare two snapshots; before the first one everything is new."""
    if before is None:
        return Changes(np.arange(len(now.ids)), now.ids.clear())
    there = pl.DataFrame({"id": now.ids}).with_row_index("now")
    known = pl.DataFrame({"id": before.ids}).with_row_index("before")
    rows = there.join(known, on="id", how="left", maintain_order="left")
    differs: npt.NDArray[np.bool_] = rows["before"].is_null().to_numpy().copy()
    kept = rows.filter(pl.col("before").is_not_null())
    for part in kept.iter_slices(CHUNK):
        new, old = part["now"].to_numpy(), part["before"].to_numpy()
        other = now.vectors[new, RETRIEVAL] != before.vectors[old, RETRIEVAL]  # (n, dim)
        differs[new] = other.any(axis=1)
    gone = known.join(there, on="id", how="anti", maintain_order="left")["id"]
    return Changes(np.flatnonzero(differs), gone)


def vectors_of(now: Catalogue, rows: npt.NDArray[np.int64]) -> Iterator[tuple[pl.Series, Floats]]:
    """Yield identifiers (n,) and exact-match vectors (n, dim), a bounded number at once.

    Raises :class:`DataError` naming the first product whose vector has not length 1.
    """
    for start in range(0, len(rows), CHUNK):
        part = rows[start : start + CHUNK]
        ids, vectors = now.ids[part], now.vectors[part, RETRIEVAL]
        lengths: Any = np.linalg.norm(vectors, axis=1)
        bad = np.flatnonzero(~(np.abs(lengths - 1) <= LENGTH))  # NaN is bad
        if len(bad):
            raise DataError(
                f"{now.ref}: the vector of product {ids[int(bad[0])]!r} has length "
                f"{lengths[bad[0]]:.3g}, not 1; run the refresh step again"
            )
        yield ids, vectors
