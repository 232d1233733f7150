"""A build of this project with Airflow as its demo runs it; handed to that build's Python as text.

``python -c TEXT FOLDER DATABASE DAGS PORT DAG WEEK WARM``: says its version once it is ready, and
answers each line by the seconds from a run's trigger to its end. ``WARM``: with a run before, as
the peers have one (:mod:`benchmarks.peers.orchestrator`).
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from importlib.metadata import version
from pathlib import Path

try:
    homes, processes, demo = (
        importlib.import_module(f"csrm_tasks.demo.runner.{name}")
        for name in ("home", "processes", "run")
    )
    api = importlib.import_module("csrm_tasks.airflow_api")
except ModuleNotFoundError:  # a build before the demo's runner was a folder
    homes, processes, api = (
        importlib.import_module(f"csrm_tasks.demo.runner_{name}")
        for name in ("home", "processes", "api")
    )
    demo = importlib.import_module("csrm_tasks.demo.runner")

READY = 600.0  # seconds
POLL = 0.1  # as benchmarks.peers.orchestrator.POLL


def main(folder: str, database: str, dags: str, port: str, dag: str, week: str, warm: str) -> None:
    """Start Airflow's processes by the build's own settings, and take turns."""
    home = homes.Home("demo", Path(folder), port=int(port))
    home.prepare()
    more = {
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": database,
        "AIRFLOW__CORE__DAGS_FOLDER": dags,
    }
    started = processes.Processes(home.processes, home.logs, home.environment() | more)
    started.run("migrate", ["airflow", "db", "migrate"])
    with started:
        for name, command in demo.COMPONENTS.items():
            started.start(name, command)
        client = api.AirflowApi(home.url, homes.USER, home.password())
        started.wait_until(client.healthy, "Airflow", READY)
        started.wait_until(lambda: client.has_dag(dag), dag, READY)
        client.unpause(dag)

        def run(name: str) -> float:
            begun = time.perf_counter()
            client.trigger(dag, name, {"week": week})
            while (state := client.run_state(dag, name)) not in api.ENDED:
                time.sleep(POLL)
            seconds = time.perf_counter() - begun
            if state != "success":
                raise SystemExit(f"{dag}: {state}; logs: {home.airflow}/logs")
            return seconds

        if warm == "True":
            run("warm-up")
        print(json.dumps({"version": f"airflow {version('apache-airflow')}"}), flush=True)
        for number, _ in enumerate(sys.stdin):
            print(json.dumps({"seconds": run(f"turn-{number}")}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
