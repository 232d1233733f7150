"""The graph as a Prefect flow, for its runner and the processes that it starts.

See benchmarks/peers/orchestrator_prefect.
"""

from __future__ import annotations

import os
from typing import Any

from prefect import flow, task
from prefect.futures import wait
from prefect.task_runners import ProcessPoolTaskRunner, ThreadPoolTaskRunner
from prefect.types.entrypoint import EntrypointType

from benchmarks.peers.orchestrator import GRAPH, HOW, REFERENCE, Task

GIVEN = Task.read(os.environ[GRAPH])
POOL = {"threads": ThreadPoolTaskRunner, "processes": ProcessPoolTaskRunner}[os.environ[HOW]]


@task
def empty(name: str, read: list[str]) -> str:
    """One step that does nothing."""
    return REFERENCE


@flow(task_runner=POOL(max_workers=GIVEN.at_once))
def retrain() -> None:
    """Run every step after those it reads."""
    made: dict[str, Any] = {}
    for name, read in GIVEN.graph.items():
        one = empty.with_options(name=name)
        made[name] = one.submit(name, [made[r] for r in read])
    wait([*made.values()])
    assert all(future.state.is_completed() for future in made.values())


def offer() -> None:
    """Be the runner: offer the flow to be run, until this process ends."""
    retrain.serve(
        name="benchmark", print_starting_message=False, entrypoint_type=EntrypointType.MODULE_PATH
    )
