"""Who is told: by Airflow's own callbacks, deadlines and notifiers, into a real webhook."""

from __future__ import annotations

import asyncio
import importlib
import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from csrm_tasks import tracking
from csrm_tasks.errors import ConfigError, DataError
from csrm_tasks.markets import MarketConfig
from csrm_tasks.sections import Notify, Rollout, Step
from csrm_tasks.settings import Settings
from csrm_tasks.steps import run_step
from tests.dags.test_dags_integrity import MARKETS, ROOT
from tests.notify.sinks import Webhook, serving
from tests.ports import reserve_port
from tests.release_fixtures import MARKET, market
from tests.release_world import World

pytestmark = pytest.mark.airflow
SECRET = "planted-Secret-1"
TOLD = Notify(connection="ops_hook", no_promotion_days=7)


@pytest.fixture(scope="module")
def notify(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AIRFLOW_HOME", str(tmp_path_factory.mktemp("airflow")))
        patch.setenv("AIRFLOW__API__BASE_URL", "https://airflow.example/ui/")
        patch.syspath_prepend(str(ROOT / "dags"))
        patch.syspath_prepend(str(ROOT / "plugins"))
        yield importlib.import_module("csrm_notify")


@pytest.fixture
def hook(monkeypatch: pytest.MonkeyPatch) -> Iterator[Webhook]:
    with serving(Webhook()) as server:
        uri = f"http://:{SECRET}@127.0.0.1:{server.server_port}/in"
        monkeypatch.setenv("AIRFLOW_CONN_OPS_HOOK", uri)
        yield server


@pytest.fixture
def world(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> World:
    world = World(settings)
    world.at_the_command_line(with_notify(), monkeypatch)
    monkeypatch.setattr(tracking, "client", lambda _: world.api)
    return world


def with_notify(approval: str = "auto") -> MarketConfig:
    rollout = Rollout(steps=(Step(weight=5),))
    return market(approval=approval, rollout=rollout).model_copy(update={"notify": TOLD})


class Ti:
    """What Airflow gives to callbacks of a task instance: states of its run, and XComs."""

    dag_id, run_id, task_id = "csrm_ingest__mini", "manual__1", "publish_day"

    def __init__(self, states: dict[str, str], noted: dict[tuple[str, int], Any]) -> None:
        self.states, self.noted = states, noted

    def get_task_states(self, dag_id: str, run_ids: list[str]) -> dict[str, dict[str, str]]:
        return {run: self.states for run in run_ids}

    def xcom_pull(self, task_ids: str, key: str = "return_value", map_indexes: int = -1) -> Any:
        return self.noted.get((task_ids, map_indexes))

    def xcom_push(self, key: str, value: Any) -> None:
        self.noted[key, -1] = value


def context(notify: Any, states: dict[str, str], noted: Any, cleared: int = 0) -> dict[str, Any]:
    known = {"land", "score_shards", "publish_day"}
    doc = "### Night\n\n**A task failed?** Mend the file and clear it.\n**More**: x"
    dag = SimpleNamespace(
        dag_id=Ti.dag_id, doc_md=doc, has_task=lambda name: name in known,
        get_template_env=lambda **_: None,
    )  # fmt: skip
    run = SimpleNamespace(clear_number=cleared, run_type="scheduled")
    return {"dag": dag, "run_id": Ti.run_id, "ti": Ti(states, noted), "dag_run": run}


def test_one_message_tells_of_a_run_with_its_first_cause(
    notify: Any, hook: Webhook, world: World
) -> None:
    noted = {
        ("publish_day", -1): {"at": "2026-01-05T03:00:00+00:00", "error": "later"},
        ("score_shards", 1): {"at": "2026-01-05T02:00:00+00:00", "error": f"row 3, {SECRET}"},
    }
    states = {"land": "success", "score_shards_0": "success", "score_shards_1": "failed",
              "publish_day": "failed", "x": "upstream_failed"}  # fmt: skip
    for _ in range(2):  # Airflow may call twice
        notify.run_failed(context(notify, states, noted), market=MARKET)
    (body,) = hook.bodies
    text = body["text"].splitlines()
    assert text[0] == f"[{MARKET}] csrm_ingest__mini failed in score_shards[1]"
    assert text[1].endswith("task score_shards[1] at 2026-01-05T02:00:00+00:00: row 3, ***")
    assert text[2] == "Failed after it: publish_day"
    assert text[3].startswith("What to do: Mend the file and clear it.")
    link = "https://airflow.example/ui/dags/csrm_ingest__mini/runs/manual__1"
    assert (text[4], body["link"]) == (f"See: {link}", link)
    assert hook.headers[0]["Authorization"] == f"Bearer {SECRET}"
    notify.run_failed(context(notify, states, noted, cleared=1), market=MARKET)
    assert len(hook.bodies) == 2  # it was cleared and failed again


def test_without_what_tasks_noted_the_last_one_that_failed_is_named(
    notify: Any, hook: Webhook, world: World
) -> None:
    given = context(notify, {}, {})
    given["ti"].get_task_states = None
    notify.run_failed(given, market=MARKET)
    del given["ti"]
    notify.run_failed(given | {"run_id": "manual__2"}, market=MARKET)
    assert "task publish_day: its log says why" in hook.bodies[0]["text"]
    assert "No task of it failed by itself" in hook.bodies[1]["text"]


def test_a_task_notes_its_error_in_one_line_and_without_secrets(
    notify: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CSRM_SERVING_TOKEN", SECRET)
    given = context(notify, {}, {})
    for error, said in (
        (DataError(f"row 3:\n{SECRET}"), "row 3: ***"),
        (ValueError("password=abc"), "ValueError: password=***"),
    ):
        notify.note_cause(given | {"exception": error})
        assert given["ti"].noted[notify.CAUSE, -1]["error"] == said
    given["ti"].noted.clear()
    notify.note_cause(given)  # killed: there is no exception
    assert given["ti"].noted == {}


@pytest.mark.parametrize("how", ["missing", "down", "unfit"])
def test_a_connection_that_is_missing_or_down_is_a_line_in_the_log(
    notify: Any, world: World, monkeypatch: pytest.MonkeyPatch, caplog: Any, how: str
) -> None:
    uri = {"down": f"http://:{SECRET}@127.0.0.1:{reserve_port()}/{SECRET}",
           "unfit": f"smtp://me:{SECRET}@h"}.get(how)  # fmt: skip
    if uri:
        monkeypatch.setenv("AIRFLOW_CONN_OPS_HOOK", uri)
    with caplog.at_level(logging.WARNING, "csrm"):
        notify.run_failed(context(notify, {"land": "failed"}, {}), market=MARKET)
        asyncio.run(notify.run_late(MARKET, 4, deadline("running")))
    lines = [r.getMessage() for r in caplog.records if r.name == "csrm"]
    said = {"missing": "nobody was told: ", "down": "ConnectionRefusedError", "unfit": "no sender"}
    assert len(lines) == 2 and all(said[how] in line for line in lines), lines
    assert SECRET not in caplog.text


def deadline(state: str, kind: str = "scheduled") -> dict[str, Any]:
    """What Airflow gives to a deadline's callback."""
    run = {"dag_id": "csrm_ingest__mini", "dag_run_id": "manual__1", "state": state}
    return {"dag_run": run | {"run_type": kind}, "deadline": {"id": "1"}}


def called(path: str, kwargs: dict[str, Any], given: dict[str, Any]) -> list[Any]:
    """Run a callback as the triggerer does."""
    from airflow.triggers.callback import CallbackTrigger

    async def run() -> list[Any]:
        trigger = CallbackTrigger(path, kwargs | {"context": given})
        return [event.payload async for event in trigger.run()]

    return asyncio.run(run())


def test_a_deadline_tells_of_a_run_that_still_runs_and_of_no_other(
    notify: Any, hook: Webhook, world: World
) -> None:
    """As Airflow's triggerer calls it: it keeps the deadline of a run that failed (3.3.2)."""
    given = notify.watched(with_notify(), "csrm_ingest")["deadline"].callback
    for state, kind in (("failed", "scheduled"), ("success", "scheduled"), ("running", "backfill")):
        assert called(given.path, given.kwargs, deadline(state, kind))[-1]["state"] == "success"
    assert hook.bodies == []
    for _ in range(2):
        called(given.path, given.kwargs, deadline("running"))
    (body,) = hook.bodies
    assert body["event"] == "late" and "still running 4 hours after" in body["text"]


def test_a_market_tells_of_what_it_says_and_by_default_of_nothing(notify: Any) -> None:
    watched = notify.watched
    assert watched(market(), "csrm_ingest") == {} and notify.of_tasks(market()) == {}
    assert notify.asking(market()) == []
    config = with_notify("manual")
    keys = {"on_failure_callback", "deadline"}
    assert set(watched(config, "csrm_ingest")) == keys
    assert set(watched(config, "csrm_refresh")) == {*keys, "on_success_callback"}
    hours = {n: watched(config, n)["deadline"].interval / timedelta(hours=1)
             for n in ("csrm_ingest", "csrm_retrain", "csrm_rollout")}  # fmt: skip
    assert hours == {"csrm_ingest": 4, "csrm_retrain": 48, "csrm_rollout": 4 + 72}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["/bin/airflow", "dags", "test", "csrm_ingest__mini"])
        assert set(watched(config, "csrm_ingest")) == {"on_failure_callback"}
    only = config.model_copy(update={"notify": Notify(connection="c", events=("approval",))})
    assert watched(only, "csrm_refresh") == {} and notify.of_tasks(only) == {}
    assert len(notify.asking(only)) == 1


def test_without_the_plugin_folder_a_market_says_what_to_set(
    notify: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits: Any = importlib.import_module("csrm_limits")
    monkeypatch.setitem(sys.modules, "csrm_notify", None)
    with pytest.raises(ConfigError, match="AIRFLOW__CORE__PLUGINS_FOLDER"):
        limits.watched(with_notify(), "csrm_ingest")
    assert limits.watched(market(), "csrm_ingest") == {} and limits.asking(market()) == []


def test_dags_with_callbacks_and_deadlines_can_be_stored_by_airflow(notify: Any) -> None:
    from airflow.serialization.serialized_objects import DagSerialization

    wiring: Any = importlib.import_module("csrm_wiring")
    config = with_notify()

    def build(config: Any) -> None:
        wiring.tasks_of(config)("drill", run="x")

    dag = wiring.market_dag("csrm_drill", config, build, doc="", schedule=None, params={})
    assert dag.get_task("drill").on_failure_callback == [notify.note_cause]
    stored = DagSerialization.to_dict(dag)["dag"]
    assert stored["has_on_failure_callback"] and stored["deadline"]
    assert "has_on_success_callback" not in stored


def test_approvers_are_told_once_what_they_are_asked(
    notify: Any, hook: Webhook, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = with_notify("manual")
    world.promote(world.release("one"))
    two = world.release("two")
    world.at_the_command_line(config, monkeypatch)
    state = run_step("rollout_state", config, settings=world.settings)
    given = context(notify, {}, {("find", -1): state})
    (asked,) = notify.asking(config)
    for _ in range(2):  # the task is tried again
        asked(given)
    (body,) = hook.bodies
    assert body["subject"] == f"[{MARKET}] release {two.id} waits for approval"
    assert "within 72 hours" in body["text"] and two.id in body["text"].splitlines()[2]
    given["ti"].noted.clear()
    asked(given | {"run_id": "another"})  # nothing to read: a line in the log, no failure
    assert len(hook.bodies) == 1


def test_a_live_release_that_grows_old_is_told_of(
    notify: Any, hook: Webhook, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = context(notify, {}, {})
    notify.nothing_promoted(given, market=MARKET)  # nothing is live yet
    world.promote(world.release("one"))
    now = datetime.now(UTC)
    for days in (0, 6, 7, 8, 14):
        monkeypatch.setattr(notify, "_now", lambda days=days: now + timedelta(days=days, hours=1))
        notify.nothing_promoted(given, market=MARKET)
    assert [b["subject"] for b in hook.bodies] == [
        f"[{MARKET}] no promotion for {days} days" for days in (7, 14)
    ]


def test_a_dag_that_fails_in_airflow_tells_once(tmp_path: Path, hook: Webhook) -> None:
    """Through ``dag.test()``: a night without a delivery."""
    text = (MARKETS / "mini.yaml").read_text(encoding="utf-8")
    (tmp_path / "mini.yaml").write_text(f"{text}\nnotify: {{connection: ops_hook}}\n")
    env = {k: v for k, v in os.environ.items() if not k.startswith(("AIRFLOW", "CSRM"))} | {
        "AIRFLOW_HOME": str(tmp_path / "airflow"), "AIRFLOW__CORE__LOAD_EXAMPLES": "false",
        "AIRFLOW__CORE__DAGS_FOLDER": str(ROOT / "dags"), "PYTHONPATH": str(ROOT),
        "AIRFLOW__CORE__PLUGINS_FOLDER": str(ROOT / "plugins"),
        "CSRM_HOME": str(tmp_path / "home"), "CSRM_MARKETS": str(tmp_path),
        "AIRFLOW_CONN_OPS_HOOK": hook.url,
    }  # fmt: skip
    runs = json.dumps([["csrm_ingest__mini", {"day": "2026-01-05"}]])
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests/flow_run.py"), str(ROOT / "dags"), runs],
        env=env, capture_output=True, text=True, check=False,
    )  # fmt: skip
    (line,) = [x for x in done.stdout.splitlines() if x.startswith("FLOW")] or [done.stderr[-3000:]]
    (run,) = json.loads(line.removeprefix("FLOW"))
    assert run["state"] == "failed"
    assert "2026-01-05 does not exist: land the files" in run["noted"]["land"]["error"]
    (body,) = hook.bodies  # dag.test() has no server that a callback could ask for what was noted
    assert body["subject"] == "[mini] csrm_ingest__mini failed in land"
