"""Exact nearest neighbours by inner product, in bounded memory."""

from __future__ import annotations

import mmap

import numpy as np
import numpy.typing as npt

Vectors = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]

QUERIES, PRODUCTS = 256, 32_768  # of one product of matrices: 34 MB, and twice that beside it


RESIDENT = 128 * 2**20  # bytes of a mapped file that may stay in memory while it is read


def let_go(vectors: Vectors) -> None:
    """Let go of what was read of a large read-only mapped file; the file's cache keeps it.

    Pages that were touched count as the process's memory until then, up to the whole file.
    """
    base: object = vectors
    while isinstance(base, np.ndarray):
        base = base.base
    if isinstance(base, mmap.mmap) and not vectors.flags.writeable and vectors.nbytes > RESIDENT:
        base.madvise(mmap.MADV_DONTNEED)


def exact_search(
    vectors: Vectors, queries: Vectors, k: int, *, once: bool = False
) -> tuple[Rows, Vectors]:
    """Return the ``k`` nearest rows (Q, k) and their inner products, ties by row; k ≤ N.

    ``once``: the vectors are not searched again soon, so what was read of a large mapped file is
    let go; an index that answers queries keeps it.
    """
    rows: Rows = np.zeros((len(queries), k), np.int64)
    scores: Vectors = np.zeros((len(queries), k), np.float32)
    for start in range(0, len(queries) if k else 0, QUERIES):
        here = slice(start, start + QUERIES)
        rows[here], scores[here] = _search_block(vectors, queries[here], k, once)
    return rows, scores


def _search_block(vectors: Vectors, queries: Vectors, k: int, once: bool) -> tuple[Rows, Vectors]:
    """Go through the products by blocks; a later block's rows are higher, so ties stay by row."""
    best: Rows = np.zeros((len(queries), 0), np.int64)
    reached: Vectors = np.zeros((len(queries), 0), np.float32)
    for first in range(0, len(vectors), PRODUCTS):
        rows, scores = _top(queries @ vectors[first : first + PRODUCTS].T, k)
        best = np.concatenate([best, rows + first], axis=1)
        reached = np.concatenate([reached, scores], axis=1)
        order = np.argsort(-reached, axis=1, kind="stable")[:, :k]
        best = np.take_along_axis(best, order, axis=1)
        reached = np.take_along_axis(reached, order, axis=1)
        if once:
            let_go(vectors)
    return best, reached


def _top(products: Vectors, k: int) -> tuple[Rows, Vectors]:
    """Return the ``k`` best columns of each row (all where there are fewer), ties by column."""
    k = min(k, products.shape[1])
    edge = -np.partition(-products, k - 1, axis=1)[:, k - 1]  # the k-th best of each query
    rows: Rows = np.zeros((len(products), k), np.int64)
    for i, (row, bound) in enumerate(zip(products, edge, strict=True)):
        near = np.flatnonzero(row >= bound)  # ascending, so that a stable sort ties by row
        rows[i] = near[np.argsort(-row[near], kind="stable")[:k]]
    return rows, np.take_along_axis(products, rows, axis=1)
