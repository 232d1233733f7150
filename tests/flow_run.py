"""Run DAGs of a market through Airflow's ``dag.test()``, in a process of its own.

``python flow_run.py DAG_FOLDER RUNS`` where RUNS is JSON: a list of [dag_id, conf]. Prints one
line ``FLOW`` + JSON: per run its state, per task (``task[0]``, … where mapped) its state and what
it returned, what mapped tasks are called, and what failed tasks noted. What the steps executed is
written to ``$AIRFLOW_HOME/executed.json``, which keys of the market's file they read to
``read.json``.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from airflow.dag_processing.dagbag import BundleDagBag
from airflow.models.taskinstance import TaskInstance
from airflow.models.xcom import XComModel
from airflow.utils.db import initdb
from airflow.utils.session import create_session
from sqlalchemy import select

from tests.executed import Recorder

CAUSE = "csrm_cause"  # of plugins/csrm_notify.py


def named(one: Any) -> str:
    """Return the task's id, with its place among the tasks that were mapped from it."""
    return one.task_id if one.map_index < 0 else f"{one.task_id}[{one.map_index}]"


def params_of(dag: Any) -> Iterator[Any]:
    """Yield the parameters of a DAG and of its tasks; a deep copy of the DAG would share them."""
    for held in (dag.params, *(task.params for task in dag.tasks)):
        yield from (held.get_param(name) for name in held)


def main(folder: str, runs: list[tuple[str, dict[str, Any]]]) -> None:
    """Run ``runs`` one after another; stop at the first that fails."""
    initdb()
    bag = BundleDagBag(folder, bundle_path=folder, bundle_name="dags-folder")
    assert not bag.import_errors, bag.import_errors
    defaults = [(param, param.value) for dag in bag.dags.values() for param in params_of(dag)]
    recorder = Recorder()
    recorder.record_all()
    found = []
    for dag_id, conf in runs:
        for param, value in defaults:  # Airflow leaves what a run was given, for the next to find
            param.value = value
        run = bag.dags[dag_id].test(run_conf=conf)
        with create_session() as session:
            rows = session.scalars(XComModel.get_many(run_id=run.run_id, dag_ids=dag_id)).all()
            instances = session.scalars(
                select(TaskInstance).where(TaskInstance.run_id == run.run_id)
            ).all()
            returned = {
                named(r): XComModel.deserialize_value(r) for r in rows if r.key == "return_value"
            }
            noted = {named(r): XComModel.deserialize_value(r) for r in rows if r.key == CAUSE}
        tasks = {named(t): [str(t.state), returned.get(named(t))] for t in instances}
        called = {named(t): t.rendered_map_index for t in instances if t.map_index >= 0}
        about = {"dag": dag_id, "state": str(run.state), "noted": noted}
        found.append(about | {"tasks": tasks, "called": called})
        if str(run.state) != "success":
            break
    for name, by_step in (("executed", recorder.code), ("read", recorder.keys)):
        text = json.dumps({step: sorted(seen) for step, seen in by_step.items()})
        Path(os.environ["AIRFLOW_HOME"], f"{name}.json").write_text(text)
    print("FLOW" + json.dumps(found), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
