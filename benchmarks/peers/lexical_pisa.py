"""PISA (PyTerrier's wheel): block-max WAND in C++, all queries in one call, one thread.

Its engine gets the queries at once and so pays for Python once a turn, not once a query.
"""

from __future__ import annotations

import ctypes
import tempfile
from collections import Counter
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from benchmarks.peers.lexical import Task, Turn, serve


def load_threading_library() -> None:
    """Load the wheel's own TBB, which lies where no loader looks."""
    found = find_spec("pyterrier_pisa")
    assert found is not None
    assert found.origin is not None
    ctypes.CDLL(str(Path(found.origin).parents[1] / "lib/libtbb.so.2"), ctypes.RTLD_GLOBAL)


def start(task: Task) -> Turn:
    """Index the titles."""
    load_threading_library()
    PisaIndex = import_module("pyterrier_pisa").PisaIndex  # of the peer's environment alone
    folder = tempfile.TemporaryDirectory()
    index = PisaIndex(f"{folder.name}/index.pisa", threads=1, stops="none", stemmer="none")
    index.toks_indexer().index(
        {"docno": i, "toks": dict(Counter(terms))}
        for i, terms in zip(task.ids, task.titles, strict=True)
    )
    search = index.bm25(k1=1.2, b=0.75, num_results=task.k, threads=1, verbose=False)
    asked = import_module("pandas").DataFrame(
        {
            "qid": [str(i) for i in range(len(task.queries))],
            "query": list(task.queries),
            "query_toks": [dict(Counter(terms)) for terms in task.queries.values()],
        }
    )

    def turn() -> dict[str, list[str]]:
        assert folder.name  # it is removed with the last turn
        result = search.transform(asked)
        return {q: rows["docno"].tolist() for q, rows in result.groupby("query", sort=False)}

    return turn


if __name__ == "__main__":
    serve(version("pyterrier-pisa"), start)
