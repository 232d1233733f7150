"""The graph as a Dagster job, for Dagster's processes (peers/orchestrator_dagster.py)."""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any

from benchmarks.peers.orchestrator import GRAPH, REFERENCE, Task

dg: Any = import_module("dagster")  # of the peer's environment alone


def step(name: str, read: list[str]) -> Any:
    """Return a step that does nothing."""

    @dg.op(name=name, ins={one: dg.In() for one in read})
    def empty(**made: str) -> str:
        return REFERENCE

    return empty


def job(given: Task) -> Any:
    """Return the job, its steps in processes that are forked from one that has imported this."""
    graph = dg.GraphDefinition(
        name="retrain",
        node_defs=[step(name, read) for name, read in given.graph.items()],
        dependencies={
            name: {one: dg.DependencyDefinition(one) for one in read}
            for name, read in given.graph.items()
        },
    )
    forked = {"forkserver": {"preload_modules": ["dagster", __name__]}}
    executor = dg.multiprocess_executor.configured(
        {"max_concurrent": given.at_once, "start_method": forked}
    )
    return graph.to_job(executor_def=executor)


defs = dg.Definitions(jobs=[job(Task.read(os.environ[GRAPH]))])
