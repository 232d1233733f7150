"""What the lexical peers share: the benchmark's file of titles and queries, and their turns.

``python -m benchmarks.peers.lexical_NAME FILE``: FILE is JSON with ``titles`` ([id, title], …),
``queries`` and ``k``. Says its version, then answers each line by the seconds of one turn over all
queries and what was found.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from csrm_tasks.lexical.analyser import tokens

Turn = Callable[[], dict[str, list[str]]]


@dataclass(frozen=True)
class Task:
    """Documents and queries as the tokens that all contestants get."""

    ids: list[str]
    titles: list[list[str]]
    queries: dict[str, list[str]]
    k: int


def serve(version: str, start: Callable[[Task], Turn]) -> None:
    """Build the index, then take turns; whatever the library writes goes to standard error."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    given = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    task = Task(
        [i for i, _ in given["titles"]], [tokens(t) for _, t in given["titles"]],
        {q: tokens(q) for q in given["queries"]}, given["k"],
    )  # fmt: skip
    turn = start(task)
    print(json.dumps({"version": version}), file=answers, flush=True)
    for _ in sys.stdin:
        begun = time.perf_counter()
        found = turn()
        answer = {"seconds": time.perf_counter() - begun, "found": found}
        print(json.dumps(answer), file=answers, flush=True)
