"""``python -m tests.cluster_demo MARKET --out REPORT [--lose-worker] [--restart-broker]``

A market's whole demo on the cluster of :mod:`tests.cluster`, by hand: with a worker that is lost
and a broker that is killed while something is training, or without. The report has the digest of
everything that was made, to compare the one with the other.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from threading import Thread
from typing import Any

import psutil

from csrm_tasks.airflow_api import named
from csrm_tasks.demo.market.generate import generate
from csrm_tasks.demo.runner.plan import Stage, plan
from csrm_tasks.demo.runner.run import make_console, run_stages
from csrm_tasks.errors import CsrmError
from csrm_tasks.release import ledger
from tests.cluster import Cluster, cluster, digests
from tests.conftest import postgres
from tests.flow_fixtures import make_flow_market

MIDDLE = 3.0  # seconds of a task after which it is in its middle


class Faults(Thread):
    """Loses the worker that trains the LLM, then kills the broker while something else runs."""

    def __init__(self, found: Cluster, runs: Sequence[Stage], wanted: Sequence[str]) -> None:
        super().__init__(daemon=True)
        self._found, self._runs, self._wanted = found, runs, [*wanted]
        self.done: list[str] = []
        self.threads = 0  # the most that a supervisor was seen with, of those that fork tasks

    def run(self) -> None:
        """Wait for each moment and do it."""
        while True:
            self.threads = max(self.threads, *map(threads_of, psutil.process_iter()))
            for task in self._running():
                if self._wanted and self._is_moment(self._wanted[0], task):
                    self._do(self._wanted.pop(0), task)
                    break
            time.sleep(0.5)

    def _running(self) -> list[dict[str, Any]]:
        found = []
        for stage in self._runs:
            with suppress(CsrmError):  # not triggered yet
                tasks = self._found.api.state(stage.dag_id, stage.run_id).tasks
                found += [task for task in tasks if task["state"] == "running"]
        return found

    def _is_moment(self, what: str, task: Mapping[str, Any]) -> bool:
        begun = datetime.fromisoformat(task["start_date"].replace("Z", "+00:00"))
        trains = task["task_id"].startswith("train_llm")
        return (trains or what == "broker") and time.time() - begun.timestamp() > MIDDLE

    def _do(self, what: str, task: Mapping[str, Any]) -> None:
        where = f"{time.strftime('%H:%M:%S')} {named(task)} on {task['hostname']}"
        if what == "worker":
            self._found.processes.lose(task["hostname"])
            self.done.append(f"{where}: the worker is lost")
        else:
            self._found.restart_broker()
            self.done.append(f"{where}: the broker was killed and started again")
        print(self.done[-1], flush=True)


def threads_of(process: psutil.Process) -> int:
    """Return how many threads a process has, if it is one that forks a task; else 0."""
    with suppress(psutil.Error):
        if " ".join(process.cmdline()).startswith("airflow supervisor"):
            return int(process.num_threads())
    return 0


def run(market: str, root: Path, server: str, wanted: Sequence[str]) -> dict[str, Any]:
    """Run a market's demo, with ``wanted`` faults; say how it went and what was made."""
    more = {}
    if market == "mini":
        make_flow_market(root)
        root, more = root / "home", {"CSRM_MARKETS": str(root / "markets")}
    with cluster(market, root, server, **more) as found:
        settings = found.home.settings
        if market != "mini":
            generate(market, settings, None)
        stages = plan(market, settings)
        faults = Faults(found, [stage for stage in stages if stage.trains], wanted)
        faults.start()
        run_stages(found.api, found.processes, stages, make_console())
        states = {s.run_id: found.api.state(s.dag_id, s.run_id) for s in stages}
        tasks = [task for state in states.values() for task in state.tasks]
        return {
            "runs": {run: state.state for run, state in states.items()},
            "faults": faults.done,
            "threads_of_supervisors": faults.threads,
            "tasks": len(tasks),
            "by_worker": dict(Counter(task["hostname"] for task in tasks)),
            "again": {named(t): t["try_number"] for t in tasks if (t["try_number"] or 0) > 1},
            "live": ledger.live_stack(ledger.verified(settings, market)),
            "digests": digests(settings, market),
        }


@contextmanager
def own_folder(name: str) -> Iterator[Path]:
    """Give a folder that no other run has: of one name, as references to landed files name it."""
    folder = Path(tempfile.gettempdir()) / name
    try:
        folder.mkdir()
    except FileExistsError:
        raise SystemExit(f"{folder} is there: another run has it, or left it; remove it") from None
    try:
        yield folder / "run"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def main() -> None:
    """See the module's docstring."""
    args = argparse.ArgumentParser(description=__doc__)
    args.add_argument("market")
    args.add_argument("--lose-worker", action="store_true")
    args.add_argument("--restart-broker", action="store_true")
    args.add_argument("--out", type=Path, required=True, help="where the report is written")
    asked = args.parse_args()
    wanted = ["worker"] * asked.lose_worker + ["broker"] * asked.restart_broker
    with own_folder(f"csrm-cluster-{asked.market}") as folder, postgres() as server:
        told = run(asked.market, folder, server, wanted)
    asked.out.write_text(json.dumps(told, indent=1), encoding="utf-8")
    print(json.dumps({k: v for k, v in told.items() if k != "digests"}, indent=1))


if __name__ == "__main__":
    main()
