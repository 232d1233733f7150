#!/usr/bin/env bash
# MLflow 3.17.2: two processes that are the first to open a new database of MLflow, in the same
# moment, do not both get it. The tracking store makes its tables without a lock, though the same
# package has a routine that makes them under a lock of a file, which its stores of jobs and of
# workspaces call. Of three that open a new SQLite database at once two end in an error about a table
# or a column that is there already or not yet, in each of five tries on two cores.
#
# Why it matters: it is the first night of an installation without a server that fails, in whichever
# of the parallel tasks came second; the message speaks of tables and not of a first opening. Make
# the client under a lock (a file beside SQLite's, an advisory one of PostgreSQL), or run
# `mlflow db upgrade` once before.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q mlflow-skinny==3.17.2 sqlalchemy==2.0.43 alembic==1.16.5 \
    pandas==2.3.2
cat > "$folder/open.py" <<'PY'
import sys

from mlflow.store.tracking import sqlalchemy_store  # noqa: F401  the slow import, before the start
from mlflow.tracking import MlflowClient

print("ready", flush=True)
sys.stdin.readline()
MlflowClient(sys.argv[1], sys.argv[1])
PY
cat > "$folder/look.py" <<'PY'
import subprocess
import sys
from pathlib import Path

folder = Path(sys.argv[1])


def failed(uri: str, processes: int) -> int:
    command = [sys.executable, str(folder / "open.py"), uri]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    opening = [subprocess.Popen(command, text=True, **pipes) for _ in range(processes)]
    for one in opening:
        assert one.stdout.readline() == "ready\n"
    for one in opening:
        one.stdin.write("\n")
        one.stdin.flush()
    return sum(one.wait() != 0 for one in opening)


counts = [failed(f"sqlite:///{folder}/new{i}.db", 3) for i in range(5)]
print("of three processes that open a new SQLite database at once, failed:", counts)
assert failed(f"sqlite:///{folder}/old.db", 1) == 0, "one alone fails"
after = failed(f"sqlite:///{folder}/old.db", 3)
print("once the tables are there:", after)
assert any(counts) and not after, "its first opening by several is no longer a race"
PY
"$folder/venv/bin/python" "$folder/look.py" "$folder"
