"""DBOS: the graph as a durable workflow, its steps checkpointed in the database: the floor.

There is no scheduler, no server and no process per step: steps that may run at once are awaited
together, in an order that is the same at every recovery, as DBOS asks for.
"""

from __future__ import annotations

import asyncio
import sys
from importlib import import_module
from importlib.metadata import version
from typing import Any

from benchmarks.peers.orchestrator import REFERENCE, Task, serve

DBOS: Any = import_module("dbos").DBOS  # of the peer's environment alone


@DBOS.step()
async def empty(name: str, read: list[str]) -> str:
    """One step that does nothing."""
    return REFERENCE


@DBOS.workflow()
async def retrain(graph: list[tuple[str, list[str]]], at_once: int) -> int:
    """Run every step after those it reads, at most ``at_once`` at a time."""
    made: dict[str, str] = {}
    left = dict(graph)
    while left:
        ready = [n for n, read in left.items() if made.keys() >= set(read)][:at_once]
        done = await asyncio.gather(*(empty(n, [made[r] for r in left.pop(n)]) for n in ready))
        made |= dict(zip(ready, done, strict=True))
    return len(made)


def main() -> None:
    """See :mod:`benchmarks.peers.orchestrator`."""
    task = Task.read(sys.argv[1])
    DBOS(config={"name": "retrain", "system_database_url": task.database, "log_level": "WARNING"})
    DBOS.launch()

    async def once() -> int:
        handle = await DBOS.start_workflow_async(retrain, [*task.graph.items()], task.at_once)
        return int(await handle.get_result())

    loop = asyncio.new_event_loop()

    def run() -> None:
        assert loop.run_until_complete(once()) == len(task.graph)

    try:
        serve(f"dbos {version('dbos')}", run)
    finally:
        DBOS.destroy()


if __name__ == "__main__":
    main()
