"""A new database of MLflow, opened by several processes at once.

MLflow's tracking store makes its tables without a lock: of two that open a new database at once,
one failed in the middle of its training with ``OperationalError``, or both did.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import sqlalchemy as sa

OPENING = """
import sys
from dataclasses import replace
from mlflow.store.tracking import sqlalchemy_store  # before the start: it takes seconds
from csrm_tasks.settings import load_settings
from csrm_tasks.tracking import client
settings = load_settings({"CSRM_HOME": sys.argv[1], "MLFLOW_TRACKING_URI": sys.argv[2]})
print("ready", flush=True)
sys.stdin.readline()
print(client(settings).create_experiment(sys.argv[3], artifact_location="file:///none"))
"""


def test_processes_that_open_a_new_database_at_once_all_find_its_tables(
    database: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    home = tmp_path_factory.mktemp("home")
    command = [sys.executable, "-c", OPENING, str(home), database]
    opened = [
        subprocess.Popen(
            [*command, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true"},
        )
        for name in ("one", "two", "three")
    ]  # fmt: skip
    for each in opened:
        assert each.stdout is not None and each.stdout.readline() == "ready\n"
    for each in opened:
        assert each.stdin is not None
        each.stdin.write("\n")
        each.stdin.flush()
    assert [each.communicate(timeout=300) and each.returncode for each in opened] == [0, 0, 0]
    engine = sa.create_engine(database)
    with engine.connect() as connection:
        names = connection.execute(sa.text("select name from experiments")).scalars()
        assert {*names} == {"Default", "one", "two", "three"}
    engine.dispose()
