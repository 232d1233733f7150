"""faiss IVF with 8-bit scalars: lists learnt once, entries replaced, probes set by recall (A25).

A vector costs its dimension in bytes and 8 for its row number. faiss is imported where it is used:
most steps of retrieval need none of it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from csrm_tasks.retrieval.exact import Rows, Vectors, exact_search, let_go

if TYPE_CHECKING:
    from faiss import IndexIVFScalarQuantizer

RECALL_BOUND = 0.97  # A25
RECALL_AT = 100
RECALL_SAMPLE = 500  # queries of the measurement
TRAIN_PER_LIST = 40  # vectors per list that faiss learns its lists and ranges from
BLOCK = 65_536  # vectors added at a time
DRIFT_BOUND = 0.25  # share of the vectors that sit elsewhere than the lists were learnt for
Sizes = npt.NDArray[np.int64]


def train(vectors: Vectors, seed: int) -> IndexIVFScalarQuantizer:
    """Learn lists from a seeded sample of ``vectors`` (N, dim) and add them all."""
    import faiss

    size, dim = vectors.shape
    lists = max(1, min(int(4 * size**0.5), size // TRAIN_PER_LIST))
    ivf = faiss.IndexIVFScalarQuantizer(
        faiss.IndexFlatIP(dim), dim, lists, faiss.ScalarQuantizer.QT_8bit,
        faiss.METRIC_INNER_PRODUCT,
    )  # fmt: skip
    rng = np.random.default_rng(seed)
    chosen = np.sort(rng.choice(size, min(size, lists * TRAIN_PER_LIST), replace=False))
    ivf.train(_taken(vectors, chosen))
    add(ivf, vectors, np.arange(size))
    return ivf


def add(ivf: IndexIVFScalarQuantizer, vectors: Vectors, rows: Rows) -> None:
    """Add ``vectors[rows]`` under their row numbers, a block at a time."""
    for start in range(0, len(rows), BLOCK):
        here = rows[start : start + BLOCK]
        ivf.add_with_ids(np.ascontiguousarray(vectors[here]), here)
        let_go(vectors)


def _taken(vectors: Vectors, rows: Rows) -> Vectors:
    """Return ``vectors[rows]``, a block at a time; ``rows`` ascend."""
    taken: Vectors = np.empty((len(rows), vectors.shape[1]), np.float32)
    for start in range(0, len(rows), BLOCK):
        here = slice(start, start + BLOCK)
        np.take(vectors, rows[here], axis=0, out=taken[here])
        let_go(vectors)
    return taken


def renumber(ivf: IndexIVFScalarQuantizer, place: Rows) -> None:
    """Give the entry of old row r the number ``place[r]``; it is removed where that is -1."""
    import faiss

    gone = np.flatnonzero(place < 0)
    if len(gone):
        ivf.remove_ids(faiss.IDSelectorBatch(gone))
    lists = ivf.invlists
    for number in range(ivf.nlist):
        if size := lists.list_size(number):  # type: ignore[union-attr]
            ids = faiss.rev_swig_ptr(lists.get_ids(number), size)  # type: ignore[union-attr]
            ids[:] = place[ids]


def sizes(ivf: IndexIVFScalarQuantizer) -> Sizes:
    """Return how many entries each list has."""
    return np.array(
        [ivf.invlists.list_size(n) for n in range(ivf.nlist)],  # type: ignore[union-attr]
        np.int64,
    )


def drift(learnt: Sizes, now: Sizes) -> float:
    """Total variation distance between the lists' shares when learnt and now, in [0, 1]."""
    shares = [s / max(1, s.sum()) for s in (learnt, now)]
    return float(np.abs(shares[0] - shares[1]).sum() / 2)


def raise_probes(ivf: IndexIVFScalarQuantizer, vectors: Vectors, sample: Vectors) -> float:
    """Raise the lists probed, by half each time, until recall@100 holds its bound; return it.

    With every list probed it may still be below, for the eight bits' sake.
    """
    sample = sample[:RECALL_SAMPLE]
    k = min(RECALL_AT, len(vectors))
    truth, _ = exact_search(vectors, sample, k, once=True)
    ivf.nprobe = max(1, ivf.nlist // 128)
    while True:
        _, nearest = ivf.search(sample, k)
        shared = [
            len(set(t) & set(f)) for t, f in zip(truth.tolist(), nearest.tolist(), strict=True)
        ]
        recall = float(np.mean(shared)) / k
        if recall >= RECALL_BOUND or ivf.nprobe >= ivf.nlist:
            return recall
        ivf.nprobe = min(ivf.nprobe + max(1, ivf.nprobe // 2), ivf.nlist)


def save(ivf: IndexIVFScalarQuantizer, path: Path) -> None:
    """Write the index."""
    import faiss

    faiss.write_index(ivf, str(path))


def load(path: Path, writable: bool) -> IndexIVFScalarQuantizer:
    """Read the index: memory-mapped, unless entries are to be replaced."""
    import faiss

    return faiss.read_index(  # type: ignore[return-value]  # what save wrote
        str(path), 0 if writable else faiss.IO_FLAG_MMAP_IFC
    )
