"""The demo runner's parts: children ended by session, the plan, progress lines, log tails."""

from __future__ import annotations

import ast
import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import pytest
from rich.console import Console

from csrm_tasks.airflow_api import AirflowApi, RunState, _lines
from csrm_tasks.demo.runner import home as runner_home
from csrm_tasks.demo.runner import run as runner
from csrm_tasks.demo.runner.home import PRELOAD, Home
from csrm_tasks.demo.runner.plan import finished, plan
from csrm_tasks.demo.runner.processes import Processes, only_one, stop_leftovers
from csrm_tasks.demo.runner.run import Watch, run_stages
from csrm_tasks.demo.runner.view import RunProgress
from csrm_tasks.errors import CsrmError
from csrm_tasks.preload import MODULES, preload, stamp
from csrm_tasks.settings import load_settings
from csrm_tasks.steps.code_digest import closure_of, code_digest
from csrm_tasks.steps.declaration import MODULES as STEP_MODULES
from csrm_tasks.steps.declaration import all_steps

ROOT = Path(__file__).resolve().parents[2]
# A child that ignores SIGTERM and forks one that does, too: what a busy task may look like.
STUBBORN = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if os.fork() == 0:
    os.setpgid(0, 0)
open(sys.argv[1] + str(os.getpid()), "w").close()
time.sleep(600)
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.setenv("CSRM_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("CSRM_MARKETS", str(ROOT / "tests" / "markets"))
    home = replace(Home.of("mini"), port=18080, mlflow_port=15000)
    home.prepare()
    return home


def test_a_demo_goes_where_nobody_is_unless_it_is_told_where(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    def listening() -> tuple[socket.socket, int]:
        server = socket.create_server(("", 0))  # as most servers do: at every address
        return server, server.getsockname()[1]

    (one, port), (other, mlflow_port) = listening(), listening()
    with one, other:
        monkeypatch.setattr(runner_home, "AIRFLOW_PORT", port)
        monkeypatch.setattr(runner_home, "MLFLOW_PORT", mlflow_port)
        found = home.at()
        assert port < found.port < port + runner_home.PORTS
        assert mlflow_port < found.mlflow_port < mlflow_port + runner_home.PORTS
        assert str(found.port) in found.environment()["AIRFLOW__CORE__EXECUTION_API_SERVER_URL"]
        with pytest.raises(CsrmError, match=rf"port {port}, wanted for Airflow, is taken: .*PORT="):
            home.at(port=port)
        monkeypatch.setattr(runner_home, "PORTS", 1)
        with pytest.raises(CsrmError, match=f"ports {port} to {port}, wanted for Airflow, are all"):
            home.at()


def children(folder: Path) -> list[int]:
    return [int(p.name) for p in folder.glob("[0-9]*")]


def alive(pid: int) -> bool:
    """Whether it runs; one that nobody has waited for yet does not."""
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def start_stubborn(home: Home, processes: Processes, folder: Path) -> None:
    folder.mkdir()
    processes.start("stubborn", [sys.executable, "-c", STUBBORN, f"{folder}/"])
    processes.wait_until(lambda: len(children(folder)) == 2, "stubborn", 120)


def test_leaving_the_block_ends_a_child_and_what_it_forked(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("csrm_tasks.demo.runner.processes.GRACE", 0.3)
    with Processes(home.processes, home.logs, dict(os.environ)) as processes:
        start_stubborn(home, processes, tmp_path / "pids")
    assert not any(alive(p) for p in children(tmp_path / "pids"))
    assert not home.processes.exists()


def test_what_a_killed_run_left_is_found_by_its_record(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("csrm_tasks.demo.runner.processes.GRACE", 0.3)
    killed = Processes(home.processes, home.logs, dict(os.environ))  # never leaves its block
    start_stubborn(home, killed, tmp_path / "pids")
    bystander = Processes(tmp_path / "other.json", home.logs, dict(os.environ))
    start_stubborn(home, bystander, tmp_path / "others")
    assert stop_leftovers(home.processes) == ["stubborn"]
    assert not any(alive(p) for p in children(tmp_path / "pids"))
    assert all(alive(p) for p in children(tmp_path / "others"))
    assert stop_leftovers(home.processes) == []
    killed.stop()
    bystander.stop()


def test_a_session_whose_number_somebody_else_has_by_now_is_left_alone(
    home: Home, tmp_path: Path
) -> None:
    other = Processes(tmp_path / "other.json", home.logs, dict(os.environ))
    start_stubborn(home, other, tmp_path / "others")
    record = json.loads((tmp_path / "other.json").read_text())
    first = min(psutil.Process(p).create_time() for p in children(tmp_path / "others"))
    home.processes.parent.mkdir(parents=True, exist_ok=True)
    home.processes.write_text(json.dumps(record | {"started": first - 60}))
    assert stop_leftovers(home.processes) == []
    assert all(alive(p) for p in children(tmp_path / "others"))
    home.processes.write_text(json.dumps(record))
    assert stop_leftovers(home.processes) == ["stubborn"]
    other.stop()


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGHUP])
def test_a_terminal_that_is_closed_ends_the_block_like_an_interrupt(sign: signal.Signals) -> None:
    code = (
        "import os, signal, sys\n"
        "from csrm_tasks.demo.runner.processes import terminate_as_interrupt\n"
        "terminate_as_interrupt()\n"
        "try:\n    os.kill(os.getpid(), int(sys.argv[1]))\n    signal.pause()\n"
        "except KeyboardInterrupt:\n    print('unwound')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(int(sign))], capture_output=True, text=True, cwd=ROOT,
        preexec_fn=lambda: signal.signal(sign, signal.SIG_DFL), timeout=120, check=False,
    )  # fmt: skip
    assert done.stdout == "unwound\n", done.stderr


def test_a_child_that_ends_by_itself_is_named_with_its_last_words(home: Home) -> None:
    with Processes(home.processes, home.logs, dict(os.environ)) as processes:
        processes.start("frail", [sys.executable, "-c", "print('bad wiring'); raise SystemExit(3)"])
        with pytest.raises(CsrmError, match=r"frail ended with 3: bad wiring .*again to go on"):
            processes.wait_until(lambda: False, "never", 120)


def test_two_runs_of_one_home_exclude_each_other(home: Home) -> None:
    lock = home.root / "lock"
    with only_one(lock), pytest.raises(CsrmError, match="another run or ui"), only_one(lock):
        pytest.fail("two runs at once")
    with only_one(lock):
        pass


def test_the_environment_is_the_homes_own(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__DATABASE__SQL_ALCHEMY_CONN", "postgresql://production")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://production")
    env = home.environment()
    assert "production" not in json.dumps(env)
    assert env["AIRFLOW_HOME"] == str(home.airflow)
    assert env["CSRM_HOME"] == str(home.root)


def test_the_password_is_made_once_and_only_the_owner_reads_it(home: Home) -> None:
    first = home.password()
    home.prepare()
    assert home.password() == first
    assert len(first) >= 16
    assert home.password_file.stat().st_mode & 0o077 == 0


def test_two_demos_that_start_at_once_choose_different_ports(home: Home) -> None:
    """A server listens only seconds after its port was chosen."""
    other_demo = (
        "import sys; from csrm_tasks.demo.runner.home import Home; h = Home.of('mini').at(); "
        "print(h.port, h.mlflow_port, flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", other_demo], cwd=ROOT, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as other:  # fmt: skip
        assert other.stdin is not None
        assert other.stdout is not None
        theirs = set(other.stdout.readline().split())
        ours = home.at()
        other.stdin.close()
    assert len(theirs) == 2
    assert theirs.isdisjoint({str(ours.port), str(ours.mlflow_port)})


def land(home: Home, *days: str) -> None:
    for day in days:
        (home.settings.landing / "mini" / day / "zh-TW").mkdir(parents=True)


def test_the_plan_is_read_off_the_landing_zone(home: Home) -> None:
    land(home, "2026-01-04", "2026-01-05", "2026-01-12")
    stages = plan("mini", home.settings)
    assert [s.title for s in stages] == [
        "ingest 2026-01-04", "cold start 2026-01-04", "ingest 2026-01-05", "ingest 2026-01-12",
        "retrain 2026-W03",
    ]  # fmt: skip
    assert stages[1].conf == {"until": "2026-01-04"}
    first, cold, second, third = (s.run_id for s in stages[:4])
    waits = [(), (first,), (first,), (second,), (cold, third)]  # nights go on beside the cold start
    assert [s.after for s in stages] == waits
    assert stages == plan("mini", home.settings)


def test_a_plan_needs_landed_days(home: Home) -> None:
    with pytest.raises(CsrmError, match="no day folder"):
        plan("mini", home.settings)


def test_what_no_step_runs_is_no_other_run(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    land(home, "2026-01-04")
    before = plan("mini", home.settings)
    steps = all_steps()
    known = {name: closure_of(step.function) for name, step in steps.items()}
    assert not [n for n, c in known.items() if any(".cost." in f"{m}." for m in c.modules)]

    def edited(function: Callable[..., Any], kept: Path) -> str:
        same = code_digest(function, kept)
        return "edited" if function is steps["train_towers"].function else same

    monkeypatch.setattr("csrm_tasks.demo.runner.plan.code_digest", edited)
    assert {s.run_id for s in plan("mini", home.settings)}.isdisjoint(s.run_id for s in before)


def test_a_changed_market_file_is_another_run(home: Home, tmp_path: Path) -> None:
    land(home, "2026-01-04")
    text = (home.settings.markets / "mini.yaml").read_text(encoding="utf-8")
    (tmp_path / "mini.yaml").write_text(text.replace("seed: 0", "seed: 1"))
    other = load_settings({"CSRM_HOME": str(home.root), "CSRM_MARKETS": str(tmp_path)})
    ids = [{s.run_id for s in plan("mini", one)} for one in (home.settings, other)]
    assert ids[0].isdisjoint(ids[1])


def test_finished_only_when_every_run_has_succeeded(home: Home, tmp_path: Path) -> None:
    land(home, "2026-01-04")
    stages = plan("mini", home.settings)
    path = tmp_path / "airflow.db"
    assert not finished(stages, path)
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE dag_run (dag_id TEXT, run_id TEXT, state TEXT)")
        rows = [(s.dag_id, s.run_id, "success") for s in stages]
        db.executemany("INSERT INTO dag_run VALUES (?, ?, ?)", rows[:-1])
        db.execute("INSERT INTO dag_run VALUES (?, ?, 'failed')", rows[-1][:2])
    assert not finished(stages, path)
    with sqlite3.connect(path) as db:
        db.execute("UPDATE dag_run SET state = 'success'")
    assert finished(stages, path)


def task(name: str, state: str | None, index: int = -1) -> dict:
    moment = "2026-01-04T00:00:00Z"
    return {
        "task_id": name,
        "map_index": index,
        "try_number": 2,
        "state": state,
        "start_date": moment,
        "end_date": moment,
        "duration": 1.5,
    }


def test_without_a_terminal_each_event_is_one_line_once(home: Home) -> None:
    land(home, "2026-01-04")
    stage = plan("mini", home.settings)[0]
    console = Console(record=True, width=200, force_terminal=False, quiet=False)
    with console.capture() as out, RunProgress(console, [stage]) as progress:
        for states in (("success", "running"), ("success", "running"), ("success", "failed")):
            tasks = [task(n, s) for n, s in zip(("land", "validate"), states, strict=True)]
            progress.update(stage, RunState("running", tasks))
    lines = out.get().splitlines()
    assert [line.split()[-3:] for line in lines] == [
        ["success", "1.5", "s"],
        ["failed", "1.5", "s"],
    ]


def test_mapped_tasks_are_told_one_by_one_and_a_failed_ones_own_log_is_read(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    land(home, "2026-01-04")
    stage = plan("mini", home.settings)[0]
    console = Console(width=200, force_terminal=False)
    states = ("success", "success", "failed")
    state = RunState("failed", [task("score_shards", s, i) for i, s in enumerate(states)])
    api = AirflowApi("http://nowhere", "", "")
    asked = []

    def request(method: str, path: str) -> dict:
        asked.append(path)
        return {"content": ["last words"]}

    monkeypatch.setattr(api, "request", request)
    monkeypatch.setattr(api, "run_state", lambda *_: state.state)
    monkeypatch.setattr(api, "state", lambda *_: state)
    with console.capture() as out, RunProgress(console, [stage]) as progress:
        with pytest.raises(CsrmError, match=r"task score_shards\[2\] failed"):
            Watch(api, stage, progress).look()
        progress.update(stage, state)
    lines = out.get().splitlines()
    assert [line.split()[4] for line in lines[:3]] == [f"score_shards[{i}]" for i in range(3)]
    assert [line.strip() for line in lines[3:]] == ["last words"]
    assert [path.rsplit("/", 1)[1] for path in asked] == ["2?map_index=2"]


class FakeApi:
    """An Airflow whose runs end after so many looks; it notes what was running when."""

    def __init__(self, looks: dict[str, int]) -> None:
        self.left = {}
        self.looks = looks
        self.started: list[tuple[str, set[str]]] = []

    def has_dag(self, dag_id: str) -> bool:
        return True

    def unpause(self, dag_id: str) -> None:
        pass

    def end_others(self, dag_id: str, runs: set[str]) -> None:
        assert not self.started  # before anything is started

    def trigger(self, dag_id: str, run_id: str, conf: dict) -> str:
        self.started.append((run_id, {r for r, n in self.left.items() if n > 0}))
        self.left[run_id] = next(n for part, n in self.looks.items() if part in run_id)
        return "new"

    def run_state(self, dag_id: str, run_id: str) -> str:
        self.left[run_id] -= 1
        return "success" if self.left[run_id] <= 0 else "running"

    def state(self, dag_id: str, run_id: str) -> RunState:
        return RunState("success" if self.left[run_id] <= 0 else "running", [task("t", "success")])


def test_nights_run_beside_the_cold_start_and_the_retraining_after_both(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "POLL_SECONDS", 0.0)
    land(home, "2026-01-04", "2026-01-05", "2026-01-12")
    stages = plan("mini", home.settings)
    first, cold, second, third, retrain = (s.run_id for s in stages)
    api = FakeApi({"ingest": 2, "cold": 30, "retrain": 1})
    with Processes(home.processes, home.logs, {}) as processes:
        run_stages(api, processes, stages, Console(quiet=True))  # type: ignore[arg-type]
    assert api.started == [
        (first, set()), (cold, set()), (second, {cold}), (third, {cold}), (retrain, set()),
    ]  # fmt: skip


def test_what_an_earlier_run_has_done_is_one_line(home: Home) -> None:
    land(home, "2026-01-04")
    stage = plan("mini", home.settings)[0]
    console = Console(width=200, force_terminal=False)
    with console.capture() as out, RunProgress(console, [stage]) as progress:
        state = RunState("running", [task("land", "success"), task("validate", "running")])
        progress.known(stage, state, "found")
        progress.update(stage, state)
        progress.update(
            stage, RunState("success", [task(n, "success") for n in ("land", "validate")])
        )
    first, second = out.get().splitlines()
    assert first == "ingest 2026-01-04: found, 1/2 tasks were done before"
    assert "validate" in second


def test_on_a_terminal_the_table_shows_what_is_running(home: Home) -> None:
    land(home, "2026-01-04")
    stage = plan("mini", home.settings)[0]
    console = Console(width=120, force_terminal=True)
    with console.capture() as out, RunProgress(console, [stage]) as progress:
        tasks = [task("land", "success"), task("validate", "running"), task("store", None)]
        progress.update(stage, RunState("running", tasks))
    assert "1/3" in out.get()
    assert "validate" in out.get()


def test_a_log_entry_shows_our_frames_and_the_error() -> None:
    frames = [
        {"filename": f, "lineno": 7, "name": "run"} for f in ("site-packages/x.py", "steps.py")
    ]
    entry = {
        "event": "Task failed with exception",
        "error_detail": [{"exc_type": "DataError", "exc_value": "no row", "frames": frames}],
    }
    assert _lines(entry) == [
        "Task failed with exception",
        "  steps.py:7 in run",
        "  DataError: no row",
    ]
    assert _lines({"event": "::group::Pre Execute"}) == []


def test_only_a_component_that_forks_tasks_preloads(monkeypatch: pytest.MonkeyPatch) -> None:
    assert all(find_spec(name.split(".")[0]) for name in MODULES)
    monkeypatch.setattr("csrm_tasks.preload.MODULES", ("colorsys", "not_installed_here", "wave"))
    monkeypatch.setattr("csrm_tasks.preload.OWN", ())
    monkeypatch.setattr("os.register_at_fork", lambda **_: None)
    for component in ("api-server", "dag-processor", "tasks", "celery"):
        assert preload(["airflow", component]) == []
    for words in (["scheduler", "--skip-serve-logs"], ["celery", "worker"]):
        assert preload(["airflow", *words]) == ["colorsys", "wave"]


FORKS = """
import os, sys
from pathlib import Path
from csrm_tasks import preload
preload.MODULES = ()
assert preload.preload(["airflow", "scheduler"]) == [*preload.OWN]
def in_a_fork():
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        inherited = "csrm_tasks.markets" in sys.modules
        from csrm_tasks import options
        print(inherited, getattr(options, "ADDED", None), flush=True)
        os._exit(0)
    os.waitpid(pid, 0)
print(sorted(m for m in sys.modules if m.startswith("csrm_tasks.steps.")))
in_a_fork()
with Path(preload.HERE, "options.py").open("a") as f:
    f.write("ADDED = 1\\n")
in_a_fork()
sys.modules["csrm_wiring"] = sys
in_a_fork()
"""


def test_a_fork_has_our_code_as_it_lies_there_unless_its_task_is_at_work(tmp_path: Path) -> None:
    """Its digest, taken in the task, is part of the fingerprint."""
    shutil.copytree(ROOT / "csrm_tasks", tmp_path / "csrm_tasks")
    done = subprocess.run(
        [sys.executable, "-c", FORKS], cwd=tmp_path, capture_output=True, text=True, check=True,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    loaded, *forks = done.stdout.splitlines()
    assert forks == ["True None", "False 1", "True None"]
    steps = {f"csrm_tasks.steps.{module}" for module in STEP_MODULES}
    assert not steps & set(ast.literal_eval(loaded))  # no step's own module


def test_the_settings_file_loads_nothing_where_no_task_is_forked() -> None:
    script = f"{PRELOAD}\nprint([m for m in sys.modules if m.startswith('csrm_tasks')])"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "['csrm_tasks', 'csrm_tasks.preload']\n"


def test_unfinished_runs_of_an_older_version_are_ended_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    api = AirflowApi("http://localhost", "u", "p")
    ended: list[str] = []

    def request(method: str, path: str, body: Any = None, *, none_for: int = 0) -> Any:
        if method == "PATCH":
            assert body == {"state": "failed"}
            ended.append(path)
            return {}
        assert "state=running" in path
        return None if "new_dag" in path else {"dag_runs": [{"dag_run_id": r} for r in "abc"]}

    monkeypatch.setattr(api, "request", request)
    api.end_others("dag", {"b", "z"})
    api.end_others("new_dag", {"b"})  # which Airflow has not parsed yet
    assert ended == ["/dags/dag/dagRuns/a", "/dags/dag/dagRuns/c"]


def test_a_file_in_anothers_place_is_noticed_though_size_and_time_are_its(tmp_path: Path) -> None:
    path, other = tmp_path / "a.py", tmp_path / "b.py"
    path.write_text("A = 1\n")
    other.write_text("A = 2\n")
    before, about = stamp(path), path.stat()
    assert stamp(path) == before
    os.utime(other, ns=(about.st_atime_ns, about.st_mtime_ns))
    other.replace(path)
    assert path.stat().st_mtime_ns == about.st_mtime_ns and path.stat().st_size == about.st_size
    assert stamp(path) != before
    path.unlink()
    assert stamp(path) != before
