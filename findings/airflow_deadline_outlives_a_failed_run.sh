#!/usr/bin/env bash
# What: Airflow drops the deadline of a run that succeeds in time, and keeps that of a run that
# fails: hours after the failure the scheduler calls the DeadlineAlert's callback for it, with the
# run's state "failed". So a deadline neither fires on a failure nor leaves a failed run alone.
# Version: apache-airflow-core of the pin below (3.3.2).
# Why it matters: who has a failure callback and a deadline is told twice of one night, the second
# time that it is late; the deadline's callback has to look at the run's state itself.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q "apache-airflow-core==3.3.2" "apache-airflow-task-sdk==1.3.2" \
  "apache-airflow-providers-standard==1.21.0" "fastapi==0.136.3"
mkdir "$work/dags"
cat >"$work/dags/nights.py" <<'PY'
from datetime import datetime, timedelta

from airflow.sdk import DAG, AsyncCallback, DeadlineAlert, DeadlineReference, task

for name, ends_well in (("good", True), ("bad", False)):
    alert = DeadlineAlert(
        reference=DeadlineReference.DAGRUN_LOGICAL_DATE,
        interval=timedelta(hours=4),
        callback=AsyncCallback("somewhere.tell"),
    )
    with DAG(name, schedule=None, start_date=datetime(2025, 1, 1), deadline=alert) as dag:

        @task(retries=0)
        def night(ends_well: bool) -> None:
            if not ends_well:
                raise ValueError("no file was delivered")

        night(ends_well)
    globals()[name] = dag
PY
cat >"$work/seen.py" <<'PY'
import sys
from datetime import UTC, datetime, timedelta

from airflow.dag_processing.dagbag import BundleDagBag
from airflow.models.deadline import Deadline
from airflow.utils.db import initdb
from airflow.utils.session import create_session
from sqlalchemy import select

initdb()
folder = sys.argv[1]
bag = BundleDagBag(folder, bundle_path=folder, bundle_name="dags-folder")
states = {name: str(bag.dags[name].test().state) for name in ("good", "bad")}
later = datetime.now(UTC) + timedelta(hours=5)
with create_session() as session:  # what the scheduler asks for, five hours from now
    due = select(Deadline).where(Deadline.deadline_time < later).where(~Deadline.missed)
    called = []
    for deadline in session.scalars(due):
        deadline.handle_miss(session)
        run = deadline.callback.data["kwargs"]["context"]["dag_run"]
        called.append((run["dag_id"], run["state"]))
print(f"states of the runs: {states}")
print(f"called when the deadlines have passed: {called}")
assert called == [("bad", "failed")], "it behaves otherwise now"
PY
export AIRFLOW_HOME="$work/home" AIRFLOW__CORE__LOAD_EXAMPLES=false
export AIRFLOW__CORE__DAGS_FOLDER="$work/dags" AIRFLOW__LOGGING__LOGGING_LEVEL=ERROR
"$work/venv/bin/python" "$work/seen.py" "$work/dags" 2>"$work/log" | grep -E "^(states|called)" ||
  { tail -5 "$work/log"; exit 1; }
