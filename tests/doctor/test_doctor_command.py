"""The command ``csrm doctor`` as it is run: exit codes, JSON, what hangs or dies; Airflow."""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

from csrm_tasks.cli.main import main
from csrm_tasks.doctor import run
from csrm_tasks.doctor.checks import CHECKS, examine
from csrm_tasks.doctor.findings import Asked, Finding
from csrm_tasks.doctor.registry import _server
from csrm_tasks.doctor.run import Job, diagnose, jobs
from csrm_tasks.settings import Settings, load_settings

ROOT = Path(__file__).resolve().parents[2]
SECRET = "s3cr3t-of-the-test"


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installation with the mini market that names no base which is missing."""
    for name in [n for n in os.environ if n.startswith(("CSRM_", "AIRFLOW", "MLFLOW_TR"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("CSRM_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("CSRM_MARKETS", str(ROOT / "tests" / "markets"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    (tmp_path / "home" / "landing").mkdir(parents=True)
    return tmp_path / "home"


@contextmanager
def silent() -> Iterator[int]:
    """A port that takes connections and never answers."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        s.listen()
        yield s.getsockname()[1]


def test_the_command_says_what_works_and_one_fault_is_exit_code_1(
    installed: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run, "CHECKS", {n: CHECKS[n] for n in ("store", "machine")})
    assert main(["doctor", "--market", "mini"]) == 0
    text = capfd.readouterr().out
    assert "ok      store: no store yet" in text and text.splitlines()[-1].startswith("0 faults")

    monkeypatch.setenv("CSRM_DB_URL", f"postgresql+psycopg2://u:{SECRET}@127.0.0.1:1/csrm")
    assert main(["doctor"]) == 1
    out, err = capfd.readouterr()
    assert "FAULT   store: the database postgresql+psycopg2://127.0.0.1:1/csrm" in out
    assert "        do: start it, or correct host and port" in out
    assert SECRET not in out + err and "1 faults" in out
    assert main(["doctor", "--json"]) == 1
    document = json.loads(capfd.readouterr().out)
    assert document["ok"] is False
    (fault,) = [f for f in document["findings"] if f["level"] == "fault"]
    assert set(fault) == {"check", "markets", "level", "said", "cure"}
    assert (fault["check"], fault["markets"]) == ("store", ["mini"])
    assert SECRET not in json.dumps(document)


def test_an_unknown_market_is_one_line(installed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--market", "no"]) == 2
    assert "there is no market 'no'" in capsys.readouterr().err


def test_a_check_that_hangs_is_cut_off_and_the_others_are_done(
    installed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with silent() as port:
        monkeypatch.setenv("CSRM_DB_URL", f"postgresql+psycopg2://u:{SECRET}@127.0.0.1:{port}/x")
        monkeypatch.setenv("PGCONNECT_TIMEOUT", "0")  # for ever
        found = dict(diagnose([Job("store", ("mini",)), Job("machine", ("mini",))], 5.0))
    hung, machine = found.values()
    (finding,) = hung
    assert finding.level == "fault" and "cut off after 5 s" in finding.said
    assert "does not answer" in finding.said and "firewall" in finding.cure
    assert any(f.said.startswith("threads:") for f in machine)


def test_what_was_found_before_a_check_hung_or_died_is_kept(
    installed: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """And nothing that it started lives on."""
    alive = tmp_path / "alive"
    first = json.dumps({"check": "store", "level": "ok", "said": "first", "cure": ""})
    hangs = (
        f"import subprocess, sys, time; print({first!r}, flush=True); print('{{half', end='');"
        f"p = subprocess.Popen(['sleep', '600']); open({str(alive)!r}, 'w').write(str(p.pid));"
        "sys.stdout.flush(); time.sleep(600)"
    )
    killed = f"import os; print({first!r}, flush=True); os.kill(os.getpid(), 9)"
    said = {}
    for script in (hangs, killed, "import sys; sys.exit(3)"):
        command = property(lambda _, s=script: [sys.executable, "-c", s])
        monkeypatch.setattr(Job, "command", command)
        ((_, found),) = diagnose([Job("store", ())], 3.0)
        said[script] = [f.said for f in found]
    assert said[hangs][0] == "first" and "cut off after 3 s" in said[hangs][1]
    assert said[killed][0] == "first" and "for want of memory" in said[killed][1]
    assert "exit code 3" in said["import sys; sys.exit(3)"][0]
    assert ends(int(alive.read_text()))


def ends(pid: int) -> bool:
    """Whether a process ends within a minute; a zombie has ended."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


def test_markets_that_share_a_home_are_checked_once_and_others_each(
    installed: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.yaml").write_text("")
    monkeypatch.setenv("CSRM_MARKETS", str(tmp_path))
    shared = jobs(None)
    assert [j.check for j in shared] == list(CHECKS)
    assert {j.markets for j in shared} == {("a", "b")}
    monkeypatch.delenv("CSRM_HOME")
    apart = {c: [j.markets for j in jobs(None) if j.check == c] for c in CHECKS}
    assert apart["store"] == apart["storage"] == apart["mlflow"] == [("a",), ("b",)]
    assert apart["machine"] == apart["bases"] == apart["airflow"] == [("a", "b")]
    assert {j.markets for j in jobs("a")} == {("a",)}


# Airflow's and MLflow's REST interface, by what they answer


class Answers(BaseHTTPRequestHandler):
    """Answers by a table of paths; what is not in it is 404."""

    table: ClassVar[dict[str, tuple[int, Any]]] = {}
    logins: ClassVar[list[dict[str, str]]] = []

    def do_GET(self) -> None:
        status, body = self.table.get(self.path.partition("?")[0], (404, {"detail": SECRET}))
        self.send_response(status)
        self.end_headers()
        self.wfile.write((body if isinstance(body, str) else json.dumps(body)).encode())

    def do_POST(self) -> None:
        self.logins.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.do_GET()

    def log_message(self, *_: object) -> None:
        """Nothing on the screen."""


@contextmanager
def answering(table: dict[str, tuple[int, Any]]) -> Iterator[int]:
    Answers.table, Answers.logins = table, []
    server = HTTPServer(("127.0.0.1", 0), Answers)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def airflow(**changed: Any) -> dict[str, tuple[int, Any]]:
    """A healthy Airflow with the mini market's DAGs; ``changed``: path's last word → answer."""
    from importlib.metadata import version

    names = ("cold_start", "drill", "ingest", "refresh", "replay", "retrain", "rollback", "rollout")
    parts = ("metadatabase", "scheduler", "dag_processor", "triggerer")
    table: dict[str, tuple[int, Any]] = {
        "/auth/token": (201, {"access_token": "t"}),
        "/api/v2/monitor/health": (200, {p: {"status": "healthy"} for p in parts}),
        "/api/v2/version": (200, {"version": version("apache-airflow-core")}),
        "/api/v2/importErrors": (200, {"import_errors": []}),
    } | {f"/api/v2/dags/csrm_{n}__mini": (200, {"is_paused": False}) for n in names}
    for word, answer in changed.items():
        (path,) = [p for p in table if p.endswith(word)]
        table[path] = answer
    return table


def asked(settings: Settings) -> Asked:
    """Return what is asked of the mini market, which runs a night by itself."""
    folder = settings.home / "markets"
    folder.mkdir(parents=True, exist_ok=True)
    text = (ROOT / "tests" / "markets" / "mini.yaml").read_text(encoding="utf-8")
    assert "schedule: {ingest: null" in text
    text = text.replace("schedule: {ingest: null", "schedule: {ingest: '0 2 * * *'")
    (folder / "mini.yaml").write_text(text, encoding="utf-8")
    return Asked(replace(settings, markets=folder), ("mini",))


def of_airflow(
    settings: Settings, patch: pytest.MonkeyPatch, table: dict[str, tuple[int, Any]]
) -> list[Finding]:
    with answering(table) as port:
        patch.setenv("CSRM_AIRFLOW_URL", f"http://us%40er:{SECRET}@127.0.0.1:{port}/")
        found = list(examine("airflow", asked(settings)))
    assert all(SECRET not in f.said + f.cure for f in found)
    return [f for f in found if f.level != "ok"]


def test_an_airflow_that_works(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    assert of_airflow(settings, monkeypatch, airflow()) == []
    assert Answers.logins == [{"username": "us@er", "password": SECRET}]
    monkeypatch.delenv("CSRM_AIRFLOW_URL")
    (skipped,) = examine("airflow", asked(settings))
    assert skipped.level == "skipped" and "CSRM_AIRFLOW_URL" in skipped.said


@pytest.mark.parametrize(
    ("changed", "level", "said"),
    [
        ({"token": (401, {"detail": SECRET})}, "fault", "does not let us in"),
        ({"importErrors": (403, {"detail": SECRET})}, "fault", "(403)"),
        ({"health": (200, {"scheduler": {"status": "healthy"}})}, "fault", "the dag-processor"),
        ({"health": (502, "<html>")}, "fault", "answers 502"),
        ({"health": (200, "<html>")}, "fault", "fails (JSONDecodeError)"),
        ({"version": (200, {"version": "2.9.0"})}, "warning", "the server is Airflow 2.9.0"),
        (
            {"importErrors": (200, {"import_errors": [{"filename": "csrm_x.py"}]})},
            "fault",
            "csrm_x.py cannot be loaded",
        ),
        ({"retrain__mini": (404, {})}, "fault", "csrm_retrain are not there"),
        ({"ingest__mini": (200, {"is_paused": True})}, "warning", "csrm_ingest are paused"),
    ],
)
def test_what_an_airflow_lacks(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, changed: Any, level: str, said: str
) -> None:
    first = of_airflow(settings, monkeypatch, airflow(**changed))[0]
    assert first.level == level and said in first.said and first.cure


def test_a_market_that_releases_nothing_has_three_dags(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = ("cold_start", "drill", "refresh", "rollback", "rollout")
    table = airflow(**{f"csrm_{name}__mini": (404, {}) for name in lost})
    with answering(table) as port:
        monkeypatch.setenv("CSRM_AIRFLOW_URL", f"http://user:{SECRET}@127.0.0.1:{port}/")
        market = asked(settings)
        assert any(f.level == "fault" for f in examine("airflow", market))
        file = market.settings.markets / "mini.yaml"
        text = file.read_text(encoding="utf-8").replace("seed: 0\n", "seed: 0\ntasks: [qc]\n")
        file.write_text(text, encoding="utf-8")
        found = [*examine("airflow", market)]
    assert [f for f in found if f.level != "ok"] == []
    assert any("its 3 DAGs are there" in f.said for f in found)


def test_a_connection_and_a_pool_that_a_market_names_must_be_there(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = airflow()
    with answering(table) as port:
        monkeypatch.setenv("CSRM_AIRFLOW_URL", f"http://user:{SECRET}@127.0.0.1:{port}/")
        market = asked(settings)
        file = market.settings.markets / "mini.yaml"
        text = file.read_text(encoding="utf-8")
        text = text.replace("schedule: {", "schedule: {training_pool: heavy, ")
        text += "notify: {connection: ops, to: [a@b.c]}\nworkers: {train_llm: {pool: gpus}}\n"
        file.write_text(text, encoding="utf-8")
        lost = [f for f in examine("airflow", market) if f.level != "ok"]
        table |= {f"/api/v2/{path}": (200, {}) for path in ("connections/ops", "pools/heavy",
                                                          "pools/gpus")}  # fmt: skip
        assert all(f.level == "ok" for f in examine("airflow", market))
    connection, pool, of_workers = lost
    assert connection.level == "warning" and "'ops' (notify.connection)" in connection.said
    assert pool.level == "fault" and "'heavy'" in pool.said and "pools set heavy" in pool.cure
    assert of_workers.level == "fault" and "'gpus' (workers.train_llm.pool)" in of_workers.said


def test_a_triggerer_is_missed_by_approvals_only(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    health = {p: {"status": "healthy"} for p in ("scheduler", "dag_processor")}
    health["triggerer"] = {"status": None}  # type: ignore[dict-item]
    (found,) = of_airflow(settings, monkeypatch, airflow(health=(200, health)))
    assert found.level == "warning" and "approval" in found.said


def test_an_airflow_that_is_not_there_or_has_no_address(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    for url, said in (
        (f"http://u:{SECRET}@127.0.0.1:1", "nothing listens"),
        ("http://127.0.0.1:1", "is no address with a login"),
        (f"u:{SECRET}@host", "is no address with a login"),
    ):
        monkeypatch.setenv("CSRM_AIRFLOW_URL", url)
        (found,) = examine("airflow", asked(settings))
        assert found.level == "fault" and said in found.said and SECRET not in found.said


def test_an_mlflow_server_that_does_not_let_us_in(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with answering(
        {"/api/2.0/mlflow/experiments/search": (401, {"detail": f"Unauthorized {SECRET}"})}
    ) as port:
        uri = f"http://user:{SECRET}@127.0.0.1:{port}"
        (found,) = examine("mlflow", asked(replace(settings, mlflow_uri=uri)))
    assert "does not let us in" in found.said and "MLFLOW_TRACKING_USERNAME" in found.cure
    assert SECRET not in found.said


@pytest.mark.parametrize(
    ("answer", "level", "said"),
    [
        ((200, "2.1.0"), "warning", "the server is MLflow 2.1.0"),
        ((200, f"<html>{SECRET}"), "skipped", "not told"),
        ((403, SECRET), "skipped", "not told"),
    ],
)
def test_the_version_of_an_mlflow_server(answer: tuple[int, str], level: str, said: str) -> None:
    with answering({"/version": answer}) as port:
        found = list(_server(f"http://u:{SECRET}@127.0.0.1:{port}/"))
    assert found[-1].level == level and said in found[-1].said
    assert all(SECRET not in f.said for f in found)


def test_settings_of_a_child_are_those_of_its_markets(installed: Path) -> None:
    ((_, found),) = diagnose([Job("bases", ("mini",))], 60.0)
    assert any("llm.base" in f.said for f in found)
    assert load_settings().home == installed
