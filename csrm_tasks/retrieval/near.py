"""The nearest products of fixed queries, and the cosine of any query and product."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from csrm_tasks.retrieval.exact import Vectors
from csrm_tasks.retrieval.rqa import Dense


class Near(Protocol):
    """The EBR's half, for a fixed list of queries."""

    def hits(self, k: int) -> list[list[str]]:
        """Return each query's ``k`` nearest products."""
        ...

    def cosine(self, query: int, product: str) -> float:
        """Return the cosine of a query (its place) and a product; NaN for one without a vector."""
        ...


class DenseNear:
    """:class:`Near` by an encoder and its index."""

    def __init__(self, dense: Dense, queries: Sequence[str]) -> None:
        """Embed ``queries`` once."""
        self._dense = dense
        self._vectors: Vectors = dense.model.encode_queries(queries)  # (Q, dim)
        self._row = {product: row for row, product in enumerate(dense.index.ids)}

    def hits(self, k: int) -> list[list[str]]:
        """Return each query's ``k`` nearest products."""
        return self._dense.nearest(self._vectors, k)

    def cosine(self, query: int, product: str) -> float:
        """Return the cosine of a query (its place) and a product; NaN for one without a vector."""
        row = self._row.get(product)
        if row is None:
            return float("nan")
        return float(self._dense.index.vectors[row] @ self._vectors[query])
