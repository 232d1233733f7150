"""
### Drill: a monthly rehearsal of the rollback, on copies

The real rollback on a copy of the ledger, another routing document and a copy of the aliases; every
release it goes back to is loaded and scores a query. Nothing that is served changes.

**Window**: none; the live release and those before it. **A task failed?** The way back is broken:
its log names the release and what is wrong with it. Mend that before the next promotion.
"""

from __future__ import annotations

from csrm_wiring import market_dag, releasing, tasks_of

from csrm_tasks.markets import MarketConfig


def drill(market: MarketConfig) -> None:
    """One task."""
    tasks_of(market)("drill", run="{{ run_id }}")


for m in releasing():  # Airflow finds the DAGs among the names of this module
    globals()[f"csrm_drill__{m.market}"] = market_dag(
        "csrm_drill", m, drill, doc=__doc__, schedule=m.schedule.drill, params={}
    )
