"""The nightly DAG as it is, and a weekly one whose training is its snapshot and a registration."""

from __future__ import annotations

import csrm_ingest
from airflow.sdk import task
from csrm_assets import note_made, once_due
from csrm_wiring import DRY_RUN, WEEK, market_dag, markets, tasks_of

from csrm_tasks.markets import MarketConfig
from csrm_tasks.settings import load_settings


@task
def bundle(snapshot: str) -> str:
    """Stand for everything between the snapshot and the bundle."""
    from tests.weeks_fixtures import bundled

    return told_of(bundled(load_settings(), snapshot))


@task
def register(bundle: str) -> str:
    """Stand for the registration of a release."""
    from tests.weeks_fixtures import registered

    return told_of(registered(load_settings(), bundle))


def told_of(ref: str) -> str:
    note_made(ref)
    return ref


def week(market: MarketConfig) -> None:
    """is_due → snapshot → bundle → registered."""
    snap = tasks_of(market)("snapshot", stage=2, until="{{ week_end(params, dag_run) }}")
    once_due(market, snap)
    register(bundle(snap))


globals().update({n: d for n, d in vars(csrm_ingest).items() if n.startswith("csrm_ingest__")})
for m in markets():
    globals()[f"csrm_retrain__{m.market}"] = market_dag(
        "csrm_retrain", m, week, doc=__doc__, schedule=m.schedule.retrain,
        params={"week": WEEK, "dry_run": DRY_RUN},
    )  # fmt: skip
