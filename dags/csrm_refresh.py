"""
### Nightly refresh: product vectors of the live releases, up to date with the catalogue

`refresh` embeds what is new or changed (by content hash) with the towers of every release that
serves somebody (stable, next, hold-out) and copies the rest · `publish_refresh` names the new
vectors in the embeddings document, from which servers take them up within seconds · beside them
`repair_views` brings routing and MLflow up to the ledger, where a release moved while one of them
did not answer.

**Window**: the catalogue as published up to the day in parameter `day`, else of the run's data
interval; a backfill publishes nothing. **A night's ingest was late?** The next refresh catches up;
or run this one again.
**A task failed?** Clear it: servers go on with the vectors that they have. The document keeps the
vectors before by reference. What was embedded and how much was stale is in the run's figures.
"""

from __future__ import annotations

from csrm_wiring import DAY, market_dag, releasing, tasks_of

from csrm_tasks.markets import MarketConfig


def refresh(market: MarketConfig) -> None:
    """refresh → publish; beside them the views of the ledger."""
    task = tasks_of(market)
    made = task("refresh", day="{{ day_of(params, dag_run) }}")
    task("publish_refresh", refresh=made)
    task("repair_views", run="{{ run_id }}")


for m in releasing():  # Airflow finds the DAGs among the names of this module
    globals()[f"csrm_refresh__{m.market}"] = market_dag(
        "csrm_refresh", m, refresh, doc=__doc__, schedule=m.schedule.refresh, params={"day": DAY}
    )
