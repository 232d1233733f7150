"""Dagster with its daemon and webserver: each step a process forked from one that has imported.

Runs are launched over GraphQL, queued, and dequeued by the daemon, as an installation does it; the
daemon looks each second instead of every five, and the executor forks (``forkserver``) where it
would start a fresh interpreter for each step.
"""

from __future__ import annotations

import os
import sys
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from benchmarks.peers.orchestrator import (
    GRAPH,
    REFERENCE,
    Task,
    ask,
    free_port,
    serve,
    started,
    wait_for,
)

if TYPE_CHECKING:
    from dagster import Definitions

MODULE = "benchmarks.peers.orchestrator_dagster"
SETTINGS = """\
storage:
  {kind}
run_coordinator:
  module: dagster.core.run_coordinator
  class: QueuedRunCoordinator
  config: {{dequeue_interval_seconds: 1}}
telemetry: {{enabled: false}}
"""
LAUNCH = """
mutation ($where: JobOrPipelineSelector!) {
  launchRun(executionParams: {selector: $where}) {
    __typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message }
  }
}
"""
STATUS = "query ($id: ID!) { runOrError(runId: $id) { ... on Run { status } } }"
WHERE = (
    "{ repositoriesOrError { ... on RepositoryConnection { nodes { name location { name } } } } }"
)
ENDED = ("SUCCESS", "FAILURE", "CANCELED")


def definitions() -> Definitions:
    """Return the job for Dagster's processes, which load it by this function."""
    import dagster as dg

    given = Task.read(os.environ[GRAPH])

    def step(name: str, read: list[str]) -> dg.OpDefinition:
        @dg.op(name=name, ins={one: dg.In() for one in read})
        def empty(**made: str) -> str:
            return REFERENCE

        return empty

    graph = dg.GraphDefinition(
        name="retrain",
        node_defs=[step(name, read) for name, read in given.graph.items()],
        dependencies={
            name: {one: dg.DependencyDefinition(one) for one in read}
            for name, read in given.graph.items()
        },
    )
    forked = {"forkserver": {"preload_modules": ["dagster", MODULE]}}
    executor = dg.multiprocess_executor.configured(
        {"max_concurrent": given.at_once, "start_method": forked}
    )
    return dg.Definitions(jobs=[graph.to_job(executor_def=executor)])


def main() -> None:
    """See :mod:`benchmarks.peers.orchestrator`."""
    task, port = Task.read(sys.argv[1]), free_port()
    kind = f'postgres: {{postgres_url: "{task.database}"}}'
    if task.database.startswith("sqlite"):
        kind = f'sqlite: {{base_dir: "{task.folder}"}}'
    (task.folder / "dagster.yaml").write_text(SETTINGS.format(kind=kind), encoding="utf-8")
    env = {"DAGSTER_HOME": str(task.folder), GRAPH: sys.argv[1]}
    code = ["-m", MODULE, "-a", "definitions"]
    servers = {
        "daemon": ["dagster-daemon", "run", *code],
        "webserver": ["dagster-webserver", "-h", "127.0.0.1", "-p", str(port), *code],
    }
    with started(task.folder, servers, **env):
        serve(f"dagster {version('dagster')}", Client(f"http://127.0.0.1:{port}/graphql").run)


class Client:
    """Launches runs over GraphQL."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._where: dict[str, str] = {}

    def run(self) -> None:
        """Launch a run and wait for its end."""
        if not self._where:
            wait_for(self._is_there, "Dagster's webserver")
        launched = self._ask(LAUNCH, where=self._where)["launchRun"]
        assert launched["__typename"] == "LaunchRunSuccess", launched
        run = launched["run"]["runId"]
        wait_for(lambda: self._status(run) in ENDED, "the job")
        assert self._status(run) == "SUCCESS"

    def _status(self, run: str) -> str:
        return str(self._ask(STATUS, id=run)["runOrError"]["status"])

    def _is_there(self) -> bool:
        nodes = self._ask(WHERE)["repositoriesOrError"].get("nodes")
        if nodes:
            self._where = {
                "repositoryName": nodes[0]["name"], "jobName": "retrain",
                "repositoryLocationName": nodes[0]["location"]["name"],
            }  # fmt: skip
        return bool(nodes)

    def _ask(self, query: str, **variables: object) -> Any:
        return ask(self._url, {"query": query, "variables": variables})["data"]


if __name__ == "__main__":
    main()
