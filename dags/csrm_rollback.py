"""
### Rollback: back to the release before, now

Gives up what is being rolled out; if nothing is, makes the release before the live one live again:
ledger, then the routing document, then MLflow aliases (which may be away). No training, no
evaluation; seconds.

**Window**: none; it acts on what the ledger says is newest. `leaving` names the release to leave
and makes the run refuse where another one is newest. Right after another way back it must be named:
two people who see the same bad release go back once.
**A task failed?** Clear it: one run goes back once. Its last line says what is served.
Without Airflow: `csrm release rollback --market M --actor NAME --reason "…"`.
"""

from __future__ import annotations

from airflow.sdk import Param
from csrm_wiring import market_dag, releasing, tasks_of

from csrm_tasks.markets import MarketConfig

PARAMS = {
    "reason": Param(
        type="string",
        minLength=3,
        maxLength=500,
        title="Reason",
        description="Why, for the ledger.",
    ),
    "leaving": Param(
        None,
        type=["null", "string"],
        maxLength=200,
        title="Leaving",
        description="Release to leave; empty: the newest.",
    ),
}


def rollback(market: MarketConfig) -> None:
    """One task."""
    tasks_of(market)(
        "roll_back", reason="{{ params.reason }}", leaving="{{ params.leaving or '' }}",
        actor="{{ dag_run.triggering_user_name or 'csrm_rollback' }}", run="{{ run_id }}",
    )  # fmt: skip


for m in releasing():  # Airflow finds the DAGs among the names of this module
    globals()[f"csrm_rollback__{m.market}"] = market_dag(
        "csrm_rollback", m, rollback, doc=__doc__, schedule=None, params=PARAMS
    )
