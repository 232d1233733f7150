"""The graph as a Prefect flow, for its runner and the processes that it starts.

See benchmarks/peers/orchestrator_prefect.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any

from benchmarks.peers.orchestrator import GRAPH, HOW, REFERENCE, Task

# of the peer's environment alone
prefect: Any = import_module("prefect")
runners: Any = import_module("prefect.task_runners")
POOLS = {"threads": runners.ThreadPoolTaskRunner, "processes": runners.ProcessPoolTaskRunner}
GIVEN = Task.read(os.environ[GRAPH])
POOL = POOLS[os.environ[HOW]]


@prefect.task
def empty(name: str, read: list[str]) -> str:
    """One step that does nothing."""
    return REFERENCE


@prefect.flow(task_runner=POOL(max_workers=GIVEN.at_once))
def retrain() -> None:
    """Run every step after those it reads."""
    made: dict[str, Any] = {}
    for name, read in GIVEN.graph.items():
        one = empty.with_options(name=name)
        made[name] = one.submit(name, [made[r] for r in read])
    import_module("prefect.futures").wait([*made.values()])
    assert all(future.state.is_completed() for future in made.values())


def offer() -> None:
    """Be the runner: offer the flow to be run, until this process ends."""
    kind = import_module("prefect.types.entrypoint").EntrypointType.MODULE_PATH
    retrain.serve(name="benchmark", print_starting_message=False, entrypoint_type=kind)
