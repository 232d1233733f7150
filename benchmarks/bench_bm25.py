"""Lexical search of 100,000 generated titles by queries of 1 to 4 tokens, one thread, and updates.

All contestants get the same tokens, one query at a time, and give the best 20. ``rank_bm25`` is the
reference, ``bm25s`` runs with its numpy backend; ``tantivy`` is there because it, too, takes
updates (though what it has deleted still counts in its statistics). Recall is of the products that
the generated market's own rule calls exact. The last table is a million titles, in a process of its
own, peak memory included.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import bm25s
import numpy as np
import tantivy
from rank_bm25 import BM25Okapi

from benchmarks.harness import Timing, alternate, closing_line, ratio, table, timing_rows
from csrm_tasks.demo.market.generate import demo_world
from csrm_tasks.demo.market.queries import make_queries
from csrm_tasks.demo.market.search import Shelves
from csrm_tasks.lexical.analyser import tokens
from csrm_tasks.records import Grade
from csrm_tasks.release.bundle.probe import peak_memory
from csrm_tasks.retrieval.bm25 import Bm25Index
from csrm_tasks.retrieval.quality import recall_at

K = 20
Found = dict[str, list[str]]
Titles = list[tuple[str, str]]


def judged(size: int, count: int) -> tuple[Titles, list[str], dict[str, list[str]]]:
    """Return ``size`` titles, queries of 1 to 4 tokens, and the products exact for each."""
    world = demo_world(2 * size, 0)
    shop, shelves = world.target, Shelves(world.lexicon, world.target)
    titles = [(p.product_id, p.title) for p in shop.products]
    exact: dict[str, list[str]] = {}
    for query in make_queries(world, shop.locale, 4 * count).queries:
        if 1 <= len(tokens(query.text)) <= 4 and len(exact) < count:
            rows = shelves.graded(query)[Grade.EXACT].tolist()
            exact[query.text] = [titles[r][0] for r in rows]
    return titles, list(exact), exact


def okapi(model: BM25Okapi, ids: list[str], queries: list[str]) -> Found:
    """Search by rank_bm25: every document gets a score, the best are sorted."""
    found = {}
    for query in queries:
        scores = model.get_scores(tokens(query))
        best = np.argpartition(-scores, K)[:K]
        found[query] = [ids[i] for i in best[np.argsort(-scores[best])]]
    return found


def sparse(model: bm25s.BM25, ids: list[str], queries: list[str]) -> Found:
    """Search by bm25s."""
    found = {}
    for query in queries:
        rows, _ = model.retrieve([tokens(query)], k=K, show_progress=False, n_threads=0)
        found[query] = [ids[i] for i in rows[0]]
    return found


def engine(searcher: tantivy.Searcher, schema: tantivy.Schema, queries: list[str]) -> Found:
    """Search by tantivy: a sum over the tokens."""
    found = {}
    for query in queries:
        terms = [tantivy.Query.term_query(schema, "text", t, "freq") for t in tokens(query)]
        any_of = tantivy.Query.boolean_query([(tantivy.Occur.Should, t) for t in terms])
        hits = searcher.search(any_of, K, count=False).hits
        found[query] = [searcher.doc(address)["id"][0] for _, address in hits]
    return found


def tantivy_index(folder: str, titles: Titles) -> tuple[tantivy.Searcher, tantivy.Schema]:
    """Index ``titles`` as the tokens that all contestants get."""
    builder = tantivy.SchemaBuilder()
    builder.add_text_field("id", stored=True, tokenizer_name="raw", index_option="basic")
    builder.add_text_field("text", tokenizer_name="spaces", index_option="freq")
    schema = builder.build()
    index = tantivy.Index(schema, path=folder)
    spaces = tantivy.TextAnalyzerBuilder(tantivy.Tokenizer.whitespace()).build()
    index.register_tokenizer("spaces", spaces)
    writer = index.writer(num_threads=1)
    for identifier, title in titles:
        writer.add_document(tantivy.Document(id=[identifier], text=[" ".join(tokens(title))]))
    writer.commit()
    writer.wait_merging_threads()
    index.reload()
    return index.searcher(), schema


def ours(index: Bm25Index, queries: list[str]) -> Found:
    """Search by the product."""
    return {q: [i for i, _ in index.search([q], K)[0]] for q in queries}


def fresh_updates(titles: Titles) -> Iterator[Titles]:
    """Yield one hundredth of the catalogue with other titles, another hundredth each time."""
    step, turn = len(titles) // 100, 0
    while True:
        turn += 1
        chosen = titles[turn % 100 :: 100][:step]
        yield [(i, f"{title} 第{turn}版") for i, title in chosen]


def million(size: int) -> None:
    """Build and search ``size`` titles; print seconds, milliseconds a query and peak bytes."""
    titles, queries, _ = judged(size // 10, 200)
    copies = -(-size // len(titles))
    many = ((f"{i}-{c}", f"{t} {c}號") for c in range(copies) for i, t in titles)
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        index = Bm25Index.build(Path(folder) / "i", many)
        built = time.perf_counter() - start
        start = time.perf_counter()
        ours(index, queries)
        each = (time.perf_counter() - start) / len(queries)
        files = sum(f.stat().st_size for f in Path(folder).rglob("*") if f.is_file())
    peak = peak_memory()
    print(json.dumps([len(index), built, each, files, peak]))


def main(quick: bool) -> None:
    """Print the tables and the figures."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    titles, queries, exact = judged(3_000 if quick else 100_000, 300)
    ids = [i for i, _ in titles]
    corpus = [tokens(title) for _, title in titles]
    reference, peer = BM25Okapi(corpus), bm25s.BM25(backend="numpy")
    peer.index(corpus, show_progress=False)
    few = queries[::15]  # rank_bm25 scores everything: 20 queries a turn are enough to time it
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as other:
        index = Bm25Index.build(Path(folder) / "i", titles)
        searcher = tantivy_index(other, titles)
        runs = alternate(
            {
                "csrm": lambda: ours(index, queries),
                "bm25s (numpy)": lambda: sparse(peer, ids, queries),
                "tantivy": lambda: engine(*searcher, queries),
                "csrm, every 15th query": lambda: ours(index, few),
                "rank_bm25, every 15th query": lambda: okapi(reference, ids, few),
            },
            1 if quick else 5,
        )
        recall = {
            name: recall_at(found, exact) or 0.0
            for name, found in {
                "csrm": ours(index, queries),
                "rank_bm25": okapi(reference, ids, queries),
                "bm25s (numpy)": sparse(peer, ids, queries),
                "tantivy": engine(*searcher, queries),
            }.items()
        }
        updates = update_times(Path(folder), index, titles, 1 if quick else 3)
    counts = [len(queries)] * 3 + [len(few)] * 2
    rows = [
        row
        for (name, timing), n in zip(runs.items(), counts, strict=True)
        for row in timing_rows({name: timing}, n, "queries/s")
    ]
    print(f"{len(titles):,} generated titles, {len(queries)} queries, one thread\n")
    print(table(rows), "\n")
    print(table([{"recall@20 of exact products": k, "": v} for k, v in recall.items()]), "\n")
    print(table(timing_rows(updates, 1, "runs/s")), "\n")
    command = [sys.executable, "-c", f"from {__name__} import million; million({10 * len(titles)})"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    names = ("titles", "build s", "s a query", "bytes on disk", "peak bytes")
    large = dict(zip(names, json.loads(done.stdout), strict=True))
    print(table([large]), "\n")
    named = [*runs.values()]
    figures = {
        "ratio_rank_bm25": ratio(named[4], named[3]),
        "ratio_bm25s": ratio(named[1], named[0]),
        "ratio_tantivy": ratio(named[2], named[0]),
        "recall_delta": recall["csrm"] - recall["rank_bm25"],
        "update_ratio": ratio(updates["rebuild"], updates["update of 1 %"]),
        "peak_bytes_1m": large["peak bytes"],
    }
    print(closing_line("bm25", figures, ("rank-bm25", "bm25s", "tantivy", "numpy")))


def update_times(folder: Path, index: Bm25Index, titles: Titles, repeats: int) -> dict[str, Timing]:
    """Time a commit of 1 % changed titles beside building everything anew."""
    changes = fresh_updates(titles)
    contestants: dict[str, Callable[[], object]] = {
        "update of 1 %": lambda: index.add(next(changes)),
        "rebuild": lambda: Bm25Index.build(folder / "anew", titles),
    }
    return alternate(contestants, repeats)
