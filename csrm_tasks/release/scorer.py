"""Scoring with a release bundle: stored product vectors, or a title embedded on the spot."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from csrm_tasks.errors import DataError
from csrm_tasks.release.bundle import EMBEDDINGS, TOWERS

Floats = npt.NDArray[np.float32]
Texts = Sequence[str | None]


class Scored(NamedTuple):
    """Per pair (N,): probabilities, the defect decision and the score to rank by."""

    em: Floats
    defect: Floats
    is_defect: npt.NDArray[np.bool_]
    promotion: Floats  # the EM probability; 0 where the pair is a defect (paper 1, section 3.4)


class ReleaseScorer:
    """The towers and product vectors of one release; onnxruntime only."""

    def __init__(self, folder: Path, threads: int = 1) -> None:
        """Load the bundle in ``folder``; raises :class:`ArtifactError` when it is not one."""
        from csrm_tasks.towers.runtime import TowerRuntime

        self._towers: Any = TowerRuntime(folder / TOWERS, threads=threads)
        vectors, ids = (folder / name for name in EMBEDDINGS)
        self._vectors = np.load(vectors, mmap_mode="r").reshape(-1, 2, self._towers.dim)
        known = pl.read_parquet(ids)["product_id"].to_list()
        self._row = {product: row for row, product in enumerate(known)}

    def score(self, queries: Sequence[str], products: Texts, titles: Texts) -> Scored:
        """Score N pairs; each names a product of the catalogue or brings its title.

        Raises :class:`DataError` for a pair that has neither.
        """
        distinct = {q: i for i, q in enumerate(dict.fromkeys(queries))}
        encoded = self._towers.encode_queries(list(distinct))  # a query is embedded once
        query_vectors = encoded[[distinct[q] for q in queries]]  # (N, 2, dim)
        scores = self._towers.score(query_vectors, self._products(products, titles))
        is_defect = self._towers.decide(scores).defect
        promotion = np.where(is_defect, np.float32(0), scores.em)
        return Scored(scores.em, scores.defect, is_defect, promotion)

    def _products(self, products: Texts, titles: Texts) -> Floats:
        """Return product vectors (N, 2, dim): stored where known, else embedded from the title."""
        found = np.zeros((len(products), 2, self._towers.dim), np.float32)
        fresh = []
        for i, (product, title) in enumerate(zip(products, titles, strict=True)):
            row = self._row.get(product or "")
            if row is not None:
                found[i] = self._vectors[row]
            elif title:
                fresh.append(i)
            else:
                raise DataError(
                    f"row {i}: product {product!r} is not in this release; give its title"
                )
        if fresh:
            found[fresh] = self._towers.encode_products([titles[i] or "" for i in fresh])
        return found
