"""Run DAGs of a market through Airflow's ``dag.test()``, in a process of its own.

``python flow_run.py DAG_FOLDER RUNS`` where RUNS is JSON: a list of [dag_id, conf]. Prints one
line ``FLOW`` + JSON: per run its state, and per task its state and what it returned.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from airflow.dag_processing.dagbag import BundleDagBag
from airflow.models.taskinstance import TaskInstance
from airflow.models.xcom import XComModel
from airflow.utils.db import initdb
from airflow.utils.session import create_session
from sqlalchemy import select


def main(folder: str, runs: list[tuple[str, dict[str, Any]]]) -> None:
    """Run ``runs`` one after another; stop at the first that fails."""
    initdb()
    bag = BundleDagBag(folder, bundle_path=folder, bundle_name="dags-folder")
    assert not bag.import_errors, bag.import_errors
    found = []
    for dag_id, conf in runs:
        run = bag.dags[dag_id].test(run_conf=conf)
        with create_session() as session:
            rows = session.scalars(XComModel.get_many(run_id=run.run_id, dag_ids=dag_id)).all()
            instances = session.scalars(
                select(TaskInstance).where(TaskInstance.run_id == run.run_id)
            ).all()
            returned = {
                r.task_id: XComModel.deserialize_value(r) for r in rows if r.key == "return_value"
            }
        tasks = {t.task_id: [str(t.state), returned.get(t.task_id)] for t in instances}
        found.append({"dag": dag_id, "state": str(run.state), "tasks": tasks})
        if str(run.state) != "success":
            break
    print("FLOW" + json.dumps(found), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
