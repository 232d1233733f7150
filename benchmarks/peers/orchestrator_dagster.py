"""Dagster with its daemon and webserver: each step a process forked from one that has imported.

Runs are launched over GraphQL, queued, and dequeued by the daemon, as an installation does it; the
daemon looks each second instead of every five, and the executor forks (``forkserver``) where it
would start a fresh interpreter for each step.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

from benchmarks.peers.orchestrator import GRAPH, Task, ask, free_port, serve, started, wait_for

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


def main() -> None:
    """See :mod:`benchmarks.peers.orchestrator`."""
    task, port = Task.read(sys.argv[1]), free_port()
    kind = f'postgres: {{postgres_url: "{task.database}"}}'
    if task.database.startswith("sqlite"):
        kind = f'sqlite: {{base_dir: "{task.folder}"}}'
    (task.folder / "dagster.yaml").write_text(SETTINGS.format(kind=kind), encoding="utf-8")
    env = {"DAGSTER_HOME": str(task.folder), GRAPH: sys.argv[1]}
    code = ["-m", "benchmarks.peers.dagster_job"]
    servers = {
        "daemon": ["dagster-daemon", "run", *code],
        "webserver": ["dagster-webserver", "-h", "127.0.0.1", "-p", str(port), *code],
    }
    with started(task.folder, servers, **env) as running:
        client = Client(f"http://127.0.0.1:{port}/graphql", running)
        serve(f"dagster {version('dagster')}", client.run)


class Client:
    """Launches runs over GraphQL."""

    def __init__(self, url: str, running: Callable[[], None]) -> None:
        self._url, self._running = url, running
        self._where: dict[str, str] = {}

    def run(self) -> None:
        """Launch a run and wait for its end."""
        if not self._where:
            wait_for(self._is_there, "Dagster's webserver", running=self._running)
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
