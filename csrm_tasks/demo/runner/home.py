"""The project-local home of one market's demo: folders, environment of its processes, checks.

Everything is below ``.csrm/{market}`` (or ``CSRM_HOME``): Airflow's home and database, the store,
artifacts, MLflow, logs. What the caller's environment says about Airflow, CSRM or MLflow is left
out, so that a demo never writes into somebody's real installation.
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from csrm_tasks.errors import CsrmError
from csrm_tasks.settings import PROJECT_ROOT, Settings, bases_folder, default_home, load_settings

NEEDED_BYTES = 3 * 1024**3
HOST = "127.0.0.1"
AIRFLOW_PORT, MLFLOW_PORT = 8080, 5000  # where they are looked for
PORTS = 100  # that are tried from there on
USER = "admin"
OTHERS = ("AIRFLOW_", "CSRM_", "MLFLOW_")  # prefixes that are not inherited
# Of a demo on real bases: a step takes both cores, and a thread that waits takes none, but for
# the tens of microseconds that its neighbour is late by: to wake it takes as long, and a pass
# has thousands of such waits (0.92 s asleep at once, 0.80 s so; docs/OPERATIONS.md, Threads).
ONE_AT_A_TIME = {"CSRM_THREADS": "2", "OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "passive"}
SPINS = {"GOMP_SPINCOUNT": "3000"}
PRELOAD = """\
# Written by `csrm demo run`: see csrm_tasks/preload.py.
import sys

from csrm_tasks.preload import preload

preload(sys.argv)
"""


@dataclass(frozen=True)
class Home:
    """Where one market's demo lives, and at which ports."""

    market: str
    root: Path
    port: int = AIRFLOW_PORT
    mlflow_port: int = MLFLOW_PORT
    bases: str = ""  # real: by other bases than the market's file says (:mod:`.real`)

    @classmethod
    def of(cls, market: str, bases: str | None = None) -> Home:
        """Return the home of ``market``, at the usual ports; with other bases it is another."""
        name = f"{market}-{bases}" if bases else market
        return cls(market, default_home(os.environ, name), bases=bases or "")

    def at(self, port: int | None = None, mlflow_port: int | None = None) -> Home:
        """Return this home at free ports: the given ones, else from the usual ones on.

        Raises :class:`CsrmError` where there are none.
        """
        return replace(
            self,
            port=choose_port(port, AIRFLOW_PORT, "Airflow", "PORT=…"),
            mlflow_port=choose_port(mlflow_port, MLFLOW_PORT, "MLflow", "MLFLOW_PORT=…"),
        )

    @property
    def airflow(self) -> Path:
        """AIRFLOW_HOME."""
        return self.root / "airflow"

    @property
    def logs(self) -> Path:
        """Output of the Airflow and MLflow processes."""
        return self.root / "logs"

    @property
    def processes(self) -> Path:
        """Record of what was started and not yet ended."""
        return self.root / "processes.json"

    @property
    def url(self) -> str:
        """Airflow's address."""
        return f"http://{HOST}:{self.port}"

    @property
    def mlflow_url(self) -> str:
        """MLflow's address under ``make ui``."""
        return f"http://{HOST}:{self.mlflow_port}"

    @property
    def settings(self) -> Settings:
        """Where the steps of this home keep things."""
        own = {"CSRM_HOME": str(self.root)}
        if self.bases:
            own["CSRM_MARKETS"] = str(self.root / "markets")
        elif "CSRM_MARKETS" in os.environ:
            own["CSRM_MARKETS"] = os.environ["CSRM_MARKETS"]
        return load_settings(own)

    def environment(self) -> dict[str, str]:
        """Return the environment of the processes of this home."""
        own = {k: v for k, v in os.environ.items() if not k.startswith(OTHERS)}
        kept = (SPINS if self.bases else {}) | own
        local = f"{HOST},localhost"
        return kept | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{kept.get('PATH', '')}",
            "PYTHONPATH": str(PROJECT_ROOT),
            "NO_PROXY": local,
            "no_proxy": local,
            "OMP_NUM_THREADS": "1",  # one process per core beats two threads
            "TOKENIZERS_PARALLELISM": "false",
            "CSRM_HOME": str(self.root),
            "CSRM_BASES": str(bases_folder()),  # base models are every market's
            "CSRM_MARKETS": str(self.settings.markets),
            "CSRM_MLFLOW_UI": self.mlflow_url,
            "MLFLOW_TRACKING_URI": self.settings.mlflow_uri,
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # 0.7 GB less
            "MLFLOW_DISABLE_TELEMETRY": "true",
            **(ONE_AT_A_TIME if self.bases else {}),
            **self._airflow_environment(),
        }

    def _airflow_environment(self) -> dict[str, str]:
        # SQLite bears four workers. Real bases: no two trainings in memory at once.
        at_once = 1 if self.bases else min(3, max(2, os.cpu_count() or 2))
        core = {
            "DAGS_FOLDER": str(PROJECT_ROOT / "dags"),
            "PLUGINS_FOLDER": str(PROJECT_ROOT / "plugins"),
            "EXECUTOR": "LocalExecutor",
            # LocalExecutor 3.3 takes every ready task into a first-in-first-out queue, whatever
            # its priority; a small pool keeps that queue empty, so the longest path goes first.
            # Twice as many workers: one whose task has ended is taken for up to a second more, as
            # its supervisor may miss the exit (see MIN_HEARTBEAT_INTERVAL), while its slot is free.
            "DEFAULT_POOL_TASK_SLOT_COUNT": str(at_once),
            "PARALLELISM": str(2 * at_once),
            "LOAD_EXAMPLES": "false",
            "EXECUTION_API_SERVER_URL": f"{self.url}/execution/",
            "SIMPLE_AUTH_MANAGER_USERS": f"{USER}:admin",
            "SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(self.password_file),
        }
        scheduler = {
            "SCHEDULER_IDLE_SLEEP_TIME": "0.3",  # 0.1 costs a fifth of a core, 1 a second a hop
            # After a kill, what was running is found within half a minute instead of five.
            "TASK_INSTANCE_HEARTBEAT_TIMEOUT": "30",
            "ORPHANED_TASKS_CHECK_INTERVAL": "20",
            "SCHEDULER_HEALTH_CHECK_THRESHOLD": "15",
        }
        api = {"HOST": HOST, "PORT": str(self.port), "WORKERS": "1", "BASE_URL": self.url}
        # A task's supervisor may miss the moment of its exit and then looks again only when the
        # next heartbeat is due; on two busy cores that is the rule (5 s a task by default).
        workers = {"MIN_HEARTBEAT_INTERVAL": "1"}
        # A demo that runs newer DAG files starts a dag-processor of its own.
        parser = {"MIN_FILE_PROCESS_INTERVAL": "600"}
        sections = {
            "CORE": core, "SCHEDULER": scheduler, "API": api, "WORKERS": workers,
            "DAG_PROCESSOR": parser,
        }  # fmt: skip
        return {"AIRFLOW_HOME": str(self.airflow)} | {
            f"AIRFLOW__{section}__{key}": value
            for section, values in sections.items()
            for key, value in values.items()
        }

    @property
    def password_file(self) -> Path:
        """Where the generated password of :data:`USER` is kept."""
        return self.airflow / "passwords.json"

    def password(self) -> str:
        """Return the generated password of :data:`USER`."""
        import json

        return str(json.loads(self.password_file.read_text(encoding="utf-8"))[USER])

    def prepare(self) -> None:
        """Make the folders, the password and the scheduler's preload file; keep what is there."""
        for folder in (self.root, self.logs, self.airflow / "config"):
            folder.mkdir(parents=True, exist_ok=True)
        if not self.password_file.exists():
            self.password_file.touch(mode=0o600)
            self.password_file.write_text(f'{{"{USER}": "{secrets.token_urlsafe(12)}"}}')
        (self.airflow / "config" / "airflow_local_settings.py").write_text(PRELOAD)


def check_disk(folder: Path, needed: int = NEEDED_BYTES, variable: str = "CSRM_HOME") -> None:
    """Raise :class:`CsrmError` when fewer than ``needed`` bytes are free for ``folder``.

    ``variable`` of the environment says where that lies.
    """
    place = next(p for p in (folder, *folder.parents) if p.exists())
    free = shutil.disk_usage(place).free
    if free < needed:
        raise CsrmError(
            f"{place} has {free / 1024**3:.1f} GB free and the run needs {needed / 1024**3:.0f}: "
            f"free some space, or set {variable} to a folder on another disk"
        )


def choose_port(given: int | None, usual: int, what: str, option: str) -> int:
    """Return ``given``, else the first free port from ``usual`` on; no other demo takes it then.

    Raises :class:`CsrmError` when the given one is taken, or all of the next :data:`PORTS` are.
    """
    if given is not None:
        check_port(given, what, option)
        if not _reserve(given):
            raise CsrmError(_taken(given, what, option))
        return given
    ports = range(usual, usual + PORTS)
    chosen = next((p for p in ports if is_free(p) and _reserve(p)), None)
    if chosen is None:
        raise CsrmError(
            f"ports {usual} to {usual + PORTS - 1}, wanted for {what}, are all taken: choose "
            f"another with {option}"
        )
    return chosen


_RESERVED: dict[int, socket.socket] = {}  # until this process ends


def _reserve(port: int) -> bool:
    """Keep a port from other demos on this machine until its server listens, which takes a while.

    An abstract socket of Linux: nothing lies on the disk, and it goes with the process.
    """
    if port in _RESERVED:
        return True
    name = socket.socket(socket.AF_UNIX)
    try:
        name.bind(f"\0csrm-demo-port-{port}")
    except OSError:
        name.close()
        return False
    _RESERVED[port] = name
    return True


def check_port(port: int, what: str, option: str) -> None:
    """Raise :class:`CsrmError` when ``port`` of this machine is taken."""
    if not is_free(port):
        raise CsrmError(_taken(port, what, option))


def _taken(port: int, what: str, option: str) -> str:
    return (
        f"port {port}, wanted for {what}, is taken: end what uses it "
        f"(csrm demo stop ends an earlier run), or choose another with {option}"
    )


def is_free(port: int) -> bool:
    """Whether a server can listen at ``port`` of this machine."""
    with socket.socket() as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            s.bind((HOST, port))
        except OSError:
            return False
        return True
