"""The nightly DAG as it is, and a weekly one whose training is its snapshot and a registration."""

from __future__ import annotations

import importlib

from airflow.sdk import task

from csrm_tasks.markets import MarketConfig
from csrm_tasks.settings import load_settings

assets, ingest, wiring = (
    importlib.import_module(name) for name in ("csrm_assets", "csrm_ingest", "csrm_wiring")
)


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
    assets.note_made(ref)
    return ref


def week(market: MarketConfig) -> None:
    """is_due → snapshot → bundle → registered."""
    snap = wiring.tasks_of(market)("snapshot", stage=2, until="{{ week_end(params, dag_run) }}")
    assets.once_due(market, snap)
    register(bundle(snap))


globals().update({n: d for n, d in vars(ingest).items() if n.startswith("csrm_ingest__")})
for m in wiring.markets():
    globals()[f"csrm_retrain__{m.market}"] = wiring.market_dag(
        "csrm_retrain", m, week, doc=__doc__, schedule=m.schedule.retrain,
        params={"week": wiring.WEEK, "dry_run": wiring.DRY_RUN},
    )  # fmt: skip
