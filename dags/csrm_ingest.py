"""
### Nightly ingest: one day of one market, from landing zone to published day

`land` lists the day's files · `validate` parses every row; what breaks the contract goes to
quarantine with its reason and bytes, what is about something else is counted · `store` writes each
file in one transaction, once · `aggregate` counts the day's behaviour · `publish_day` makes the day
visible to snapshots, and tells Airflow of it as a partition of the asset `csrm_days__MARKET`: a
market may have a week trained once its days are there (`schedule.retrain`). A backfill tells of
none.

**Window**: the day in parameter `day`, else the market's day on which the run's data interval
starts. Nights may run in any order: a late one ends as if it had come in time.
**A task failed?** Its log ends with one line that names file, row and remedy. Mend or remove the
file, then clear `land` with its downstream tasks: no other sees that a file has changed. Files
already stored are recognised by their digest and not stored twice.
`csrm quarantine list --market M` shows the rows that were set aside.
"""

from __future__ import annotations

from csrm_wiring import DAY, market_dag, markets, tasks_of

from csrm_tasks.markets import MarketConfig


def ingest(market: MarketConfig) -> None:
    """land → validate → store → aggregate → publish the day."""
    task = tasks_of(market)
    day = "{{ day_of(params, dag_run) }}"
    files = task("land", day=day)
    rows = task("validate", land=files)
    stored = task("store", validate=rows)
    counted = task("aggregate", day=day, store=stored)
    task("publish_day", day=day, aggregate=counted)


for m in markets():  # Airflow finds the DAGs among the names of this module
    globals()[f"csrm_ingest__{m.market}"] = market_dag(
        "csrm_ingest", m, ingest, doc=__doc__, schedule=m.schedule.ingest, params={"day": DAY}
    )
