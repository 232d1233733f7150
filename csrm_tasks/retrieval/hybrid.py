"""Hybrid retrieval by rows: the dense and the lexical ranking fused by reciprocal rank (A31)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from csrm_tasks.retrieval.bm25 import Bm25Index
from csrm_tasks.retrieval.rqa import Dense, fuse

Rows = npt.NDArray[np.int64]


class HybridSearch:
    """EBR and BM25 over one catalogue, for a fixed list of queries.

    The EBR alone would show a teacher what is near in meaning; BM25 adds what only shares words,
    which is what a shopper's search page is full of and a tower must learn to tell apart.
    """

    def __init__(self, dense: Dense, bm25: Bm25Index, queries: Sequence[str]) -> None:
        """Embed ``queries`` once."""
        self._dense, self._bm25, self._queries = dense, bm25, queries
        self._vectors = dense.model.encode_queries(queries)
        self._row = {product: row for row, product in enumerate(dense.index.ids)}

    def __call__(self, rows: Rows, k: int) -> Rows:
        """Return the best ``k`` products (rows of the index) of each query row, -1 where fewer."""
        semantic = self._dense.nearest(self._vectors[rows], k)
        lexical = self._bm25.search([self._queries[r] for r in rows], k)
        fused = np.full((len(rows), k), -1, np.int64)
        for i, (near, hits) in enumerate(zip(semantic, lexical, strict=True)):
            known = [p for p, _ in hits if p in self._row]  # BM25 may know a product that is gone
            best = [self._row[p] for p, _ in fuse([near, known])[:k]]
            fused[i, : len(best)] = best
        return fused
