"""The little of Airflow's REST interface that the demo and ``csrm doctor`` need."""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, overload
from urllib.error import HTTPError, URLError
from urllib.parse import quote
from urllib.request import ProxyHandler, Request, build_opener

from csrm_tasks.errors import CsrmError

ENDED = ("success", "failed")
TIMEOUT = 30.0  # seconds
TRIES, PAUSE = 5, 1.0  # requests to a busy server, seconds between them
TAIL = 25  # lines of a failed task's log
FRAMES = 4  # of a traceback


@dataclass(frozen=True)
class RunState:
    """State of one DAG run and its task instances."""

    state: str  # queued | running | success | failed
    tasks: list[dict[str, Any]]


class AirflowApi:
    """A client of the API server at ``url``, logged in when first needed."""

    def __init__(
        self, url: str, user: str, password: str, *, tries: int = TRIES, timeout: float = TIMEOUT
    ) -> None:
        self._url, self._tries, self._timeout = url, tries, timeout
        self._login = {"username": user, "password": password}
        self._token = ""
        self._open = build_opener(ProxyHandler({})).open  # never through a proxy

    def healthy(self) -> bool:
        """Whether scheduler and dag-processor report a fresh heartbeat."""
        try:
            found = self.components()
        except (URLError, OSError, ValueError):
            return False
        return all(found[p] == "healthy" for p in ("scheduler", "dag_processor"))

    def components(self) -> dict[str, str | None]:
        """Return component → its state (None: it does not run); needs no login."""
        found = self._call("GET", "/api/v2/monitor/health", token=False)
        return {name: about["status"] for name, about in found.items()}

    def has_dag(self, dag_id: str) -> bool:
        """Whether the dag-processor has parsed ``dag_id``; raises where its file has an error."""
        if self.request("GET", f"/dags/{dag_id}", none_for=404) is not None:
            return True
        errors = self.request("GET", "/importErrors")["import_errors"]
        if errors:
            last = str(errors[0]["stack_trace"]).strip().splitlines()[-1]
            raise CsrmError(f"{errors[0]['filename']} cannot be loaded: {last}")
        return False

    def unpause(self, dag_id: str) -> None:
        """Let the scheduler run ``dag_id``."""
        self.request("PATCH", f"/dags/{dag_id}", {"is_paused": False})

    def trigger(self, dag_id: str, run_id: str, conf: Mapping[str, Any]) -> str:
        """Start a run unless there is one of that id; return ``new``, ``found`` or ``retried``.

        A failed one goes on with its failed tasks.
        """
        found = self.request("GET", self._run(dag_id, run_id), none_for=404)
        if found is None:
            body = {"dag_run_id": run_id, "logical_date": None, "conf": dict(conf)}
            self.request("POST", f"/dags/{dag_id}/dagRuns", body, none_for=409)  # there by now
            return "new"
        if found["state"] != "failed":
            return "found"
        how = {"dry_run": False, "only_failed": True, "reset_dag_runs": True}
        path = f"/dags/{dag_id}/clearTaskInstances"
        self.request("POST", path, {"dag_run_id": run_id, **how})
        return "retried"

    def end_others(self, dag_id: str, runs: Collection[str]) -> None:
        """Fail unfinished runs of a DAG that are not among ``runs``: those of an older version.

        They would go on by today's code, before what is wanted: a DAG runs one at a time.
        """
        path = f"/dags/{dag_id}/dagRuns?state=running&state=queued"
        unfinished = self.request("GET", path, none_for=404) or {"dag_runs": []}
        for run in unfinished["dag_runs"]:
            if run["dag_run_id"] not in runs:
                self.request("PATCH", self._run(dag_id, run["dag_run_id"]), {"state": "failed"})

    def run_state(self, dag_id: str, run_id: str) -> str:
        """Return the state of a run."""
        return str(self.request("GET", self._run(dag_id, run_id))["state"])

    def state(self, dag_id: str, run_id: str) -> RunState:
        """Return the state of a run and of its tasks."""
        state = self.run_state(dag_id, run_id)
        tasks = self.request("GET", f"{self._run(dag_id, run_id)}/taskInstances?limit=200")
        return RunState(state, tasks["task_instances"])

    def log_tail(self, dag_id: str, run_id: str, task: Mapping[str, Any]) -> list[str]:
        """Return the last lines of a task's last attempt."""
        number = max(1, int(task["try_number"]))
        path = f"{self._run(dag_id, run_id)}/taskInstances/{task['task_id']}/logs/{number}"
        entries = self.request("GET", f"{path}?map_index={task['map_index']}")["content"]
        return [line for e in entries for line in _lines(e)][-TAIL:]

    @overload
    def request(
        self, method: str, path: str, body: Mapping[str, Any] | None = None
    ) -> dict[str, Any]: ...

    @overload
    def request(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, *, none_for: int
    ) -> dict[str, Any] | None: ...

    def request(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, *, none_for: int = 0
    ) -> dict[str, Any] | None:
        """Call ``/api/v2{path}``; the status ``none_for`` gives None.

        A busy server (5xx on SQLite under load) is asked again. Raises :class:`CsrmError`.
        """
        left = self._tries
        while True:
            left -= 1
            try:
                if not self._token:
                    login = self._call("POST", "/auth/token", self._login, token=False)
                    self._token = login["access_token"]
                return self._call(method, f"/api/v2{path}", body)
            except HTTPError as e:
                if e.code == none_for:
                    return None
                if e.code < 500 or not left:
                    detail = e.read().decode(errors="replace")[:500]
                    raise CsrmError(f"Airflow refused {method} {path}: {e.code} {detail}") from e
            except (URLError, OSError) as e:
                if not left:
                    raise CsrmError(f"Airflow at {self._url} does not answer: {e}") from e
            time.sleep(PAUSE)

    def _call(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, *, token: bool = True
    ) -> dict[str, Any]:
        headers = {"Content-Type": "application/json"}
        if token:
            headers["Authorization"] = f"Bearer {self._token}"
        data = None if body is None else json.dumps(body).encode()
        request = Request(self._url + path, data=data, method=method, headers=headers)
        with self._open(request, timeout=self._timeout) as response:
            document: dict[str, Any] = json.load(response)
        return document

    @staticmethod
    def _run(dag_id: str, run_id: str) -> str:
        return f"/dags/{dag_id}/dagRuns/{quote(run_id)}"


def named(task: Mapping[str, Any]) -> str:
    """Return a task instance's name; a mapped one has its number in it."""
    name = str(task["task_id"])
    return name if task["map_index"] < 0 else f"{name}[{task['map_index']}]"


def _lines(entry: str | Mapping[str, Any]) -> list[str]:
    """Text of one log entry: its event and, for an exception, where it was raised and what."""
    if isinstance(entry, str):
        return [entry]
    lines = [str(entry.get("event", ""))]
    for error in entry.get("error_detail") or []:
        frames = [f for f in error.get("frames") or [] if "site-packages" not in f["filename"]]
        lines += [f"  {f['filename']}:{f['lineno']} in {f['name']}" for f in frames[-FRAMES:]]
        lines.append(f"  {error['exc_type']}: {error['exc_value']}")
    return [line for line in lines if not line.startswith("::")]
