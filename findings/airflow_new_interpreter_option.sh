#!/usr/bin/env bash
# What: Airflow 3.3.2 documents [core] execute_tasks_new_python_interpreter ("True: spawning a new
# python process"). On Linux it is read, kept and asked by nothing that starts a task: with it the
# supervisor still forks the task from itself and execs nothing. macOS always execs, without it.
# Version: apache-airflow-core 3.3.2, apache-airflow-task-sdk 1.3.2.
# Why it matters: a task forked while another thread of its supervisor holds a lock hangs for good,
# still "running" (apache/airflow#71707). Who sets this option against that is not protected.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q "apache-airflow-core==3.3.2" "apache-airflow-task-sdk==1.3.2"
export AIRFLOW_HOME="$work/home" AIRFLOW__CORE__LOAD_EXAMPLES=false
cat >"$work/seen.py" <<'PY'
import sys
from types import SimpleNamespace

from airflow.sdk.configuration import conf
from airflow.sdk.execution_time import supervisor


class Started(Exception):
    pass


def start(cls, **given):
    raise Started(given["use_exec"])


supervisor.WatchedSubprocess.start = classmethod(start)  # ask how a task would be started


def execs():
    task = SimpleNamespace(id="t")
    try:
        supervisor.ActivitySubprocess.start(
            what=task, dag_rel_path="dag.py", bundle_info=None, client=None
        )
    except Started as e:
        return e.args[0]


option = conf.getboolean("core", "execute_tasks_new_python_interpreter")
print(f"option {option}, platform {sys.platform}: a task execs an interpreter: {execs()}")
supervisor._FORK_EXEC_PLATFORMS.add("linux")
print(f"with linux among the platforms that need it: {execs()}")
supervisor._FORK_EXEC_PLATFORMS.discard("linux")
assert option is (sys.argv[1] == "True") and execs() is False, "the option has an effect now"
PY
for given in False True; do
  AIRFLOW__CORE__EXECUTE_TASKS_NEW_PYTHON_INTERPRETER=$given \
    "$work/venv/bin/python" "$work/seen.py" "$given"
done
