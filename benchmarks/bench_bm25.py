"""Lexical search of 100,000 generated titles by queries of 1 to 4 tokens, one thread, and updates.

All contestants get the same tokens, one query at a time, and give the best 20. ``rank_bm25`` is the
reference, ``bm25s`` runs with its numpy backend and, in an environment of its own, with numba's;
``tantivy`` is there because it, too, takes updates (though what it has deleted still counts in its
statistics); PISA gets all queries in one call. Recall is of the products that the generated
market's own rule calls exact. The last table is a million titles, in a process of its own, peak
memory included; beside it the same by the checkout that ``CSRM_PREVIOUS`` names, where it is set.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import bm25s
import numpy as np
import tantivy
from rank_bm25 import BM25Okapi

from benchmarks.harness import Timing, alternate, closing_line, ratio, table, timing_rows
from benchmarks.peers.process import Peer, PeerError
from benchmarks.previous import contestants
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


class TimedPeer:
    """A peer in a process of its own, whose turns are timed there."""

    def __init__(self, peer: Peer) -> None:
        """``peer`` answers anything with its seconds and what it found."""
        self.peer, self.seconds = peer, list[float]()
        self.found: Found = {}

    def __call__(self) -> None:
        """Take a turn."""
        answer = self.peer.ask("turn")
        self.seconds.append(answer["seconds"])
        self.found = answer["found"]

    def timing(self) -> Timing:
        """Return the seconds of all turns but the first, which warms up."""
        return Timing(tuple(self.seconds[1:]))


def start_peers(titles: Titles, queries: list[str], folder: str) -> dict[str, TimedPeer]:
    """Start the peers with packages of their own; one that cannot be installed is named."""
    task = Path(folder) / "task.json"
    task.write_text(json.dumps({"titles": titles, "queries": queries, "k": K}), encoding="utf-8")
    peers: dict[str, TimedPeer] = {}
    for name, module in (("bm25s (numba)", "lexical_numba"), ("PISA", "lexical_pisa")):
        try:
            peers[name] = TimedPeer(Peer(module, str(task)))
        except PeerError as e:
            print(f"without {name}: {e}\n")
    return peers


def fresh_updates(titles: Titles) -> Iterator[Titles]:
    """Yield one hundredth of the catalogue with other titles, another hundredth each time."""
    step, turn = len(titles) // 100, 0
    while True:
        turn += 1
        chosen = titles[turn % 100 :: 100][:step]
        yield [(i, f"{title} 第{turn}版") for i, title in chosen]


def million(size: int) -> None:
    """Build and search ``size`` titles; print seconds (of a first search, too) and bytes."""
    titles, queries, _ = judged(size // 10, 200)
    copies = -(-size // len(titles))
    many = ((f"{i}-{c}", f"{t} {c}號") for c in range(copies) for i, t in titles)
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        index = Bm25Index.build(Path(folder) / "i", many)
        built = time.perf_counter() - start
        start = time.perf_counter()
        ours(index, queries[:1])
        first = time.perf_counter() - start
        start = time.perf_counter()
        ours(index, queries)
        each = (time.perf_counter() - start) / len(queries)
        files = sum(f.stat().st_size for f in Path(folder).rglob("*") if f.is_file())
    peak = peak_memory()
    print(json.dumps([len(index), built, each, files, peak, first]))


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
        peers = {} if quick else start_peers(titles, queries, folder)
        runs = alternate(
            {
                "csrm": lambda: ours(index, queries),
                "bm25s (numpy)": lambda: sparse(peer, ids, queries),
                "tantivy": lambda: engine(*searcher, queries),
                "csrm, every 15th query": lambda: ours(index, few),
                "rank_bm25, every 15th query": lambda: okapi(reference, ids, few),
                **peers,
            },
            1 if quick else 7,
        )
        runs |= {name: timed.timing() for name, timed in peers.items()}
        found = {
            "csrm": ours(index, queries),
            "rank_bm25": okapi(reference, ids, queries),
            "bm25s (numpy)": sparse(peer, ids, queries),
            "tantivy": engine(*searcher, queries),
            **{name: timed.found for name, timed in peers.items()},
        }
        recall = {name: recall_at(ranked, exact) or 0.0 for name, ranked in found.items()}
        for timed in peers.values():
            timed.peer.close()
        updates = update_times(Path(folder), index, titles, 1 if quick else 3)
    rows = [
        row
        for name, timing in runs.items()
        for row in timing_rows({name: timing}, len(few if "15th" in name else queries), "queries/s")
    ]
    print(f"{len(titles):,} generated titles, {len(queries)} queries, one thread\n")
    print(table(rows), "\n")
    print(table([{"recall@20 of exact products": k, "": v} for k, v in recall.items()]), "\n")
    print(table(timing_rows(updates, 1, "runs/s")), "\n")
    large = large_index(10 * len(titles))
    print(table([{"build": name} | row for name, row in large.items()]), "\n")
    figures = speed_ratios(runs) | {
        "recall_delta": recall["csrm"] - recall["rank_bm25"],
        "update_ratio": ratio(updates["rebuild"], updates["update of 1 %"]),
        "peak_bytes_1m": large["this"]["peak bytes"],
    }
    if "previous" in large:
        before = large["previous"]["build s"]
        figures["build_ratio_previous"] = large["this"]["build s"] / before
    print(closing_line("bm25", figures, ("rank-bm25", "bm25s", "tantivy", "numpy")))


def speed_ratios(runs: Mapping[str, Timing]) -> dict[str, float]:
    """Return peer over ours of every peer that ran."""
    peers = {
        "ratio_rank_bm25": ("rank_bm25, every 15th query", "csrm, every 15th query"),
        "ratio_bm25s": ("bm25s (numpy)", "csrm"),
        "ratio_tantivy": ("tantivy", "csrm"),
        "ratio_bm25s_numba": ("bm25s (numba)", "csrm"),
        "ratio_pisa": ("PISA", "csrm"),
    }
    return {
        figure: ratio(runs[peer], runs[own])
        for figure, (peer, own) in peers.items()
        if peer in runs
    }


def large_index(size: int) -> dict[str, dict[str, float]]:
    """Build and search ``size`` titles by this checkout, and by an earlier one where it is given.

    Each in a process of its own (:mod:`benchmarks.previous`).
    """
    code = f"from benchmarks.bench_bm25 import million; million({size})"
    names = ("titles", "build s", "s a query", "bytes on disk", "peak bytes", "first search s")
    measured = {}
    for name, checkout in contestants().items():
        row = json.loads(checkout.run(code))
        measured[name] = dict(zip(names, [*row, 0.0][: len(names)], strict=True))
    return measured


def update_times(folder: Path, index: Bm25Index, titles: Titles, repeats: int) -> dict[str, Timing]:
    """Time a commit of 1 % changed titles beside building everything anew."""
    changes = fresh_updates(titles)
    contestants: dict[str, Callable[[], object]] = {
        "update of 1 %": lambda: index.add(next(changes)),
        "rebuild": lambda: Bm25Index.build(folder / "anew", titles),
    }
    return alternate(contestants, repeats)
