"""From a task to the MLflow run that its step wrote.

The run carries the task's artifact reference as the tag ``csrm.ref``. The link is worked out when
somebody opens the task's page: one look-up over MLflow's REST interface, at the address that
browsers use too (``CSRM_MLFLOW_UI``), nothing heavy imported.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.error import URLError

from airflow.plugins_manager import AirflowPlugin
from airflow.sdk import BaseOperatorLink

if TYPE_CHECKING:
    from airflow.models.taskinstancekey import TaskInstanceKey
    from airflow.sdk import BaseOperator


class MlflowRunLink(BaseOperatorLink):
    """Button "MLflow run" on every task that returned an artifact reference with a run."""

    name = "MLflow run"

    def get_link(self, operator: BaseOperator, *, ti_key: TaskInstanceKey) -> str:
        """Return the run's page, or "" where there is none (the button is then greyed out)."""
        base = os.environ.get("CSRM_MLFLOW_UI", "").rstrip("/")
        ref = returned_reference(ti_key) if base else None
        return find_run(base, ref) if ref else ""


def returned_reference(ti_key: TaskInstanceKey) -> str | None:
    """Return the ``market/step/fingerprint`` that a task instance returned, if it did."""
    from airflow.models.xcom import XComModel
    from airflow.utils.session import create_session

    with create_session() as session:
        row = session.scalar(
            XComModel.get_many(
                key="return_value",
                run_id=ti_key.run_id,
                dag_ids=ti_key.dag_id,
                task_ids=ti_key.task_id,
                map_indexes=ti_key.map_index,
            )
        )
    value = XComModel.deserialize_value(row) if row is not None else None
    return value if isinstance(value, str) and value.count("/") == 2 else None


def find_run(base: str, ref: str) -> str:
    """Return the page of the run tagged with ``ref`` on the MLflow server at ``base``, or ""."""
    from csrm_tasks.board.registry import call

    name = f"csrm/{ref.split('/')[0]}"
    where = {"filter": f"tags.`csrm.ref` = '{ref}'", "max_results": 1}
    try:
        found = call(f"{base}/api/2.0/mlflow/experiments/get-by-name?experiment_name={name}")
        experiment = found["experiment"]["experiment_id"]
        body = json.dumps({"experiment_ids": [experiment], **where}).encode()
        runs = call(f"{base}/api/2.0/mlflow/runs/search", body).get("runs", [])
    except (URLError, TimeoutError, KeyError, ValueError):
        return ""
    return f"{base}/#/experiments/{experiment}/runs/{runs[0]['info']['run_id']}" if runs else ""


class CsrmLinks(AirflowPlugin):
    """Registers the link for every operator."""

    name = "csrm_links"
    global_operator_extra_links: ClassVar[list[Any]] = [MlflowRunLink()]
