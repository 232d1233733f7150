"""A whole Airflow with a small market behind it, for :mod:`tests.browser_walk` to click through.

The market is that of the flow tests, with what its operators meet besides: a person approves, a
rollout has steps, and who is called has a mail server (of this process, which keeps the letters).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlencode

import yaml

from csrm_tasks.airflow_api import AirflowApi
from csrm_tasks.demo.runner.plan import plan
from csrm_tasks.demo.runner.processes import Processes
from csrm_tasks.demo.runner.run import (
    READY_SECONDS,
    airflow_at,
    answers,
    make_console,
    migrate,
    mlflow_command,
    run_stages,
)
from tests.cluster import LEFT, ClusterHome
from tests.conftest import new_database, postgres
from tests.flow_fixtures import MARKET, make_flow_market
from tests.notify.sinks import MailServer, serving
from tests.watch import if_killed

ROLES = {"admin": "admin", "olga": "op", "vera": "viewer", "nemo": ""}
TO = "search-ops@shop.example"
PATIENCE = {  # with a machine that a browser shares with all of this
    "SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "600",
    "SCHEDULER__SCHEDULER_HEALTH_CHECK_THRESHOLD": "300",
    "CORE__DAGBAG_IMPORT_TIMEOUT": "300",
    "DAG_PROCESSOR__DAG_FILE_PROCESSOR_TIMEOUT": "600",
}


@dataclass(frozen=True)
class Installation:
    """What runs, and what it has told people."""

    home: ClusterHome
    api: AirflowApi
    processes: Processes
    mail: MailServer

    def begin(self) -> None:
        """Run the nights and the cold start, as the demo does."""
        stages = [s for s in plan(MARKET, self.home.settings) if "retrain" not in s.dag_id]
        run_stages(self.api, self.processes, stages, make_console())

    def password(self, name: str) -> str:
        """Return the password of one of :data:`ROLES`."""
        return f"{name}-pass" if name != "admin" else self.home.password()


def write_market(folder: Path) -> None:
    """Write the landing zone and the file of a market in which people have a say."""
    make_flow_market(folder)
    path = folder / "markets" / f"{MARKET}.yaml"
    market = yaml.safe_load(path.read_text(encoding="utf-8")) | {
        "release": {"approval": "manual"},
        "rollout": {"steps": [{"weight": 0}, {"weight": 50}], "approvers": ["olga"]},
        "notify": {"connection": "ops", "to": [TO]},
    }
    market["schedule"] |= {"owner": "search-team"}
    path.write_text(yaml.safe_dump(market), encoding="utf-8")


def environment(folder: Path, mail: MailServer) -> dict[str, str]:
    """Return what Airflow is told beside what a demo's is: users, and the connection."""
    extra = {"from_email": "csrm@shop.example", "disable_ssl": "true", "disable_tls": "true"}
    return {
        "CSRM_MARKETS": str(folder / "markets"),
        "AIRFLOW_CONN_OPS": f"smtp://127.0.0.1:{mail.port}/?{urlencode(extra)}",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": ",".join(f"{n}:{r}" for n, r in ROLES.items()),
        **{f"AIRFLOW__{key}": value for key, value in PATIENCE.items()},
    }


@contextmanager
def installation(folder: Path) -> Iterator[Installation]:
    """Run everything for the block, on a market that has only been delivered so far."""
    write_market(folder)
    console = make_console()
    with ExitStack() as stack:
        mail = stack.enter_context(serving(MailServer()))
        # A browser asks and writes several things at once, which SQLite refuses when it is busy
        own = {"AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": new_database(stack.enter_context(postgres()))}
        home = ClusterHome(MARKET, folder / "home", more=environment(folder, mail) | own).at()
        home.prepare()
        passwords = json.loads(home.password_file.read_text(encoding="utf-8"))
        passwords |= {name: f"{name}-pass" for name in ROLES if name != "admin"}
        home.password_file.write_text(json.dumps(passwords), encoding="utf-8")
        stack.enter_context(if_killed(f'{sys.executable} -c "{LEFT}" "$1"', str(home.processes)))
        migrate(home)
        api, processes = stack.enter_context(airflow_at(home, console))
        processes.start("triggerer", ["airflow", "triggerer", "--skip-serve-logs"])
        processes.start("mlflow", mlflow_command(home))
        processes.wait_until(lambda: answers(home.mlflow_url), "MLflow", READY_SECONDS)
        yield Installation(home, api, processes, mail)
