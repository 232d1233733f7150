"""
### Replay: rows that were set aside, judged again

`replay` judges the quarantined rows of one day by today's contracts and by what the store holds
today; what is good now is stored, once, and the day is summed up and published again. A **dry
run** by default: it tells in its log what would become of the rows, and nothing after it runs.

**Window**: the day in parameter `day`; `reason` narrows it to one reason code. Started by hand,
once the product that was unknown has been delivered, or a vocabulary widened. A row that is wrong
in itself stays: deliver the file again, mended, under its name, and run `csrm_ingest`.
**A task failed?** Clear it: rows that are stored already are not stored twice.
`csrm quarantine list --market M` and `csrm quarantine show --market M --day D` show the rows.
"""

from __future__ import annotations

from airflow.sdk import Param
from csrm_wiring import DATE, is_applied, market_dag, markets, tasks_of

from csrm_tasks.markets import MarketConfig

PARAMS = {
    "day": Param(
        type="string",
        **DATE,
        title="Day",
        description="Day whose rows are judged again, YYYY-MM-DD.",
    ),
    "reason": Param(
        None,
        type=["null", "string"],
        pattern=r"^[a-z_]+$",
        title="Reason code",
        description="Reason code, as in csrm quarantine list; empty: every reason.",
    ),
    "apply": Param(
        False,
        type="boolean",
        title="Apply",
        description="Store what is good now; else a dry run.",
    ),
}


def replay(market: MarketConfig) -> None:
    """replay → where it was applied: aggregate → publish the day."""
    task = tasks_of(market)
    day = "{{ params.day }}"
    replayed = task(
        "replay", day=day, reason="{{ params.reason or '' }}", apply="{{ params.apply }}",
        run="{{ run_id }}",
    )  # fmt: skip
    counted = task("aggregate", day=day, store=replayed)
    task("publish_day", day=day, aggregate=counted)
    replayed >> is_applied(replayed) >> counted


for m in markets():  # Airflow finds the DAGs among the names of this module
    globals()[f"csrm_replay__{m.market}"] = market_dag(
        "csrm_replay", m, replay, doc=__doc__, schedule=None, params=PARAMS
    )
