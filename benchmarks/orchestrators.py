"""Orchestrators by turns on one PostgreSQL: each is started anew, warmed up, timed, and ended.

So nothing of one runs while another is timed: a scheduler that waits takes part of a core, too.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import sqlalchemy as sa

from benchmarks.harness import Timing
from benchmarks.peers import orchestrator_airflow
from benchmarks.peers.process import Peer, PeerError, Process
from benchmarks.previous import Checkout, contestants
from benchmarks.retrain_graph import DAG, WEEK, Graph, graph_of, write_empty
from csrm_tasks.demo.runner.home import Home
from tests.ports import reserve_port

PEERS = {  # contestant → its module and what it is told
    "prefect": ("orchestrator_prefect",),
    "prefect, a process per task": ("orchestrator_prefect", "processes"),
    "dagster": ("orchestrator_dagster",),
    "dbos": ("orchestrator_dbos",),
}


@dataclass
class Contest:
    """What all of them get, and the seconds that they took."""

    server: str  # URL of a PostgreSQL, psycopg2's
    root: Path  # an empty folder
    graph: Graph  # that the peers run; ours and an earlier build run their own DAG
    warm: bool = True
    seconds: dict[str, list[float]] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)

    def compete(self, peers: bool, rounds: int, runs: int) -> dict[str, Timing]:
        """Take ``rounds`` turns of ``runs`` runs each; a peer that cannot be installed is told."""
        starts: dict[str, Callable[[], Process]] = {
            name: lambda checkout=checkout: self._ours(checkout)
            for name, checkout in contestants().items()
        }
        if peers:
            starts |= {name: lambda of=of: self._peer(*of) for name, of in PEERS.items()}
        for name in [*starts] * rounds:
            if name in starts:
                try:
                    self._turn(name, starts[name], runs)
                except PeerError as e:
                    if name not in PEERS:
                        raise
                    print(f"without {name}: {e}\n")
                    del starts[name]
        return {name: Timing(tuple(self.seconds[name])) for name in starts}

    def _turn(self, name: str, start: Callable[[], Process], runs: int) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir()
        process = start()
        try:
            self.versions[name] = process.hello["version"]
            for number in range(runs):
                found = process.ask(number)["seconds"]
                self.seconds.setdefault(name, []).append(found)
        finally:
            process.close()

    def _ours(self, checkout: Checkout) -> Process:
        """Start a build's Airflow; it has the product's DAG, with empty steps."""
        dags = self._folder / "dags"
        write_empty(checkout, dags)
        code = Path(orchestrator_airflow.__file__).read_text(encoding="utf-8")
        given = [self._folder / "home", self._database(), dags, reserve_port(), DAG, WEEK]
        return Process(
            [checkout.python, "-c", code, *map(str, given), str(self.warm)], checkout.environment()
        )

    def _peer(self, module: str, *told: str) -> Process:
        """Start a peer on the graph, with as many steps at once as the demo has."""
        work = self._folder / "work"
        work.mkdir()
        slots = Home("demo", self._folder).environment()
        given = {
            "graph": self.graph.tasks, "folder": str(work),
            "at_once": int(slots["AIRFLOW__CORE__DEFAULT_POOL_TASK_SLOT_COUNT"]),
            "database": self._database().replace("postgresql+psycopg2", "postgresql", 1),
        }  # fmt: skip
        file = self._folder / "graph.json"
        file.write_text(json.dumps(given), encoding="utf-8")
        return Peer(module, str(file), *told, alone=True)

    @property
    def _folder(self) -> Path:
        return self.root / "turn"

    def _database(self) -> str:
        """Return the URL of an empty database."""
        engine = sa.create_engine(self.server, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
        with engine.connect() as connection:
            connection.exec_driver_sql("DROP DATABASE IF EXISTS turn WITH (FORCE)")
            connection.exec_driver_sql("CREATE DATABASE turn")
        return sa.make_url(self.server).set(database="turn").render_as_string(hide_password=False)


def rows(timings: dict[str, Timing], contest: Contest) -> list[dict[str, object]]:
    """Return the rows of a table."""
    graphs = {name: graph_of(checkout) for name, checkout in contestants().items()}
    found: list[dict[str, object]] = []
    for name, timing in timings.items():
        graph = graphs.get(name, contest.graph)
        found.append({
            "contestant": name, "version": contest.versions[name], "tasks": len(graph.tasks),
            "edges": graph.edges, "median s": timing.median, "least–greatest s": timing.spread,
        })  # fmt: skip
    return found
