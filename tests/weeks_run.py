"""Simulate nights and the weeks that they trigger, with Airflow's own scheduling of assets.

``python weeks_run.py PLAN`` where PLAN is JSON, a list of: ["deliver", day, how], ["night", day]
(the DAG of the night, through ``dag.test()``), ["by hand", day] (the night at the command line),
["told", day] (an event of a day that nobody published), ["tick"] (the scheduler looks once at the
partitions that came, and the runs that it makes are carried out), ["again", n] (the n-th of them,
all of it cleared and run anew) and ["state"] (the digest of the store). Prints one line ``WEEKS`` +
JSON: per step of the plan what came of it; of a night its state, of a tick and of a run again the
runs, each with its partition, state and the states of its tasks; at last the days that Airflow was
told of.
"""

from __future__ import annotations

import json
import sys
from typing import Any
from unittest.mock import patch

import airflow.models.dagrun as dagruns
from airflow.assets.manager import AssetManager
from airflow.dag_processing.bundles.manager import DagBundlesManager
from airflow.dag_processing.dagbag import BundleDagBag, sync_bag_to_db
from airflow.jobs.job import Job
from airflow.jobs.scheduler_job_runner import SchedulerJobRunner
from airflow.models.asset import AssetActive, AssetEvent, AssetModel
from airflow.models.dag import DagModel
from airflow.models.dagrun import DagRun
from airflow.models.taskinstance import clear_task_instances
from airflow.utils.db import initdb
from airflow.utils.session import create_session
from airflow.utils.state import DagRunState
from sqlalchemy import select, update

from csrm_tasks.settings import load_settings
from csrm_tasks.steps.night import take_in
from tests.weeks_fixtures import MARKET, deliver, digest, of_days

NIGHT, WEEK = f"csrm_ingest__{MARKET}", f"csrm_retrain__{MARKET}"


def synced() -> dict[str, Any]:
    """Have Airflow know the DAGs, unpaused, as its dag-processor does."""
    initdb()
    manager = DagBundlesManager()
    manager.sync_bundles_to_db()
    (bundle,) = manager.get_all_dag_bundles()
    bundle.initialize()
    bag = BundleDagBag(str(bundle.path), bundle_path=bundle.path, bundle_name=bundle.name)
    assert not bag.import_errors, bag.import_errors
    sync_bag_to_db(bag, bundle.name, bundle.version)
    with create_session() as session:
        session.execute(update(DagModel).values(is_paused=False))
        assert len(session.scalars(select(AssetActive)).all()) == 1
    return dict(bag.dags)


def carried_out(dag: Any, run_id: int) -> dict[str, Any]:
    """Carry out a run that exists, as ``dag.test()`` does those that it makes itself."""

    def existing(*, dag: Any, session: Any, **_: object) -> DagRun:
        run: DagRun = session.get(DagRun, run_id)
        run.dag, run.state = dag, DagRunState.RUNNING
        session.commit()
        return run

    with patch.object(dagruns, "get_or_create_dagrun", existing):
        dag.test()
    with create_session() as session:
        run = session.get(DagRun, run_id)
        tasks = {t.task_id: str(t.state) for t in run.get_task_instances(session=session)}
        return {"week": run.partition_key, "state": str(run.state), "tasks": tasks, "id": run.id}


def tick(dag: Any, runner: SchedulerJobRunner) -> list[dict[str, Any]]:
    """Let the scheduler make the runs whose partitions are there, and carry them out in order."""
    with create_session() as session:
        runner._create_dagruns_for_partitioned_asset_dags(session)
    with create_session() as session:
        queued = select(DagRun.id).where(DagRun.state == DagRunState.QUEUED).order_by(DagRun.id)
        made = session.scalars(queued).all()
    return [carried_out(dag, run_id) for run_id in made]


def again(dag: Any, run_id: int) -> list[dict[str, Any]]:
    """Clear all of a run and carry it out once more."""
    with create_session() as session:
        run = session.get(DagRun, run_id)
        clear_task_instances(run.get_task_instances(session=session), session)
    return [carried_out(dag, run_id)]


def told(day: str) -> None:
    """Tell Airflow of a day, as its UI does."""
    with create_session() as session:
        (asset,) = session.scalars(select(AssetModel)).all()
        AssetManager.register_asset_change(asset=asset, partition_key=day, session=session)


def main(plan: list[list[str]]) -> None:
    """Carry out ``plan``."""
    dags = synced()
    runner = SchedulerJobRunner(Job())
    weeks: list[int] = []
    found: list[Any] = []
    for what, *given in plan:
        if what == "deliver":
            deliver(load_settings(), *given)
            found.append(None)
        elif what == "night":
            found.append(str(dags[NIGHT].test(run_conf={"day": given[0]}).state))
        elif what == "by hand":
            found.append(take_in(of_days(), load_settings(), given[0]))
        elif what == "told":
            found.append(told(given[0]))
        elif what == "state":
            found.append(digest(load_settings()))
        else:
            runs = tick(dags[WEEK], runner) if what == "tick" else again(
                dags[WEEK], weeks[int(given[0])]
            )  # fmt: skip
            weeks += [run["id"] for run in runs if run["id"] not in weeks]
            found.append(runs)
    with create_session() as session:
        events = session.scalars(select(AssetEvent).order_by(AssetEvent.id)).all()
    print("WEEKS" + json.dumps([*found, [e.partition_key for e in events]]), flush=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
