"""How tasks fail, are tried again and end; what a backfill and a dry run leave alone."""

from __future__ import annotations

import copy
import errno
import importlib
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from pydantic import ValidationError

from csrm_tasks import tracking
from csrm_tasks.errors import (
    AwayError,
    ConfigError,
    CsrmError,
    DataError,
    DeniedError,
    DiskFullError,
    RefusedError,
)
from csrm_tasks.llm.training.train import OutOfMemoryError
from csrm_tasks.release import ledger, routing
from csrm_tasks.sections import Schedule
from csrm_tasks.settings import Settings
from csrm_tasks.steps.faults import Fault, fault_of, wait_after
from tests.release_fixtures import MARKET, market
from tests.release_world import World

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.airflow


@pytest.fixture(scope="module")
def modules(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, ModuleType]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AIRFLOW_HOME", str(tmp_path_factory.mktemp("airflow")))
        patch.syspath_prepend(str(ROOT / "dags"))
        names = ("csrm_wiring", "csrm_faults", "csrm_limits", "csrm_windows")
        yield {name: importlib.import_module(name) for name in names}


def caused(error: Exception, by: BaseException) -> Exception:
    error.__cause__ = by
    return error


class DuckMemory(Exception):
    """As DuckDB calls its own."""


DuckMemory.__name__ = "OutOfMemoryException"

BACK_OFF = [30.0, 180.0, 1080.0, None]
SOON = [10.0, 10.0, None, None]
NEVER = [None, None, None, None]


@pytest.mark.parametrize(
    ("error", "kind", "after"),
    [
        (AwayError("the database does not answer"), Fault.AWAY, BACK_OFF),
        (ConnectionRefusedError("no"), Fault.AWAY, BACK_OFF),
        (TimeoutError("slow"), Fault.AWAY, BACK_OFF),
        (caused(RuntimeError("it gave up"), ConnectionResetError()), Fault.AWAY, BACK_OFF),
        (DiskFullError("no space left"), Fault.AWAY, BACK_OFF),
        (caused(DataError("cannot write"), OSError(errno.ENOSPC, "full")), Fault.AWAY, BACK_OFF),
        (DataError("labels.csv, row 3: grade"), Fault.FINAL, NEVER),
        (ConfigError("gate: margin"), Fault.FINAL, NEVER),
        (RefusedError("the gate said FAIL"), Fault.FINAL, NEVER),
        (DeniedError("set the password"), Fault.FINAL, NEVER),
        (OutOfMemoryError("half of what was asked for"), Fault.FINAL, NEVER),
        (MemoryError(), Fault.MEMORY, NEVER),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), Fault.MEMORY, NEVER),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), Fault.MEMORY, NEVER),
        (DuckMemory("failed to allocate"), Fault.MEMORY, NEVER),
        (RuntimeError("a bug, or a changed file"), Fault.UNKNOWN, SOON),
        (FileNotFoundError(errno.ENOENT, "no such file"), Fault.UNKNOWN, SOON),
    ],
)  # fmt: skip
def test_each_class_of_fault_is_tried_again_in_its_own_way(
    modules: dict[str, ModuleType], error: Exception, kind: Fault, after: list[float | None]
) -> None:
    assert fault_of(error) is kind
    assert [wait_after(error, tries) for tries in (1, 2, 3, 4)] == after
    policy: Any = modules["csrm_faults"].ByFault()
    for tries, seconds in enumerate(after[:3], start=1):  # Airflow asks no more often
        decision = policy.evaluate(error, tries, 3)
        if seconds is None:
            assert decision.action.value == "fail"
        else:
            assert decision.action.value == "retry"
            assert decision.retry_delay == timedelta(seconds=seconds)


def test_a_task_that_takes_too_long_is_tried_once_more(modules: dict[str, ModuleType]) -> None:
    from airflow.sdk.exceptions import AirflowTaskTimeout

    policy: Any = modules["csrm_faults"].ByFault()
    actions = [policy.evaluate(AirflowTaskTimeout("12 h"), n, 3).action.value for n in (1, 2)]
    assert actions == ["retry", "fail"]


def test_what_no_other_try_mends_is_raised_as_final_and_the_rest_as_it_is(
    modules: dict[str, ModuleType],
) -> None:
    from airflow.sdk.exceptions import AirflowFailException

    fails: Any = modules["csrm_faults"].refusals_fail
    for error, said in (
        (DataError("labels.csv, row 3"), "labels.csv, row 3"),
        (MemoryError(), "step score_pairs ran out of memory"),
    ):
        with pytest.raises(AirflowFailException, match=said), fails("score_pairs"):
            raise error
    back: list[Exception] = [AwayError("a"), DiskFullError("b"), RuntimeError("c")]
    for one in back:
        with pytest.raises(type(one)) as caught, fails("score_pairs"):
            raise one
        assert caught.value is one


def run_of(kind: str) -> Any:
    return SimpleNamespace(run_type=SimpleNamespace(value=kind))


def test_only_a_backfill_and_a_dry_run_release_nothing(modules: dict[str, ModuleType]) -> None:
    from airflow.sdk.api.datamodels._generated import DagRunType

    withheld: Any = modules["csrm_windows"].withheld
    for kind in DagRunType:
        run = SimpleNamespace(run_type=kind)
        assert bool(withheld({}, run, market())) == (kind is DagRunType.BACKFILL)
        dry = withheld({"dry_run": True}, run, market())
        assert "dry_run" in dry or kind is DagRunType.BACKFILL
    assert withheld({"dry_run": False}, run_of("manual"), market()) == ""


def rendered(dag: Any, task_id: str, kind: str, **params: object) -> Any:
    """Return a task with what Airflow's own Jinja makes of its arguments, in a run of a kind."""
    task = dag.get_task(task_id)
    given = {"params": params, "dag_run": run_of(kind)}
    return task.render_template(task.op_kwargs["withheld"], given, task.get_template_env(dag))


def test_a_backfilled_week_neither_registers_nor_promotes(
    modules: dict[str, ModuleType], settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tasks as they stand in the DAG, on a release that passed and that nothing holds back."""
    from airflow.sdk.exceptions import AirflowSkipException

    wiring: Any = modules["csrm_wiring"]
    parts: Any = importlib.import_module("csrm_parts")
    config = market(approval="auto")
    world = World(settings)
    made = world.release("one")
    world.at_the_command_line(config, monkeypatch)
    monkeypatch.setattr(tracking, "client", lambda _: world.api)
    release = {"bundle": made.bundle.ref, "gate": made.gate.ref}

    def build(config: Any) -> None:
        task = wiring.tasks_of(config)
        parts.released(task, task("bundle"), task("gate", "judge", stage=2))

    dag = wiring.market_dag("csrm_retrain", config, build, doc="", schedule="0 4 * * 1", params={})
    monkeypatch.setattr(wiring, "note_made", lambda _: None)  # of lineage: there is no task here
    rows = [e.action for e in ledger.history(settings, MARKET)]

    def attempt(task_id: str, kind: str, **params: object) -> str:
        why = rendered(dag, task_id, kind, **params)
        task = dag.get_task(task_id)
        given = {name: release[name] for name in task.op_kwargs["inputs"] if name in release}
        if "register" in task.op_kwargs["inputs"]:
            given["register"] = made.bundle.ref
        return str(task.python_callable(task.op_kwargs["step"], MARKET, given, {}, withheld=why))

    for task_id in ("register", "promote"):
        for kind, params in (("backfill", {}), ("manual", {"dry_run": True})):
            with pytest.raises(AirflowSkipException, match=f"{task_id} is skipped"):
                attempt(task_id, kind, **params)
    assert [e.action for e in ledger.history(settings, MARKET)] == rows
    assert routing.read(settings, MARKET) is None
    attempt("promote", "scheduled", dry_run=False)
    assert world.doc()["stable"] == made.id


@pytest.mark.parametrize("error", [CsrmError, DataError, ConfigError, RefusedError])
def test_no_class_of_refusals_is_ever_tried_again(error: type[CsrmError]) -> None:
    assert wait_after(error("no"), 1) is None


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"owner": "a, b"}, "is no name of an owner"),
        ({"owner": " "}, "is no name of an owner"),
        ({"owner_link": "javascript:alert(1)"}, "is no link; give https"),
        ({"owner_link": "https://me:pw@wiki.example/"}, "is no link"),
        ({"training_pool": "a/b"}, "should match pattern"),
        ({"task_hours": 0}, "greater than 0"),
        ({"training_hours": 1000}, "less than or equal to 720"),
    ],
)
def test_a_schedule_that_airflow_would_not_take_is_refused(
    keys: dict[str, object], said: str
) -> None:
    with pytest.raises(ValidationError, match=said):
        Schedule.model_validate(keys)
    for link in ("https://wiki.example/x", "mailto:ops@shop.example"):
        assert Schedule(owner="search", owner_link=link).owner_link == link


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("DAY", [None, "2026-01-05"], ["2026-02-30", "05.01.2026", "1026-01-05", 20260105]),
        ("UNTIL", ["2028-02-29"], [None, "2026-02-29", "2026-1-5", ""]),
        ("WEEK", [None, "2026-W53"], ["2026-W00", "2026-W54", "2026W05", "W05"]),
        ("DRY_RUN", [True, False], ["maybe", 1, None]),
    ],
)
def test_a_parameter_that_cannot_be_is_refused_before_anything_runs(
    modules: dict[str, ModuleType], name: str, good: list[object], bad: list[object]
) -> None:
    from airflow.sdk.exceptions import ParamValidationError

    param = copy.deepcopy(getattr(modules["csrm_wiring"], name))  # it keeps what it is asked about
    assert param.schema["title"] and param.description
    for value in good:
        assert param.resolve(value) == value
    for value in bad:
        with pytest.raises(ParamValidationError):
            param.resolve(value)
