"""A product index of 300,000 × 128: recall, speed and size; then a million vectors in a bound.

Vectors are those of 20,000 generated titles by the shipped base encoder, each with fourteen
neighbours beside it; queries are the generated market's, by the same encoder. Peers are faiss's
exact search and, in processes of their own, the indexes of :mod:`benchmarks.index_peers`. One
thread. The million is built from a mapped file in a process of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import faiss
import numpy as np

from benchmarks.harness import alternate, closing_line, ratio, table, timing_rows
from benchmarks.index_peers import compare
from csrm_tasks.demo.market.generate import demo_world
from csrm_tasks.demo.market.queries import make_queries
from csrm_tasks.release.bundle.probe import peak_memory
from csrm_tasks.retrieval.exact import Vectors
from csrm_tasks.retrieval.index import ProductIndex
from csrm_tasks.settings import PROJECT_ROOT

DIM, TITLES = 128, 20_000
NOISE = 0.03  # of each number of a neighbour: a cosine of about 0.95
BOUND = 700_000_000  # bytes of a process that indexes a million; the mapped input has 512


def embedded(count: int) -> tuple[Vectors, Vectors]:
    """Return vectors of ``count`` generated titles and of 2,000 queries."""
    from csrm_tasks.retrieval.encoder import BiEncoder  # the process that is measured needs none

    world = demo_world(2 * count, 0)
    base = PROJECT_ROOT / "csrm_tasks" / "demo" / "bases" / "shipped" / "encoder"
    model = BiEncoder.from_base(str(base), DIM, 48, 0).eval()
    asked = [q.text for q in make_queries(world, world.target.locale, 2000).queries]
    return model.encode_titles([p.title for p in world.target.products]), model.encode_queries(
        asked
    )


def write_vectors(path: Path, titles: Vectors, size: int) -> None:
    """Write ``size`` unit vectors as a mapped file: titles and neighbours of titles."""
    rng = np.random.default_rng(0)
    out = np.lib.format.open_memmap(path, "w+", np.float32, (size, DIM))
    for start in range(0, size, len(titles)):
        rows = min(len(titles), size - start)
        near = titles[:rows] + (NOISE if start else 0) * rng.normal(size=(rows, DIM))
        out[start : start + rows] = near / np.linalg.norm(near, axis=1, keepdims=True)
    out.flush()


def build(vectors: Vectors, queries: Vectors) -> ProductIndex:
    """Index under made-up ids."""
    ids = [f"p{i:08d}" for i in range(len(vectors))]
    return ProductIndex.build(
        "zh-TW", ids, ids, vectors, "benchmark", sample=queries, exact_below=1, seed=0
    )


def large(folder: str) -> None:
    """Index what lies in ``folder``; print vectors, seconds, recall and peak bytes."""
    faiss.omp_set_num_threads(1)
    vectors = np.load(Path(folder) / "v.npy", mmap_mode="r")
    start = time.perf_counter()
    index = build(vectors, np.load(Path(folder) / "q.npy"))
    seconds = time.perf_counter() - start
    peak = peak_memory()
    print(json.dumps([len(vectors), seconds, index.info.recall_at_100, peak]))


def main(quick: bool) -> None:
    """Print the tables and the figures."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    faiss.omp_set_num_threads(1)
    titles, queries = embedded(TITLES // 20 if quick else TITLES)
    size = 10_000 if quick else 300_000
    with tempfile.TemporaryDirectory() as folder:
        write_vectors(Path(folder) / "v.npy", titles, size)
        vectors = np.load(Path(folder) / "v.npy")
        start = time.perf_counter()
        built = build(vectors, queries[:500])
        seconds = time.perf_counter() - start
        built.save(Path(folder) / "index")
        index = ProductIndex.load(Path(folder) / "index")
        files = ("ivf.faiss", "product_ids.parquet")
        held = sum((Path(folder) / "index" / f).stat().st_size for f in files)
        flat, some = faiss.IndexFlatIP(DIM), queries[500:700]
        flat.add(vectors)
        runs = alternate(
            {
                "csrm (IVF-SQ8)": lambda: index.search(queries[500:], 100),
                "csrm, 200 queries": lambda: index.search(some, 100),
                "faiss exact, 200 queries": lambda: flat.search(some, 100),
            },
            1 if quick else 5,
        )
        truth = flat.search(some, 100)[1].tolist()
        found = index.search(some, 100)[0].tolist()
        recall = np.mean([len(set(t) & set(f)) / 100 for t, f in zip(truth, found, strict=True)])
        beside = compare(Path(folder), queries, 500, quick)
        write_vectors(Path(folder) / "v.npy", titles, 20_000 if quick else 1_000_000)
        np.save(Path(folder) / "q.npy", queries[:500])
        command = [sys.executable, "-c", f"from {__name__} import large; large({folder!r})"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    print(f"{size:,} × {DIM}, built in {seconds:.0f} s: {built.info}\n")
    timings = [*runs.values()]
    counts = (len(queries) - 500, len(some), len(some))
    rows = [
        row
        for (name, timing), n in zip(runs.items(), counts, strict=True)
        for row in timing_rows({name: timing}, n, "queries/s")
    ]
    print(table(rows), "\n")
    names = ("vectors", "build s", "recall@100", "peak bytes")
    million = dict(zip(names, json.loads(done.stdout), strict=True)) | {"bound": BOUND}
    print(table([million]), "\n")
    figures = {
        "recall_at_100": float(recall),  # of queries that the probes were not set by
        "queries_per_s": counts[0] / timings[0].median,
        "bytes": held,
        "ratio_flat": ratio(timings[2], timings[1]),
        "peak_bytes_1m": million["peak bytes"],
        **beside,
    }
    print(closing_line("index", figures, ("faiss-cpu", "numpy")))
