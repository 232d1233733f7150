"""Prefect with its server and a runner: each run a process, its tasks threads of it (the default).

``python -m benchmarks.peers.orchestrator_prefect FILE [processes]``: with ``processes`` each task
runs in one of a pool of processes, so that one that dies does not take the run with it.
"""

from __future__ import annotations

import sys
from importlib.metadata import version

from benchmarks.peers.orchestrator import (
    GRAPH,
    HOW,
    Task,
    ask,
    free_port,
    serve,
    started,
    wait_for,
)

ENDED = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")


def main() -> None:
    """See :mod:`benchmarks.peers.orchestrator`."""
    task, port = Task.read(sys.argv[1]), free_port()
    how = sys.argv[2] if len(sys.argv) > 2 else "threads"
    api = f"http://127.0.0.1:{port}/api"
    env = {
        "PREFECT_HOME": str(task.folder), "PREFECT_API_URL": api,
        "PREFECT_PROFILES_PATH": str(task.folder / "none.toml"),
        "PREFECT_API_DATABASE_CONNECTION_URL": driven(task.database),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1",
        "PREFECT_RUNNER_POLL_FREQUENCY": "1",  # 10 seconds by default
        "PREFECT_LOGGING_LEVEL": "WARNING", GRAPH: sys.argv[1], HOW: how,
    }  # fmt: skip
    server = ["prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    runner = ["python", "-c", "from benchmarks.peers import prefect_flow; prefect_flow.offer()"]

    def deployment() -> str:
        found = ask(f"{api}/deployments/filter", {})
        return str(found[0]["id"]) if found else ""

    def run() -> None:
        made = ask(f"{api}/deployments/{deployment()}/create_flow_run", {})
        url = f"{api}/flow_runs/{made['id']}"
        wait_for(lambda: ask(url)["state"]["type"] in ENDED, "the flow")
        state = ask(url)["state"]
        assert state["type"] == "COMPLETED", state

    with started(task.folder, {"server": server}, **env) as serving:
        wait_for(lambda: ask(f"{api}/health") is True, "Prefect's server", running=serving)
        with started(task.folder, {"runner": runner}, **env) as offering:
            wait_for(lambda: deployment() != "", "Prefect's runner", running=offering)
            serve(f"prefect {version('prefect')}", run)


def driven(url: str) -> str:
    """Return a database's address with the driver that Prefect's server wants."""
    return url.replace("postgresql://", "postgresql+asyncpg://", 1).replace(
        "sqlite://", "sqlite+aiosqlite://", 1
    )


if __name__ == "__main__":
    main()
