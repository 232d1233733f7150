"""The DAG of a study: seeds are mapped, the report comes after all of them."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.dags.test_dags_integrity import MARKETS, ROOT, load

pytestmark = pytest.mark.airflow


@pytest.fixture(scope="module")
def dag() -> dict[str, Any]:
    found = load(MARKETS)
    one: dict[str, Any] = found["dags"]["csrm_study__mini"]
    return one


@pytest.fixture(scope="module")
def module(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AIRFLOW_HOME", str(tmp_path_factory.mktemp("airflow")))
        patch.setenv("CSRM_MARKETS", str(MARKETS))
        patch.syspath_prepend(str(ROOT / "dags"))
        yield importlib.import_module("csrm_study")


def test_each_seed_is_a_task_before_the_report(dag: dict[str, Any]) -> None:
    tasks = dag["tasks"]
    assert tasks["list_seeds"]["after"] == ["study_seed"]
    assert tasks["study_seed"]["after"] == ["report"] and tasks["study_seed"]["shards"]
    assert "seed" in tasks["study_seed"]["named"]
    assert tasks["study_seed"]["hours"] > tasks["report"]["hours"]  # as long as a training
    assert dag["params"] == {"seeds": 7, "first": 10, "only": None}
    assert not any(task["withheld"] for task in tasks.values())  # it releases nothing


def test_a_task_runs_the_parts_of_its_seed(
    module: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[object, ...]] = []
    monkeypatch.setattr("csrm_tasks.demo.paper.page.reported", lambda *a: told.append(a))
    monkeypatch.setattr("csrm_tasks.demo.paper.page.written", lambda *a: Path("page.html"))
    assert module.list_seeds.function("10", "3", "") == [10, 11, 12]
    module.study_seed.function(seed=11, market="mini", first="10", only="")
    module.study_seed.function(seed=12, market="mini", first="10", only="ladder,distil")
    assert told == [("mini", 10, [11], None), ("mini", 10, [12], "ladder,distil")]
    assert module.report.function("mini", "10") == "page.html"
