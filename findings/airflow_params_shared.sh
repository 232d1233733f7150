#!/usr/bin/env bash
# What: in Airflow's Task SDK the values given to one run are written into the DAG's Param objects.
# A copy.deepcopy(dag), also one made before, holds the same objects and sees the values as well;
# another DAG that was given the same Param does not.
# Version: apache-airflow-task-sdk of the pin below (Airflow 3.3.2).
# Why it matters: whoever renders or tests several runs in one process (dag.test() does) runs the
# next one with the parameters of the one before, e.g. "apply" stays on after it was on once.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q "apache-airflow-task-sdk==1.3.2"
export AIRFLOW_HOME="$work/home" AIRFLOW__CORE__LOAD_EXAMPLES=false
cat >"$work/seen.py" <<'PY'
import copy

from airflow.sdk import DAG, Param
from airflow.sdk.bases.operator import BaseOperator
from airflow.sdk.definitions.param import process_params

shared = Param(False, type="boolean")
dags = [DAG(name, schedule=None, params={"apply": shared}) for name in ("one", "other")]
tasks = [BaseOperator(task_id="t", dag=dag) for dag in dags]


def rendered(dag, task, conf):
    return process_params(dag, task, conf, suppress_exception=False)["apply"]


apart = copy.deepcopy(dags[0])
seen = {
    "by default": rendered(dags[0], tasks[0], None),
    "with apply": rendered(dags[0], tasks[0], {"apply": True}),
    "by default, after that": rendered(dags[0], tasks[0], None),
    "in a copy made before": rendered(apart, apart.get_task("t"), None),
    "in another DAG with the same Param": rendered(dags[1], tasks[1], None),
}
for what, value in seen.items():
    print(f"{what}: {value}")
assert list(seen.values()) == [False, True, True, True, False], "it behaves otherwise now"
PY
"$work/venv/bin/python" "$work/seen.py"
