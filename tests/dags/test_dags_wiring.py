"""Windows, references and the link to MLflow: what DAG and plugin files compute themselves."""

from __future__ import annotations

import importlib
import json
import threading
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from urllib.parse import parse_qs, urlparse

import pytest

from csrm_tasks import tracking
from csrm_tasks.errors import AwayError, ConfigError, RefusedError
from csrm_tasks.release import ledger, manage
from csrm_tasks.sections import Rollout, Schedule, Step
from csrm_tasks.settings import Settings
from csrm_tasks.steps import run_step
from tests.release_fixtures import MARKET, market, publish
from tests.release_world import World

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.airflow
REF = "mini/train_llm/0123456789abcdef0123"


@pytest.fixture(scope="module")
def modules(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, ModuleType]]:
    """Import the DAG folder's and the plugin folder's module, in an Airflow home of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AIRFLOW_HOME", str(tmp_path_factory.mktemp("airflow")))
        patch.syspath_prepend(str(ROOT / "dags"))
        patch.syspath_prepend(str(ROOT / "plugins"))
        yield {
            name: importlib.import_module(name)
            for name in ("csrm_wiring", "csrm_approval", "csrm_links")
        }


@pytest.fixture
def wiring(modules: dict[str, ModuleType]) -> Any:
    return modules["csrm_wiring"]


@pytest.fixture
def csrm_links(modules: dict[str, ModuleType]) -> Any:
    return modules["csrm_links"]


@pytest.mark.parametrize(
    ("connection", "url"),
    [
        ({"host": "https://llm.example/v1"}, "https://llm.example/v1"),
        ({"host": "llm.example"}, "https://llm.example/v1"),
        ({"host": "llm.example", "schema": "http", "port": 8000}, "http://llm.example:8000/v1"),
        ({"host": "http://llm.example", "port": 8000}, "http://llm.example:8000/v1"),
        ({"host": "https://:other@llm.example/v1"}, "https://llm.example/v1"),
    ],
)
def test_a_connection_becomes_the_environment_of_the_step(
    wiring: Any, connection: dict[str, Any], url: str
) -> None:
    empty = dict.fromkeys(("conn_type", "host", "schema", "port", "login", "password"))
    found = SimpleNamespace(**(empty | connection | {"password": "secret"}))
    assert wiring.endpoint_of(found) == {"CSRM_LLM_URL": url, "CSRM_LLM_TOKEN": "secret"}
    open_to_all = SimpleNamespace(**(empty | connection))
    inside = "other" if "@" in connection["host"] else ""
    assert wiring.endpoint_of(open_to_all) == {"CSRM_LLM_URL": url, "CSRM_LLM_TOKEN": inside}


@pytest.mark.parametrize(
    ("uri", "url", "token"),
    [
        ("https://:a-token@llm.example/v1", "https://llm.example/v1", "a-token"),
        ("http://llm.example:8000", "http://llm.example:8000/v1", ""),
        ("http://:a%2Ftoken@llm.example:8000/a/v2/", "http://llm.example:8000/a/v2", "a/token"),
        ("http://llm.example:8443/https", "https://llm.example:8443/v1", ""),  # as its HTTP hook
        ("openai://:a-token@llm.example/openai/v1", "https://llm.example/openai/v1", "a-token"),
        ("generic://:a-token@https%3A%2F%2Fllm.example%2Fv1", "https://llm.example/v1", "a-token"),
        ("http://[::1]:8000/v1", "http://[::1]:8000/v1", ""),
    ],
)
def test_a_connection_given_as_a_uri_is_read_as_it_was_written(
    wiring: Any, uri: str, url: str, token: str
) -> None:
    from airflow.sdk import Connection

    found = Connection.from_uri(uri, conn_id="llm")
    assert wiring.endpoint_of(found) == {"CSRM_LLM_URL": url, "CSRM_LLM_TOKEN": token}


def test_a_connection_without_a_host_is_refused_without_its_token(wiring: Any) -> None:
    from airflow.sdk import Connection

    with pytest.raises(ConfigError, match="no host") as caught:
        wiring.endpoint_of(Connection.from_uri("https://:a-token@/v1", conn_id="llm"))
    assert "a-token" not in str(caught.value)


def run_from(start: datetime | None) -> Any:
    return SimpleNamespace(data_interval_start=start)


@pytest.mark.parametrize(
    ("start", "day", "sunday"),
    [
        (datetime(2026, 1, 5, 2, tzinfo=UTC), "2026-01-05", "2026-01-11"),  # a Monday
        (datetime(2026, 1, 11, 2, tzinfo=UTC), "2026-01-11", "2026-01-11"),  # a Sunday
        (datetime(2025, 12, 31, 2, tzinfo=UTC), "2025-12-31", "2026-01-04"),  # in 2026-W01
    ],
)
def test_a_scheduled_run_is_for_its_data_interval(
    wiring: Any, start: datetime, day: str, sunday: str
) -> None:
    assert wiring.day_of({"day": None}, run_from(start)) == day
    assert wiring.week_end({"week": None}, run_from(start)) == sunday


def test_a_run_for_a_partition_is_for_its_week(wiring: Any) -> None:
    run = SimpleNamespace(data_interval_start=None, partition_key="2026-01-05 (W02)")
    assert wiring.week_end({"week": None}, run, by_days=True) == "2026-01-11"
    assert wiring.week_end({"week": "2026-W04"}, run, by_days=True) == "2026-01-25"
    by_hand = run_from(datetime(2026, 1, 14, 9, tzinfo=UTC))  # a Wednesday: of a week not over yet
    assert wiring.week_end({"week": None}, by_hand, by_days=True) == "2026-01-11"
    run.partition_key = "W02"
    with pytest.raises(ConfigError, match="partition 'W02' begins with no day"):
        wiring.week_end({"week": None}, run)


@pytest.mark.parametrize(
    ("zone", "start", "day", "sunday"),
    [
        ("Asia/Seoul", datetime(2026, 1, 4, 20, tzinfo=UTC), "2026-01-05", "2026-01-11"),
        ("America/Los_Angeles", datetime(2026, 1, 5, 7, tzinfo=UTC), "2026-01-04", "2026-01-04"),
        # Clocks go forward on the eighth: a night of 23 hours, from five to five.
        ("America/New_York", datetime(2026, 3, 8, 9, tzinfo=UTC), "2026-03-08", "2026-03-08"),
    ],
)
def test_days_and_weeks_are_those_of_the_markets_clocks(
    wiring: Any, zone: str, start: datetime, day: str, sunday: str
) -> None:
    assert wiring.day_of({"day": None}, run_from(start), zone) == day
    assert wiring.week_end({"week": None}, run_from(start), zone) == sunday


def test_a_night_at_five_in_the_market_takes_yesterday_in_the_market(wiring: Any) -> None:
    seoul = Schedule(timezone="Asia/Seoul", ingest="0 5 * * *")
    there = market().model_copy(update={"schedule": seoul})
    dag = wiring.market_dag(
        "night", there, lambda m: None, doc="", schedule=seoul.ingest, params={}
    )
    assert dag.timetable.timezone == "Asia/Seoul"
    night = datetime(2026, 1, 5, 20, tzinfo=UTC)  # five in the morning of the sixth
    run = run_from(night - timedelta(days=1))
    assert dag.user_defined_macros["day_of"]({"day": None}, run) == "2026-01-05"


def test_a_zone_that_nobody_knows_is_refused_at_load() -> None:
    with pytest.raises(ValueError, match="'Asia/Soul' is no time zone; give an IANA name"):
        Schedule(timezone="Asia/Soul")


def test_a_parameter_names_the_window_whatever_the_interval(wiring: Any) -> None:
    run = run_from(datetime(2030, 1, 1, tzinfo=UTC))
    assert wiring.day_of({"day": "2026-01-05"}, run) == "2026-01-05"
    assert wiring.week_end({"week": "2026-W02"}, run) == "2026-01-11"
    assert wiring.week_end({"week": "2020-W53"}, run) == "2021-01-03"


def test_a_run_by_hand_needs_its_window(wiring: Any) -> None:
    with pytest.raises(ConfigError, match="'day'"):
        wiring.day_of({"day": None}, run_from(None))
    with pytest.raises(ConfigError, match="no week '2025-W53'"):  # a year without a week 53
        wiring.week_end({"week": "2025-W53"}, run_from(None))
    with pytest.raises(ConfigError, match="'2026-02-30' is no day"):
        wiring.day_of({"day": "2026-02-30"}, run_from(None))


def test_references_are_rendered_as_run_step_takes_them(wiring: Any) -> None:
    assert wiring.reference(REF) == REF
    assert wiring.reference([REF, {"of": REF, "fact": "llm"}]) == [REF, f"{REF}#llm"]
    assert wiring.reference(None) is None


class FakeMlflow(BaseHTTPRequestHandler):
    """Answers the two calls of MLflow's REST interface that the link makes."""

    def do_GET(self) -> None:
        name = parse_qs(urlparse(self.path).query)["experiment_name"][0]
        found = {"experiment": {"experiment_id": "7"}} if name == "csrm/mini" else {}
        self.answer(200 if found else 404, found)

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        known = asked["experiment_ids"] == ["7"] and REF in asked["filter"]
        self.answer(200, {"runs": [{"info": {"run_id": "abc"}}]} if known else {})

    def answer(self, code: int, body: dict[str, Any]) -> None:
        self.send_response(code)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def log_message(self, *_: Any) -> None:
        """Stay quiet."""


@pytest.fixture
def mlflow_url() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), FakeMlflow)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_link_leads_to_the_run_of_the_returned_reference(
    csrm_links: Any, mlflow_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CSRM_MLFLOW_UI", mlflow_url + "/")
    returned = {"train": REF, "other": "other/train_llm/0", "is_approved": None}
    monkeypatch.setattr(csrm_links, "returned_reference", returned.get)
    link = csrm_links.MlflowRunLink()
    page = f"{mlflow_url}/#/experiments/7/runs/abc"
    assert link.get_link(None, ti_key="train") == page
    assert link.get_link(None, ti_key="other") == ""
    assert link.get_link(None, ti_key="is_approved") == ""


def test_without_an_answering_mlflow_there_is_no_link(
    csrm_links: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(csrm_links, "returned_reference", lambda _: REF)
    monkeypatch.setenv("CSRM_MLFLOW_UI", "http://127.0.0.1:9")
    assert csrm_links.MlflowRunLink().get_link(None, ti_key="train") == ""
    monkeypatch.delenv("CSRM_MLFLOW_UI")
    assert csrm_links.MlflowRunLink().get_link(None, ti_key="train") == ""


ANN = {"id": "7", "name": "ann"}


def answered(chosen: list[str], user: dict[str, str] | None) -> Any:
    """Return an answer as Airflow's operator returns it and as an XCom gives it back."""
    from airflow.providers.standard.operators.hitl import HITLOperator
    from airflow.sdk.serde import deserialize, serialize

    asked = HITLOperator(task_id="ask", subject="release?", options=["Approve", "Reject"])
    event = {
        "chosen_options": chosen, "params_input": {}, "responded_at": datetime.now(UTC),
        "responded_by_user": user,
    }  # fmt: skip
    return deserialize(serialize(asked.execute_complete({}, event)))  # type: ignore[typeddict-item]


@pytest.mark.parametrize(
    ("chosen", "user", "approved", "actor"),
    [
        (["Approve"], ANN, True, "ann"),
        (["Reject"], ANN, False, "ann"),
        (["Reject"], None, False, "timeout"),  # nobody answered in time: the default
        (["Approve"], None, False, "timeout"),  # a yes that nobody gave
        ([], ANN, False, "ann"),
    ],
)
def test_only_a_persons_yes_lets_a_release_start(
    modules: dict[str, ModuleType], settings: Settings, monkeypatch: pytest.MonkeyPatch,
    chosen: list[str], user: dict[str, str] | None, approved: bool, actor: str,
) -> None:  # fmt: skip
    config = market(approval="manual", rollout=Rollout(steps=(Step(weight=5),)))
    world = World(settings)
    world.promote(world.release("one"))
    two = world.release("two")
    monkeypatch.setattr(tracking, "client", lambda _: world.api)
    world.at_the_command_line(config, monkeypatch)
    approval: Any = modules["csrm_approval"]

    state = run_step("rollout_state", config, settings=settings)
    assert approval.whether_to_ask.function(state) == "ask"
    wiring: Any = modules["csrm_wiring"]
    asked = wiring.waiting(state)  # what the person is asked names what it is about
    assert f"`{two.id}`. The gate let it pass: " in asked
    answer = answered(chosen, user)
    assert approval.record(state, answer, "run1") is approved
    last = ledger.history(settings, MARKET)[-1]
    assert (last.action, last.actor) == ("approved" if approved else "rejected", actor)

    after = run_step("rollout_state", config, settings=settings)
    if approved:
        assert approval.whether_to_ask.function(after) == "start"
        run_step("rollout_start", config, {"state": after}, settings=settings)
        assert world.doc()["next"] == two.id
        return
    assert approval.whether_to_ask.function(after) is None  # it is not asked about again
    with pytest.raises(RefusedError, match="waits for approval"):  # nor does it start
        run_step("rollout_start", config, {"state": state}, settings=settings)
    assert (world.doc()["next"], world.doc()["stable"] == two.id) == (None, False)
    manage.approve(settings, MARKET, two.id, "bob", "looked again")
    again = run_step("rollout_state", config, settings=settings)
    assert approval.whether_to_ask.function(again) == "start"


def test_while_a_hold_out_is_open_nobody_is_asked_and_a_yes_elsewhere_starts(
    modules: dict[str, ModuleType], settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that waits for an answer would hold up the runs that judge the launched release."""
    plan = Rollout(steps=(Step(weight=5),), holdout=5, holdout_days=3)
    config = market(approval="manual", rollout=plan)
    world = World(settings)
    world.promote(world.release("one"))
    two = world.release("two")
    world.start(two, market(rollout=plan))
    world.settle(world.judgement(), market(rollout=plan))
    opened = world.opened()
    assert opened is not None and opened.launched and world.live() == two.id
    three = world.release("three")
    monkeypatch.setattr(tracking, "client", lambda _: world.api)
    world.at_the_command_line(config, monkeypatch)
    approval: Any = modules["csrm_approval"]
    state = run_step("rollout_state", config, settings=settings)
    facts = approval.facts_of(state)
    assert (facts["open"], facts["candidate"]) == (two.id, three.id)
    assert approval.whether_to_ask.function(state) is None
    first = date.fromisoformat(facts["first_day"])
    under_way = [
        approval.is_under_way.function(state, str(first + timedelta(days=n))) for n in (-1, 0, 1)
    ]
    assert under_way == [False, True, True]  # of the day before nothing can be said
    manage.approve(settings, MARKET, three.id, "bob", "looked at it")
    again = run_step("rollout_state", config, settings=settings)
    assert approval.whether_to_ask.function(again) == "start"


def test_the_short_cuts_go_by_what_was_last_decided(
    modules: dict[str, ModuleType], settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = market(approval="manual")
    world = World(settings)
    made = world.release("one")
    facts = {"verdict": "PASS", "release": made.id, "digest": made.verdict["digest"]}
    gate = publish(settings, "gate", "facts", lambda f: (f / "note").write_text(""), facts)
    monkeypatch.setattr(tracking, "client", lambda _: world.api)
    world.at_the_command_line(config, monkeypatch)
    wiring: Any = modules["csrm_wiring"]
    approval: Any = modules["csrm_approval"]
    state = run_step("rollout_state", config, settings=settings)
    late = {
        "chosen_options": ["Reject"], "responded_by_user": None,
        "responded_at": "2026-01-01T00:00:00+00:00",
    }  # fmt: skip
    assert wiring.is_approved.function(gate.ref) is False
    assert approval.record(state, late, "run1") is False
    manage.approve(settings, MARKET, made.id, "ann", "I was asked")
    assert wiring.is_approved.function(gate.ref) is True
    assert approval.record(state, late, "run1") is True  # its task runs again
    manage.reject(settings, MARKET, made.id, "bob", "not yet")
    assert wiring.is_approved.function(gate.ref) is False
    assert approval.record(state, late, "run1") is False


def test_a_no_in_airflow_that_comes_too_late_fails_in_words(
    modules: dict[str, ModuleType], settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    from airflow.sdk.exceptions import AirflowFailException

    config = market(approval="manual", rollout=Rollout(steps=(Step(weight=5),)))
    world = World(settings)
    world.promote(world.release("one"))
    two = world.release("two")
    monkeypatch.setattr(tracking, "client", lambda _: world.api)
    world.at_the_command_line(config, monkeypatch)
    state = run_step("rollout_state", config, settings=settings)
    manage.approve(settings, MARKET, two.id, "ann", "by command, while Airflow asks")
    run_step("rollout_start", config, {"state": state}, settings=settings)
    answer = answered(["Reject"], {"id": "8", "name": "bob"})
    record: Any = modules["csrm_approval"]
    gives_up = f"at step 0.*--leaving {two.id} --actor NAME --reason WHY"
    with pytest.raises(AirflowFailException, match=gives_up):
        record.record(state, answer, "run1")
    assert world.doc()["next"] == two.id


def test_a_store_that_does_not_answer_is_tried_again_and_a_refusal_is_not(
    wiring: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from airflow.sdk.exceptions import AirflowFailException  # after AIRFLOW_HOME is set

    def raising(error: Exception) -> Any:
        def step(*_: Any, **__: Any) -> str:
            raise error

        return step

    monkeypatch.setattr("csrm_tasks.steps.run_step", raising(AwayError("served now: r")))
    with pytest.raises(AwayError, match="served now"):
        wiring.run.function("promote", MARKET, {}, {})
    monkeypatch.setattr("csrm_tasks.steps.run_step", raising(RefusedError("no")))
    with pytest.raises(AirflowFailException):
        wiring.run.function("promote", MARKET, {}, {})


def test_a_task_that_an_object_store_does_not_let_in_fails_with_what_to_set(
    modules: dict[str, ModuleType], settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    from airflow.sdk.exceptions import AirflowFailException
    from botocore.exceptions import ClientError

    def denied(*_: Any) -> Any:
        raise ClientError({"Error": {"Code": "ExpiredToken", "Message": "secret"}}, "GetObject")

    World(settings).at_the_command_line(market(), monkeypatch)
    monkeypatch.setattr("csrm_tasks.artifacts.ArtifactStore.open", denied)
    wiring, approval = modules["csrm_wiring"], modules["csrm_approval"]
    given = dict.fromkeys(("bundle", "gate", "register"), REF)
    tasks: list[Any] = [
        lambda: wiring.run.function("promote", MARKET, given, {}),
        lambda: wiring.is_approved.function(f"{MARKET}/gate/0"),
        lambda: wiring.is_applied.function(f"{MARKET}/replay/0"),
        lambda: approval.whether_to_ask.function(f"{MARKET}/rollout_state/0"),
    ]
    for task in tasks:
        with pytest.raises(AirflowFailException, match=r"ExpiredToken.*AWS_SESSION_TOKEN") as e:
            task()
        assert "secret" not in str(e.value)
