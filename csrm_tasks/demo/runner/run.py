"""``make demo``: the whole product on a real Airflow, on one machine, from nothing to a release.

Generates the market, starts scheduler, dag-processor and API server on SQLite in a project-local
home, triggers the DAGs over REST, follows them, and reports what MLflow and the ledger say then.
Nothing here imports Airflow. Killed at any moment and started again, it goes on where it was.
"""

from __future__ import annotations

import importlib.metadata
import time
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from csrm_tasks.airflow_api import ENDED, AirflowApi, named
from csrm_tasks.demo.market.generate import generate
from csrm_tasks.demo.runner import real
from csrm_tasks.demo.runner.estimate import estimate
from csrm_tasks.demo.runner.home import USER, Home, check_disk, check_port
from csrm_tasks.demo.runner.plan import Stage, finished, plan
from csrm_tasks.demo.runner.processes import (
    Processes,
    only_one,
    stop_leftovers,
    terminate_as_interrupt,
)
from csrm_tasks.demo.runner.summary import print_summary
from csrm_tasks.demo.runner.view import RunProgress
from csrm_tasks.errors import CsrmError
from csrm_tasks.markets import load_market

COMPONENTS = {
    "api-server": ["airflow", "api-server"],
    "dag-processor": ["airflow", "dag-processor"],
    # Logs are read from the shared folder: no log server, hence no second port.
    "scheduler": ["airflow", "scheduler", "--skip-serve-logs"],
}
PIPE_COLUMNS = 140
READY_SECONDS = 300.0  # a busy machine takes minutes over what takes 13 s otherwise
POLL_SECONDS = 0.7  # one run's state; …
TELL_SECONDS = 4.0  # … listing its forty tasks takes the API server ten times as long


def run_demo(
    home: Home,
    *,
    port: int | None,
    mlflow_port: int | None,
    data: Path | None,
    accept_terms: bool = False,
) -> int:
    """Run everything once and return the exit code; raises :class:`CsrmError` on bad input."""
    begun = time.monotonic()
    console = make_console()
    if home.bases:
        real.refuse(home, data, accept_terms=accept_terms)
    else:
        load_market(home.market, home.settings.markets)
        check_disk(home.root)
    with only_one(home.root / "lock"):
        home = take_over(home, console).at(port, mlflow_port)
        if home.bases:
            real.write_market(home)
            real.add_missing(home, console)
        console.print(land(home, data), soft_wrap=True)
        stages = plan(home.market, home.settings)
        if finished(stages, home.airflow / "airflow.db"):
            console.print("Every run of this demo has finished already: nothing to do.")
        else:
            run_all(home, stages, console)
        print_summary(console, home)
    again = f"make ui MARKET={home.market}" + (f" BASES={home.bases}" if home.bases else "")
    console.print(f"{time.monotonic() - begun:.0f} s. Look around: {again}")
    return 0


def run_all(home: Home, stages: list[Stage], console: Console) -> None:
    """Run every stage; where bases are trimmed for the market, all nights before anything trains.

    A base is cut to what the nights have brought, so it is there only after them.
    """
    if not home.bases:
        say_hours(home, console)
    with airflow_at(home, console) as (api, processes):
        ended: set[str] = set()
        if home.bases:
            nights = [stage for stage in stages if not stage.trains]
            run_stages(api, processes, nights, console)
            ended = {stage.run_id for stage in nights}
            real.trim(home, processes, nights, console)
            say_hours(home, console)
        run_stages(api, processes, [s for s in stages if s.run_id not in ended], console, ended)


def say_hours(home: Home, console: Console) -> None:
    """Print how long the trainings take here, where that matters."""
    hours = estimate(home)
    if hours:
        console.print(hours, soft_wrap=True)


def land(home: Home, data: Path | None) -> str:
    """Generate the market, and Airflow's database meanwhile; say in a line what was done."""
    with ThreadPoolExecutor(1) as beside:
        migrated = beside.submit(migrate, home)
        done = generate(home.market, home.settings, data)
        migrated.result()
    return done


def serve_ui(home: Home, *, port: int | None, mlflow_port: int | None) -> int:
    """Serve Airflow and MLflow until interrupted; raises :class:`CsrmError`."""
    console = make_console()
    if not home.bases:
        load_market(home.market, home.settings.markets)
    with only_one(home.root / "lock"):
        home = take_over(home, console).at(port, mlflow_port)
        if home.bases:
            real.write_market(home)
        migrate(home)
        with airflow_at(home, console) as (_, processes):
            processes.start("mlflow", mlflow_command(home))
            processes.wait_until(lambda: answers(home.mlflow_url), "MLflow", READY_SECONDS)
            console.print(f"Airflow  {home.url}  user {USER}, password {home.password()}")
            console.print(f"MLflow   {home.mlflow_url}")
            console.print("Ctrl-C ends both.")
            try:
                processes.wait_until(lambda: False, "", float("inf"))
            except KeyboardInterrupt:
                console.print("ending …")
    return 0


def mlflow_command(home: Home) -> list[str]:
    """Return the command of an MLflow server on what a demo has logged."""
    return [
        "mlflow", "server", "--host", "127.0.0.1", "--port", str(home.mlflow_port),
        "--workers", "1", "--backend-store-uri", home.settings.mlflow_uri,
        "--default-artifact-root", (home.root / "mlartifacts").as_uri(),
    ]  # fmt: skip


def take_over(home: Home, console: Console) -> Home:
    """Make the home's folders, and end what a killed run has left running; returns the home."""
    left = stop_leftovers(home.processes)
    if left:
        console.print(f"ended what an earlier run had left: {', '.join(left)}")
    home.prepare()
    return home


def make_console() -> Console:
    """Return a console on stdout; into a file or a pipe, wide enough for the tables."""
    console = Console()
    return console if console.is_terminal else Console(width=PIPE_COLUMNS)


@contextmanager
def airflow_at(home: Home, console: Console) -> Iterator[tuple[AirflowApi, Processes]]:
    """Run Airflow's components for the block; raises :class:`CsrmError` where they cannot start."""
    check_port(home.port, "Airflow", "PORT=…")
    terminate_as_interrupt()
    api = AirflowApi(home.url, USER, home.password())
    console.print(f"starting Airflow at {home.url} in {home.root} (logs: {home.logs})")
    with Processes(home.processes, home.logs, home.environment()) as processes:
        for name, command in COMPONENTS.items():
            processes.start(name, command)
        processes.wait_until(api.healthy, "Airflow", READY_SECONDS)
        yield api, processes


def migrate(home: Home) -> None:
    """Create or upgrade Airflow's database, once per version of Airflow."""
    stamp = home.airflow / "migrated"
    version = importlib.metadata.version("apache-airflow-core")
    if not stamp.exists() or stamp.read_text() != version:
        processes = Processes(home.processes, home.logs, home.environment())
        processes.run("migrate", ["airflow", "db", "migrate"])
        stamp.write_text(version)


def run_stages(
    api: AirflowApi,
    processes: Processes,
    stages: list[Stage],
    console: Console,
    before: Collection[str] = (),
) -> None:
    """Trigger each stage once those it waits for have ended, follow all; raises where one fails.

    ``before``: ids of runs that have ended already.
    """
    ended: set[str] = set()
    watches: dict[str, Watch] = {}
    runs = {stage.run_id for stage in stages}
    for dag_id in sorted({stage.dag_id for stage in stages}):
        api.end_others(dag_id, runs)
    with RunProgress(console, stages) as progress:
        while len(ended) < len(stages):
            for stage in stages:
                if stage.run_id not in watches and {*ended, *before}.issuperset(stage.after):
                    start(api, processes, stage, progress)
                    watches[stage.run_id] = Watch(api, stage, progress)
            ended |= {run for run, watch in watches.items() if run not in ended and watch.look()}
            processes.require_alive()
            time.sleep(POLL_SECONDS)


def start(api: AirflowApi, processes: Processes, stage: Stage, progress: RunProgress) -> None:
    """Trigger a stage, or find it begun by an earlier demo and say so."""
    processes.wait_until(lambda: api.has_dag(stage.dag_id), stage.dag_id, READY_SECONDS)
    api.unpause(stage.dag_id)
    how = api.trigger(stage.dag_id, stage.run_id, stage.conf)
    if how != "new":
        progress.known(stage, api.state(stage.dag_id, stage.run_id), how)


class Watch:
    """One run that was started: whether it has ended, and from time to time what it is doing."""

    def __init__(self, api: AirflowApi, stage: Stage, progress: RunProgress) -> None:
        self._api, self._stage, self._progress = api, stage, progress
        self._told = float("-inf")

    def look(self) -> bool:
        """Return whether the run has ended well; raises with the log of a task that failed."""
        stage, api = self._stage, self._api
        ended = api.run_state(stage.dag_id, stage.run_id) in ENDED
        if not ended and time.monotonic() < self._told + TELL_SECONDS:
            return False
        state = api.state(stage.dag_id, stage.run_id)
        self._progress.update(stage, state)
        self._told = time.monotonic()
        if state.state == "failed":
            task = next((t for t in state.tasks if t["state"] == "failed"), state.tasks[-1])
            for line in api.log_tail(stage.dag_id, stage.run_id, task):
                self._progress.say(f"    {line}")
            raise CsrmError(f"{stage.title}: task {named(task)} failed; its log ends as above")
        return state.state in ENDED


def answers(url: str) -> bool:
    """Whether an HTTP server answers at ``url``."""
    from urllib.error import URLError
    from urllib.request import ProxyHandler, build_opener

    try:
        with build_opener(ProxyHandler({})).open(f"{url}/health", timeout=2):
            return True
    except (URLError, OSError):
        return False
