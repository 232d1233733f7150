"""Nearest products of a query's vector: exact, or faiss IVF with 8-bit scalars above a size (A25).

One folder per locale: ``embeddings.npy`` (N, dim) float32 of unit norm, ``product_ids.parquet`` in
the same order, ``ivf.faiss`` where the catalogue is large, and ``index.json`` (which encoder, how
many, recall@100 against exact). Ids inside faiss are row numbers, so entries can be replaced.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from csrm_tasks.errors import ArtifactError

Vectors = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]

RECALL_BOUND = 0.97  # A25
RECALL_AT = 100
RECALL_SAMPLE = 500  # queries of the measurement
TRAIN_PER_LIST = 64  # vectors per list that faiss learns its lists and ranges from
BLOCK = 1024  # queries of one exact product of matrices


@dataclass(frozen=True)
class IndexInfo:
    """What an index was built from and how well it answers."""

    locale: str
    encoder_digest: str
    kind: str  # exact | ivf_sq8
    products: int
    dim: int
    lists: int  # 0 when exact
    probes: int  # 0 when exact
    recall_at_100: float  # against exact search


class ProductIndex:
    """Products of one locale, searchable by unit vectors."""

    def __init__(self, ids: Sequence[str], vectors: Vectors, info: IndexInfo, ivf: Any) -> None:
        self.ids = list(ids)
        self.vectors = vectors  # (N, dim)
        self.info = info
        self._ivf = ivf  # None when exact

    @classmethod
    def build(
        cls,
        locale: str,
        ids: Sequence[str],
        vectors: Vectors,
        encoder_digest: str,
        *,
        sample: Vectors,
        exact_below: int,
        seed: int,
    ) -> ProductIndex:
        """Index ``vectors`` (N, dim) of unit norm under product ``ids``.

        ``sample`` (Q, dim) are queries that an approximate index measures its recall with.
        Raises :class:`ArtifactError` for duplicate ids, and when IVF misses the recall bound even
        with every list probed.
        """
        if len(set(ids)) != len(ids):
            raise ArtifactError(f"{locale}: a product id occurs twice in the embeddings")
        size, dim = vectors.shape
        if size < exact_below:
            info = IndexInfo(locale, encoder_digest, "exact", size, dim, 0, 0, 1.0)
            return cls(ids, vectors, info, None)
        ivf = _train_ivf(vectors, np.random.default_rng(seed))
        recall = _raise_probes(ivf, vectors, sample[:RECALL_SAMPLE])
        info = IndexInfo(
            locale, encoder_digest, "ivf_sq8", size, dim, ivf.nlist, ivf.nprobe, recall
        )
        return cls(ids, vectors, info, ivf)

    def search(self, queries: Vectors, k: int) -> tuple[Rows, Vectors]:
        """Return rows (Q, k) and cosines (Q, k), best first, ties by row; k is at most N."""
        k = min(k, len(self.ids))
        if self._ivf is None:
            return exact_search(self.vectors, queries, k)
        scores, rows = self._ivf.search(np.ascontiguousarray(queries), k)
        return rows, scores

    def save(self, folder: Path) -> None:
        """Write the four files."""
        folder.mkdir(parents=True, exist_ok=True)
        np.save(folder / "embeddings.npy", self.vectors)
        pl.DataFrame({"product_id": self.ids}, {"product_id": pl.String}).write_parquet(
            folder / "product_ids.parquet"
        )
        if self._ivf is not None:
            import faiss

            faiss.write_index(self._ivf, str(folder / "ivf.faiss"))
        (folder / "index.json").write_text(json.dumps(asdict(self.info)), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> ProductIndex:
        """Open what :meth:`save` wrote, embeddings memory-mapped.

        Raises :class:`ArtifactError` when files are missing or do not belong together.
        """
        if not (folder / "index.json").exists():
            raise ArtifactError(f"{folder} holds no index; run build_index")
        info = IndexInfo(**json.loads((folder / "index.json").read_text(encoding="utf-8")))
        vectors = np.load(folder / "embeddings.npy", mmap_mode="r")
        ids = pl.read_parquet(folder / "product_ids.parquet")["product_id"].to_list()
        if vectors.shape != (info.products, info.dim) or len(ids) != info.products:
            raise ArtifactError(
                f"{folder}: {vectors.shape} embeddings and {len(ids)} ids do not match index.json "
                f"({info.products} × {info.dim}); build the index again"
            )
        return cls(ids, vectors, info, _read_ivf(folder) if info.lists else None)


def _read_ivf(folder: Path) -> Any:
    import faiss

    return faiss.read_index(str(folder / "ivf.faiss"))


def exact_search(vectors: Vectors, queries: Vectors, k: int) -> tuple[Rows, Vectors]:
    """Return the ``k`` nearest rows by inner product and the products, ties by row; k ≤ N."""
    rows: Rows = np.zeros((len(queries), k), np.int64)
    scores: Vectors = np.zeros((len(queries), k), np.float32)
    for start in range(0, len(queries) if k else 0, BLOCK):
        block = queries[start : start + BLOCK] @ vectors.T  # (b, N)
        edge = -np.partition(-block, k - 1, axis=1)[:, k - 1]  # the k-th best of each query
        for i, (row, bound) in enumerate(zip(block, edge, strict=True), start):
            near = np.flatnonzero(row >= bound)  # ascending, so that a stable sort ties by row
            best = near[np.argsort(-row[near], kind="stable")[:k]]
            rows[i], scores[i] = best, row[best]
    return rows, scores


def _train_ivf(vectors: Vectors, rng: np.random.Generator) -> Any:
    import faiss

    size, dim = vectors.shape
    lists = max(1, min(int(4 * size**0.5), size // TRAIN_PER_LIST))
    ivf = faiss.IndexIVFScalarQuantizer(
        faiss.IndexFlatIP(dim), dim, lists, faiss.ScalarQuantizer.QT_8bit,
        faiss.METRIC_INNER_PRODUCT,
    )  # fmt: skip
    chosen = np.sort(rng.choice(size, min(size, lists * TRAIN_PER_LIST), replace=False))
    ivf.train(np.ascontiguousarray(vectors[chosen]))
    ivf.add_with_ids(np.ascontiguousarray(vectors), np.arange(size))
    return ivf


def _raise_probes(ivf: Any, vectors: Vectors, sample: Vectors) -> float:
    """Double the lists probed until recall@100 holds its bound; returns the recall reached."""
    k = min(RECALL_AT, len(vectors))
    truth, _ = exact_search(vectors, sample, k)
    ivf.nprobe = max(1, ivf.nlist // 32)
    while True:
        _, found = ivf.search(sample, k)
        recall = float(np.mean([len(set(t) & set(f)) for t, f in zip(truth, found, strict=True)]))
        if recall / k >= RECALL_BOUND:
            return recall / k
        if ivf.nprobe >= ivf.nlist:
            raise ArtifactError(
                f"IVF-SQ8 reaches recall@{k} {recall / k:.3f} with every list probed, below "
                f"{RECALL_BOUND}; raise retrieval.exact_below above {len(vectors)}"
            )
        ivf.nprobe = min(2 * ivf.nprobe, ivf.nlist)
