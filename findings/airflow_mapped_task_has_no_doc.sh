#!/usr/bin/env bash
# What: a function's docstring becomes the documentation (doc_md) of its @task, and is lost as soon as
# the task is mapped with expand(): a mapped task has none, though it is the same function.
# Version: apache-airflow-task-sdk of the pin below (Airflow 3.3.2).
# Why it matters: the page that an operator opens when one of many mapped tasks fails is empty.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q "apache-airflow-task-sdk==1.3.2"
export AIRFLOW_HOME="$work/home" AIRFLOW__CORE__LOAD_EXAMPLES=false
cat >"$work/seen.py" <<'PY'
from airflow.sdk import DAG, task


@task
def score(shard):
    """What to do when it fails."""


@task(doc_md="What to do when it fails.")
def told(shard):
    """Not read, as doc_md says it."""


with DAG("one", schedule=None) as dag:
    score.override(task_id="single")(0)
    score.override(task_id="mapped").expand(shard=[0, 1])
    told.override(task_id="mapped_and_told").expand(shard=[0, 1])

seen = {name: dag.get_task(name).doc_md for name in ("single", "mapped", "mapped_and_told")}
for name, doc in seen.items():
    print(f"{name}: {doc!r}")
words = "What to do when it fails."
assert seen == {"single": words, "mapped": None, "mapped_and_told": words}, "it behaves otherwise now"
PY
"$work/venv/bin/python" "$work/seen.py"
