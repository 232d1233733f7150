"""bm25s with its numba backend, one query at a time, in an environment of its own."""

from __future__ import annotations

from importlib.metadata import version

import bm25s

from benchmarks.peers.lexical import Task, Turn, serve


def start(task: Task) -> Turn:
    """Index the titles."""
    model = bm25s.BM25(backend="numba")
    model.index(task.titles, show_progress=False)

    def turn() -> dict[str, list[str]]:
        found = {}
        for query, terms in task.queries.items():
            rows, _ = model.retrieve([terms], k=task.k, show_progress=False, n_threads=1)
            found[query] = [task.ids[i] for i in rows[0]]
        return found

    return turn


if __name__ == "__main__":
    serve(f"{version('bm25s')} with numba {version('numba')}", start)
