"""What runs in a fresh process to see whether a bundle can be served (A48).

``python -m csrm_tasks.release.bundle.probe BUNDLE CASES OUT THREADS``: loads the bundle as a server
does, scores the judged pairs of ``CASES/pairs.parquet``, replays the searches of
``CASES/requests.parquet`` one by one, and writes what it saw to ``OUT`` as JSON. Of a bundle with a
second stage also what its cross-encoder says of the pairs, and how long searches take with it.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from csrm_tasks.ranking import best_first

if TYPE_CHECKING:
    from csrm_tasks.release.bundle.scorer import ReleaseScorer

PAIRS, REQUESTS = "pairs.parquet", "requests.parquet"
PASSES = 3  # of which each search's least time counts: what else the machine does only adds


def probe(bundle: Path, cases: Path, threads: int) -> dict[str, Any]:
    """Return probabilities of the pairs, latencies (ms), time to load (s), memory (bytes)."""
    from csrm_tasks.release.bundle.scorer import ReleaseScorer

    began = time.perf_counter()
    scorer = ReleaseScorer(bundle, threads)
    loaded = time.perf_counter() - began
    pairs = pl.read_parquet(cases / PAIRS)
    scored = scorer.score(*(pairs[c].to_list() for c in ("query", "product_id", "title")))
    requests = pl.read_parquet(cases / REQUESTS)
    passes = np.array([_replay(scorer, requests) for _ in range(PASSES)])  # (PASSES, searches, 2)
    times, whole = passes.min(axis=0).T  # ms
    seen = {
        "em": scored.em.tolist(),
        "defect": scored.defect.tolist(),
        "p50_ms": float(np.median(times)),
        "p99_ms": float(np.quantile(times, 0.99)),
    }
    if scorer.second is not None:
        seen |= {
            "cross": _cross(scorer, pairs),
            "second_stage_p50_ms": float(np.median(whole)),
            "second_stage_p99_ms": float(np.quantile(whole, 0.99)),
        }
    return seen | {"load_seconds": loaded, "memory_bytes": peak_memory()}


def _cross(scorer: ReleaseScorer, pairs: pl.DataFrame) -> list[float]:
    """Return the cross-encoder's EM probabilities of the pairs, products as a server reads them."""
    from csrm_tasks.towers.serving.tokens import TokenTable

    assert scorer.second is not None
    cross, products = scorer.second.cross, scorer.products
    rows = products.rows(pairs["product_id"].to_list())
    titles = TokenTable(scorer.title_tokens(products, rows, pairs["title"].to_list()), 0)
    queries = cross.query_reader(pairs["query"].to_list())
    logits = cross.logits(queries, titles, np.arange(len(pairs)))[:, 0].astype(np.float64)
    found: list[float] = (1.0 / (1.0 + np.exp(-logits))).tolist()
    return found


def peak_memory(process: int | str = "self") -> int:
    """Return the most bytes that this program, or another process, has had resident.

    Not ``ru_maxrss``: Linux hands on to a new program what its parent's peak was when it began.
    """
    status = Path(f"/proc/{process}/status").read_text(encoding="ascii", errors="replace")
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def _replay(scorer: ReleaseScorer, requests: pl.DataFrame) -> list[tuple[float, float]]:
    """Score every search as if it came in by itself; milliseconds of each, and with re-ranking."""
    milliseconds = []
    for query, products in requests.select("query", "products").iter_rows():
        began = time.perf_counter()
        rows = scorer.products.rows(products)
        vectors = scorer.products.take(rows)  # type: ignore[arg-type]
        evidence = scorer.listing_features(scorer.asked(query), scorer.products, rows, None)
        scored = scorer.score_vectors(scorer.encode_queries([query])[0], vectors, evidence)
        first = time.perf_counter()
        if scorer.second is not None:
            top = best_first(scored.rank_score.tolist())[: scorer.second.top]
            titles = scorer.title_tokens(scorer.products, [rows[i] for i in top], [None] * len(top))
            scorer.second.score(query, titles, scored.em[top])
        end = time.perf_counter()
        milliseconds.append(((first - began) * 1e3, (end - began) * 1e3))
    return milliseconds


def main(args: list[str]) -> None:
    """Probe and write the result."""
    bundle, cases, out, threads = args
    figures = probe(Path(bundle), Path(cases), int(threads))
    Path(out).write_text(json.dumps(figures), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
