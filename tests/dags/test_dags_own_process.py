"""What a task's own process loads: its market's DAG, with its own task as the scheduler has it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.dags.test_dags_integrity import MARKETS, ROOT

pytestmark = pytest.mark.airflow
# As Airflow's task runner parses a file: for one task of one DAG, or (empty) for all.
LOAD = """
import json, sys
from airflow.dag_processing.dagbag import BundleDagBag
from airflow.sdk.definitions._internal.dag_parsing_context import _airflow_parsing_context_manager
from airflow.serialization.serialized_objects import DagSerialization
folder, name, dag_id, task_id = sys.argv[1:]
file = f"{folder}/{name}"
with _airflow_parsing_context_manager(dag_id=dag_id or None, task_id=task_id or None):
    bag = BundleDagBag(file, bundle_path=folder, bundle_name="dags", safe_mode=False)
def tasks(dag):
    found = DagSerialization.to_dict(dag)["dag"]["tasks"]
    return {one["__var"]["task_id"]: one["__var"] for one in found}
print("LOADED" + json.dumps({
    "errors": bag.import_errors,
    "dags": {name: tasks(dag) for name, dag in bag.dags.items()},
}))
"""


def load(file: str, markets: Path, home: Path, dag_id: str = "", task_id: str = "") -> Any:
    """Load a DAG file in a fresh process."""
    env = os.environ | {
        "AIRFLOW_HOME": str(home), "CSRM_MARKETS": str(markets), "PYTHONPATH": str(ROOT),
        "AIRFLOW__CORE__DAGS_FOLDER": str(ROOT / "dags"),
    }  # fmt: skip
    command = [sys.executable, "-c", LOAD, str(ROOT / "dags"), file, dag_id, task_id]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    line = next((x for x in done.stdout.splitlines() if x.startswith("LOADED")), None)
    assert line is not None, done.stderr[-3000:]
    found = json.loads(line.removeprefix("LOADED"))
    assert found["errors"] == {}
    return found


@pytest.fixture(name="markets")
def two_markets(tmp_path: Path) -> Path:
    """A folder with two markets."""
    folder = tmp_path / "markets"
    folder.mkdir()
    text = (MARKETS / "mini.yaml").read_text(encoding="utf-8")
    for name in ("mini", "other"):
        copy = text.replace("market: mini", f"market: {name}")
        (folder / f"{name}.yaml").write_text(copy, encoding="utf-8")
    return folder


@pytest.mark.parametrize("task_id", ["train_llm_stage2", "score_pseudo_shards", "is_approved"])
def test_a_tasks_process_has_its_task_as_the_scheduler_has_it(
    markets: Path, tmp_path: Path, task_id: str
) -> None:
    dag_id = "csrm_retrain__mini"
    all_of_them = load("csrm_retrain.py", markets, tmp_path / "home")["dags"]
    assert set(all_of_them) == {"csrm_retrain__mini", "csrm_retrain__other"}
    (markets / "other.yaml").write_text("no market", encoding="utf-8")  # which nobody reads
    own = load("csrm_retrain.py", markets, tmp_path / "home", dag_id, task_id)["dags"]
    assert set(own) == {dag_id}
    assert own[dag_id][task_id] == all_of_them[dag_id][task_id]
    assert set(own[dag_id]) == set(all_of_them[dag_id])
    paged = {name for name, task in own[dag_id].items() if "**By hand**" in json.dumps(task)}
    assert paged == {task_id} - {"is_approved"}  # which runs no step


def test_a_dag_that_is_no_markets_has_all_markets(markets: Path, tmp_path: Path) -> None:
    found = load("csrm_retrain.py", markets, tmp_path / "home", "somebodys__dag", "task")["dags"]
    assert set(found) == {"csrm_retrain__mini", "csrm_retrain__other"}
