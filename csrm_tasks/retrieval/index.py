"""Nearest products of a query's vector: exact, or faiss IVF with 8-bit scalars above a size (A25).

One folder per locale: ``embeddings.npy`` (N, dim) float32 of unit norm, memory-mapped when read;
``product_ids.parquet`` in the same order, with a stamp of the text that each vector was made from;
``ivf.faiss`` and ``learnt.npy`` (sizes of the lists when they were learnt) where the catalogue is
large; and ``index.json``. Products are in the order of their ids, so "ties by row" is "ties by id",
and an index that was changed has the files' contents of one built anew, but for the lists.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from csrm_tasks.errors import ArtifactError
from csrm_tasks.records import Schema
from csrm_tasks.retrieval import ivf as lists
from csrm_tasks.retrieval.exact import Rows, Vectors, exact_search
from csrm_tasks.retrieval.segment import stamp
from csrm_tasks.text import normalise

if TYPE_CHECKING:
    from faiss import IndexIVFScalarQuantizer

ENTRIES: Schema = {"product_id": pl.String, "stamp": pl.UInt64}


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
    drift: float  # of the lists since they were learnt; 0 when exact
    snapshot: str  # digest of encoder, product ids and texts: the same however it came about


class ProductIndex:
    """Products of one locale, searchable by unit vectors."""

    def __init__(
        self,
        entries: pl.DataFrame,
        vectors: Vectors,
        info: IndexInfo,
        ivf: IndexIVFScalarQuantizer | None,
        learnt: lists.Sizes | None,
    ) -> None:
        self.entries = entries  # ENTRIES, N rows
        self.ids: list[str] = entries["product_id"].to_list()
        self.vectors = vectors  # (N, dim)
        self.info = info
        self._ivf, self._learnt = ivf, learnt  # both None when exact

    @classmethod
    def build(
        cls,
        locale: str,
        ids: Sequence[str],
        texts: Sequence[str],
        vectors: Vectors,
        encoder_digest: str,
        *,
        sample: Vectors,
        exact_below: int,
        seed: int,
    ) -> ProductIndex:
        """Index ``vectors`` (N, dim) of unit norm, made of ``texts``, under product ``ids``.

        ``sample`` (Q, dim) are queries that an approximate index measures its recall with.
        Raises :class:`ArtifactError` for duplicate ids, and when IVF misses the recall bound even
        with every list probed.
        """
        entries = _entries(locale, ids, texts)
        order = entries["product_id"].arg_sort().to_numpy()
        if not (order[1:] > order[:-1]).all():  # else no copy of what may be a large mapped file
            entries, vectors = entries[order], vectors[order]
        return cls._made(locale, encoder_digest, entries, vectors, sample, exact_below, seed)

    @classmethod
    def _made(
        cls,
        locale: str,
        encoder_digest: str,
        entries: pl.DataFrame,
        vectors: Vectors,
        sample: Vectors,
        exact_below: int,
        seed: int,
    ) -> ProductIndex:
        size, dim = vectors.shape
        named = _snapshot(encoder_digest, entries)
        info = IndexInfo(locale, encoder_digest, "exact", size, dim, 0, 0, 1.0, 0.0, named)
        if size < exact_below:
            return cls(entries, vectors, info, None, None)
        ivf = lists.train(vectors, seed)
        recall = lists.raise_probes(ivf, vectors, sample)
        if recall < lists.RECALL_BOUND:
            raise ArtifactError(
                f"{locale}: IVF-SQ8 reaches recall@{lists.RECALL_AT} {recall:.3f} with every list "
                f"probed, below {lists.RECALL_BOUND}; raise retrieval.exact_below above {size}"
            )
        info = replace(
            info, kind="ivf_sq8", lists=ivf.nlist, probes=ivf.nprobe, recall_at_100=recall
        )
        return cls(entries, vectors, info, ivf, lists.sizes(ivf))

    def changed(
        self,
        deleted: Sequence[str],
        ids: Sequence[str],
        texts: Sequence[str],
        vectors: Vectors,
        *,
        sample: Vectors,
        exact_below: int,
        seed: int,
    ) -> ProductIndex:
        """Return the index without ``deleted`` and with ``ids`` added or replaced.

        Recall is measured again; lists and ranges are learnt anew when it misses its bound, or the
        lists' shares have drifted beyond :data:`~csrm_tasks.retrieval.ivf.DRIFT_BOUND`. Load with
        ``writable``; this index must not be used afterwards. An id that is not there is deleted
        without complaint.
        """
        fresh = _entries(self.info.locale, ids, texts)
        gone = pl.concat([pl.Series(deleted, dtype=pl.String), fresh["product_id"]])
        kept = ~self.entries["product_id"].is_in(gone.implode())
        entries = pl.concat([self.entries.filter(kept), fresh])
        order = entries["product_id"].arg_sort().to_numpy()
        entries = entries[order]
        whole = np.concatenate([self.vectors[kept.to_numpy()], vectors])[order]
        anew = (
            self.info.locale,
            self.info.encoder_digest,
            entries,
            whole,
            sample,
            exact_below,
            seed,
        )
        if self._ivf is None or len(entries) < exact_below:
            return self._made(*anew)
        place = np.full(len(self.ids), -1, np.int64)
        row = np.argsort(order)  # new row of each old kept one, then of each fresh one
        place[kept.to_numpy()] = row[: int(kept.sum())]
        lists.renumber(self._ivf, place)
        lists.add(self._ivf, whole, row[int(kept.sum()) :])
        drift = lists.drift(self._learnt, lists.sizes(self._ivf))  # type: ignore[arg-type]
        recall = lists.raise_probes(self._ivf, whole, sample)
        if drift > lists.DRIFT_BOUND or recall < lists.RECALL_BOUND:
            return self._made(*anew)
        info = replace(
            self.info, products=len(entries), probes=self._ivf.nprobe, recall_at_100=recall,
            drift=drift, snapshot=_snapshot(self.info.encoder_digest, entries),
        )  # fmt: skip
        return ProductIndex(entries, whole, info, self._ivf, self._learnt)

    def search(self, queries: Vectors, k: int) -> tuple[Rows, Vectors]:
        """Return rows (Q, k) and cosines (Q, k), best first, ties by row; k is at most N.

        Raises :class:`ArtifactError` for queries of another width than the index's.
        """
        if queries.shape[1] != self.info.dim:
            raise ArtifactError(
                f"a query has {queries.shape[1]} numbers and the {self.info.locale} index "
                f"{self.info.dim}; run build_index with the encoder that embeds the queries"
            )
        k = min(k, len(self.ids))
        if self._ivf is None:
            return exact_search(self.vectors, queries, k)
        scores, rows = self._ivf.search(np.ascontiguousarray(queries), k)
        order = np.lexsort((rows, -scores), axis=1)
        return np.take_along_axis(rows, order, 1), np.take_along_axis(scores, order, 1)

    def save(self, folder: Path) -> None:
        """Write the files."""
        folder.mkdir(parents=True, exist_ok=True)
        np.save(folder / "embeddings.npy", self.vectors)
        self.entries.write_parquet(folder / "product_ids.parquet")
        if self._ivf is not None:
            lists.save(self._ivf, folder / "ivf.faiss")
            np.save(folder / "learnt.npy", self._learnt)  # type: ignore[arg-type]
        (folder / "index.json").write_text(json.dumps(asdict(self.info)), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path, *, writable: bool = False) -> ProductIndex:
        """Open what :meth:`save` wrote, memory-mapped; ``writable`` for :meth:`changed`.

        Raises :class:`ArtifactError` when files are missing or do not belong together.
        """
        if not (folder / "index.json").exists():
            raise ArtifactError(f"{folder} holds no index; run build_index")
        try:
            info = IndexInfo(**json.loads((folder / "index.json").read_text(encoding="utf-8")))
        except TypeError as e:
            raise ArtifactError(
                f"{folder}/index.json was written by another version ({e}); run build_index again"
            ) from e
        vectors = np.load(folder / "embeddings.npy", mmap_mode="r")
        entries = pl.read_parquet(folder / "product_ids.parquet")
        if vectors.shape != (info.products, info.dim) or len(entries) != info.products:
            raise ArtifactError(
                f"{folder}: {vectors.shape} embeddings and {len(entries)} ids do not match "
                f"index.json ({info.products} × {info.dim}); build the index again"
            )
        if not info.lists:
            return cls(entries, vectors, info, None, None)
        ivf = lists.load(folder / "ivf.faiss", writable)
        return cls(entries, vectors, info, ivf, np.load(folder / "learnt.npy"))


def _entries(locale: str, ids: Sequence[str], texts: Sequence[str]) -> pl.DataFrame:
    if len(set(ids)) != len(ids):
        raise ArtifactError(f"{locale}: a product id occurs twice in the embeddings")
    return pl.DataFrame([list(ids), stamps(texts)], ENTRIES)


def stamps(texts: Sequence[str]) -> list[int]:
    """Stamp each text as the encoder reads it.

    Where a new normalisation reads a title otherwise, the stamp of its vector is stale, and just
    that title is embedded again.
    """
    return [stamp(normalise(t)) for t in texts]


def _snapshot(encoder_digest: str, entries: pl.DataFrame) -> str:
    digest = hashlib.sha256(encoder_digest.encode())
    for row in entries.iter_rows():
        digest.update(f"{row[0]}\x1f{row[1]}\n".encode())
    return digest.hexdigest()[:20]
