#!/usr/bin/env bash
# What: a DAG that waits for the partitions of a window (RollupMapper, WeekWindow, MinimumCount) counts
# only those that came since its last run for the window, under today's definition of the window:
# (1) asked for three days in place of five when four have come, it forgets the four, and starts
#     neither then nor with a fifth day;
# (2) after a run for the week, three days that are told of once more start a second run for it;
# (3) what is told of while it is paused is never counted.
# Version: apache-airflow-core of the pin below.
# Why it matters: "the week's days have arrived" cannot be read from the events alone. Whoever trains
# by them has to keep the days himself, and whether the week is done.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q "apache-airflow-core==3.3.2" "apache-airflow-task-sdk==1.3.2"
mkdir "$work/dags"
export AIRFLOW_HOME="$work/home" AIRFLOW__CORE__LOAD_EXAMPLES=false
export AIRFLOW__CORE__DAGS_FOLDER="$work/dags" AIRFLOW__LOGGING__LOGGING_LEVEL=ERROR
export AIRFLOW__CORE__MIN_SERIALIZED_DAG_UPDATE_INTERVAL=0  # an edited DAG is known at once
cat >"$work/seen.py" <<'PY'
import os
import pathlib

from airflow.assets.manager import AssetManager
from airflow.dag_processing.bundles.manager import DagBundlesManager
from airflow.dag_processing.dagbag import BundleDagBag, sync_bag_to_db
from airflow.jobs.job import Job
from airflow.jobs.scheduler_job_runner import SchedulerJobRunner
from airflow.models.asset import AssetModel
from airflow.models.dag import DagModel
from airflow.models.dagrun import DagRun
from airflow.utils.db import initdb
from airflow.utils.session import create_session
from sqlalchemy import func, select, update

FOLDER = pathlib.Path(os.environ["AIRFLOW__CORE__DAGS_FOLDER"])
DAG = """
from airflow.sdk import (DAG, Asset, BaseOperator, MinimumCount, PartitionedAssetTimetable,
                         RollupMapper, StartOfWeekMapper, WeekWindow)
days = Asset("days")
weeks = RollupMapper(upstream_mapper=StartOfWeekMapper(input_format="%Y-%m-%d"),
                     window=WeekWindow(), wait_policy=MinimumCount({n}))
with DAG("nights", schedule=None):
    BaseOperator(task_id="night", outlets=[days])
with DAG("weeks", schedule=PartitionedAssetTimetable(assets=days, default_partition_mapper=weeks)):
    BaseOperator(task_id="week")
"""
initdb()
runner = SchedulerJobRunner(Job())


def ask_for(n):
    (FOLDER / "weeks.py").write_text(DAG.format(n=n))
    manager = DagBundlesManager()
    manager.sync_bundles_to_db()
    (bundle,) = manager.get_all_dag_bundles()
    bundle.initialize()
    bag = BundleDagBag(str(bundle.path), bundle_path=bundle.path, bundle_name=bundle.name)
    assert not bag.import_errors, bag.import_errors
    sync_bag_to_db(bag, bundle.name, bundle.version)


def pause(whether):
    with create_session() as session:
        session.execute(update(DagModel).values(is_paused=whether))


def runs_after(*days):
    with create_session() as session:
        asset = session.scalar(select(AssetModel))
        for day in days:
            AssetManager.register_asset_change(
                asset=asset, partition_key=f"2026-01-{day:02d}", session=session
            )
    with create_session() as session:
        runner._create_dagruns_for_partitioned_asset_dags(session)
    with create_session() as session:
        return session.scalar(select(func.count(DagRun.id)))


seen = {}
ask_for(5)
pause(False)
seen["four of five days"] = runs_after(5, 6, 7, 8)
ask_for(3)
seen["the same, now three are asked for"] = runs_after()
seen["and a fifth day"] = runs_after(9)
seen["two more days"] = runs_after(10, 11)
seen["three of them once more"] = runs_after(5, 6, 7)
pause(True)
runs_after(12, 13)
pause(False)
seen["two days of the next week while paused, one after"] = runs_after(14)
for what, runs in seen.items():
    print(f"{what}: {runs} runs")
assert list(seen.values()) == [0, 0, 0, 1, 2, 2], "it behaves otherwise now"
PY
"$work/venv/bin/python" "$work/seen.py"
