"""Indexes of vectors, a process each: build, widen until recall is met, time, change.

``python -m benchmarks.peers.vectors KIND FOLDER`` reads ``v.npy`` (N, dim) of unit norm and
``more.npy`` (N / 10, dim) and answers lines of JSON. Searches run on one thread; what is built may
take two. Every contestant holds its products' ids, as who serves an answer must.
"""

from __future__ import annotations

import ctypes
import gc
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Vectors = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]
THREADS = 2  # of a build
K = 100
RECALL = 0.97
DEGREE, WIDTH = 32, 200  # edges of a vector at most, and candidates they are chosen from
EFFORTS = (100, 120, 150, 200, 250, 300, 400, 600, 800, 1200)  # candidates of a search


@dataclass
class Index:
    """What a contestant can do; ``change`` is None where it takes no updates."""

    about: str
    widen: Callable[[int], Any]  # search among so many candidates
    search: Callable[[Vectors, int], Any]  # rows (Q, k) of the nearest, on one thread
    change: Callable[[Rows, Rows, Vectors], None] | None = None  # deleted rows, replaced rows
    efforts: Sequence[int] = EFFORTS


def usearch(vectors: Vectors) -> Index:
    """usearch's HNSW over 8-bit vectors."""
    Made = import_module("usearch.index").Index  # of the peers' environment alone

    made = Made(
        ndim=vectors.shape[1], metric="cos", dtype="i8", connectivity=DEGREE // 2,
        expansion_add=WIDTH,
    )  # fmt: skip
    made.add(np.arange(len(vectors)), np.asarray(vectors), threads=THREADS)

    def widen(effort: int) -> None:
        made.expansion_search = effort

    def change(gone: Rows, rows: Rows, fresh: Vectors) -> None:
        made.remove(np.concatenate([gone, rows]), compact=False)
        made.add(rows, fresh, threads=THREADS)

    about = f"usearch {version('usearch')} (i8)"
    return Index(about, widen, lambda q, k: made.search(q, k, threads=1).keys, change)


def hnswlib(vectors: Vectors) -> Index:
    """hnswlib, of 32-bit vectors: it has no other."""
    package = import_module("hnswlib")

    made = package.Index("ip", vectors.shape[1])
    made.init_index(len(vectors), M=DEGREE // 2, ef_construction=WIDTH, allow_replace_deleted=True)
    made.add_items(np.asarray(vectors), np.arange(len(vectors)), num_threads=THREADS)

    def change(gone: Rows, rows: Rows, fresh: Vectors) -> None:
        for row in gone.tolist():
            made.mark_deleted(row)
        made.add_items(fresh, rows, num_threads=THREADS)

    about = f"hnswlib {version('hnswlib')} (f32)"
    return Index(about, made.set_ef, lambda q, k: made.knn_query(q, k, num_threads=1)[0], change)


def svs(vectors: Vectors) -> Index:
    """Intel's SVS: a Vamana graph over LVQ, 8 bits; as such it takes no updates."""
    package = import_module("svs")

    path = str(Path(sys.argv[2]) / "svs.fvecs")
    package.write_vecs(np.asarray(vectors), path)
    loader = package.LVQLoader(
        package.VectorDataLoader(path, package.DataType.float32, dims=vectors.shape[1]), primary=8
    )
    kind = package.DistanceType.MIP
    made = package.Vamana.build(_graph(package), loader, kind, num_threads=THREADS)
    return _svs_index(made, f"SVS {version('scalable-vs')} (LVQ8)")


def svs_dynamic(vectors: Vectors) -> Index:
    """SVS as it takes updates: 32-bit vectors."""
    package = import_module("svs")

    ids = np.arange(len(vectors), dtype=np.uint64)
    made = package.DynamicVamana.build(
        _graph(package), np.asarray(vectors), ids, package.DistanceType.MIP, THREADS
    )

    def change(gone: Rows, rows: Rows, fresh: Vectors) -> None:
        made.delete(np.concatenate([gone, rows]).astype(np.uint64))
        made.consolidate()
        made.add(fresh, rows.astype(np.uint64))

    return _svs_index(made, f"SVS {version('scalable-vs')} (dynamic, f32)", change)


def _graph(package: Any) -> Any:
    return package.VamanaBuildParameters(
        graph_max_degree=DEGREE, window_size=WIDTH, alpha=0.95, prune_to=DEGREE - 4
    )


def _svs_index(made: Any, about: str, change: Any = None) -> Index:
    made.num_threads = 1

    def widen(effort: int) -> None:
        made.search_window_size = effort

    return Index(about, widen, lambda q, k: made.search(q, k)[0], change)


def faiss_hnsw(vectors: Vectors) -> Index:
    """faiss' HNSW over 8-bit scalars; what is deleted from it stays."""
    import faiss

    faiss.omp_set_num_threads(THREADS)
    made = faiss.IndexHNSWSQ(
        vectors.shape[1], faiss.ScalarQuantizer.QT_8bit, DEGREE // 2, faiss.METRIC_INNER_PRODUCT
    )
    made.hnsw.efConstruction = WIDTH
    made.train(np.asarray(vectors[:50_000]))
    made.add(np.asarray(vectors))
    faiss.omp_set_num_threads(1)

    def widen(effort: int) -> None:
        made.hnsw.efSearch = effort

    about = f"faiss {version('faiss-cpu')} (HNSW, SQ8)"
    return Index(about, widen, lambda q, k: made.search(q, k)[1])


def faiss_ivf_pq(vectors: Vectors) -> Index:
    """faiss' IVF over 4-bit product codes, sixteen at a time, the best again by 8-bit scalars."""
    import faiss

    lists = max(4, int(4 * len(vectors) ** 0.5))
    faiss.omp_set_num_threads(THREADS)
    codes = f"IVF{lists},PQ{vectors.shape[1] // 2}x4fs,Refine(SQ8)"
    made = faiss.index_factory(vectors.shape[1], codes, faiss.METRIC_INNER_PRODUCT)
    made.train(np.asarray(vectors[: 40 * lists]))
    made.add(np.asarray(vectors))
    made.k_factor = 4
    probed = faiss.downcast_index(made.base_index)
    faiss.omp_set_num_threads(1)

    def widen(effort: int) -> None:
        probed.nprobe = effort

    about = f"faiss {version('faiss-cpu')} (IVF-PQ, refined)"
    efforts = (4, 8, 12, 16, 24, 32, 48, 64, 96, 128)
    return Index(about, widen, lambda q, k: made.search(q, k)[1], efforts=efforts)


def ours(vectors: Vectors) -> Index:
    """The product's index, which sets its probes itself; served from files, as the product does."""
    import faiss

    from csrm_tasks.retrieval.index import ProductIndex

    faiss.omp_set_num_threads(1)
    folder = Path(sys.argv[2])
    ids, sample = [f"p{i:08d}" for i in range(len(vectors))], np.load(folder / "tune.npy")
    how: dict[str, Any] = {"sample": sample, "exact_below": 1, "seed": 0}
    ProductIndex.build("zh-TW", ids, ids, vectors, "benchmark", **how).save(folder / "ours")
    state = {"index": ProductIndex.load(folder / "ours", writable=True), "numbers": None}

    def search(queries: Vectors, k: int) -> Rows:
        found: Rows = state["index"].search(queries, k)[0]
        # A row is a place among the ids that are left, which a deletion moves.
        return found if state["numbers"] is None else state["numbers"][found]

    def change(gone: Rows, rows: Rows, fresh: Vectors) -> None:
        names = [f"p{i:08d}" for i in rows.tolist()]
        deleted = [f"p{i:08d}" for i in gone.tolist()]
        state["index"] = state["index"].changed(deleted, names, names, fresh, **how)
        state["numbers"] = np.asarray([int(i[1:]) for i in state["index"].ids])

    return Index("csrm (IVF-SQ8)", lambda _: None, search, change, (0,))


PACKAGES = {"ours": "csrm_tasks.retrieval.index", "svs": "svs", "svs_dynamic": "svs",
            "usearch": "usearch.index", "hnswlib": "hnswlib"}  # fmt: skip
MAKERS = (ours, usearch, hnswlib, svs, svs_dynamic, faiss_hnsw, faiss_ivf_pq)
KINDS: dict[str, Callable[[Vectors], Index]] = {make.__name__: make for make in MAKERS}


def private() -> int:
    """Return the bytes of this process that are no file's."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


def recall(found: Rows, truth: Rows) -> float:
    """Return the share of ``truth`` (Q, K) that is among ``found`` (Q, K)."""
    both = zip(found.tolist(), truth.tolist(), strict=True)
    return float(np.mean([len({*a} & {*b}) / K for a, b in both]))


def met(index: Index, queries: Vectors, truth: Rows) -> float:
    """Search ever wider until recall at 100 is :data:`RECALL`; return the recall come to."""
    found = 0.0
    for effort in index.efforts:
        index.widen(effort)
        rows = index.search(queries, K)
        found = recall(rows, truth)
        if found >= RECALL:
            break
    return found


def main() -> None:
    """Build, then answer ``tune``, ``turn``, ``one`` and ``change``."""
    kind, folder = sys.argv[1], Path(sys.argv[2])
    vectors: Vectors = np.load(folder / "v.npy", mmap_mode="r")
    queries = np.load(folder / "q.npy")
    import_module(PACKAGES.get(kind, "faiss"))  # code is not what an index takes
    before = private()
    names = None if kind == "ours" else [f"p{i:08d}" for i in range(len(vectors))]
    start = time.perf_counter()
    index = KINDS[kind](vectors)
    built = time.perf_counter() - start
    del vectors
    said = {"about": index.about, "build": built, "bytes": private() - before,
            "changes": index.change is not None, "ids": names is None or len(names)}  # fmt: skip
    print(json.dumps(said), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        start = time.perf_counter()
        if asked == "turn":
            index.search(queries, K)
        elif asked == "one":
            for row in queries[:200]:
                index.search(row[None], K)
        elif asked == "change":
            assert index.change is not None
            gone, rows = np.load(folder / "gone.npy"), np.load(folder / "rows.npy")
            index.change(gone, rows, np.load(folder / "more.npy"))
        seconds = time.perf_counter() - start
        answer: dict[str, Any] = {"seconds": seconds}
        if isinstance(asked, dict):  # the name of a file with the truth of the tuning queries
            tuning = np.load(folder / "tune.npy")
            answer["tuned"] = met(index, tuning, np.load(folder / asked["tune"]))
            own = index.search(queries, K)
            answer["recall"] = recall(own, np.load(folder / asked["judge"]))
            answer["bytes"] = private() - before
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
