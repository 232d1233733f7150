"""A small DAG of real steps, wired as the product's: folds as mapped tasks, and what joins them."""

from __future__ import annotations

from airflow.sdk import Param
from csrm_shards import FOLD, mapped
from csrm_wiring import market_dag, markets, run

from csrm_tasks.markets import MarketConfig


def small(market: MarketConfig) -> None:
    """filter_folds → filter_noise, on the snapshot that the run is given."""
    given = {"snapshot": "{{ params.snapshot }}"}
    one = mapped(market, "filter_fold", "filter_folds", FOLD, given)
    folds = one.expand(options=[{"fold": k} for k in range(market.filter.folds)])
    join = run.override(task_id="filter_noise")
    join(step="filter_noise", market=market.market, inputs=given | {"folds": folds}, options={})


for m in markets():
    globals()[f"csrm_small__{m.market}"] = market_dag(
        "csrm_small", m, small, doc=__doc__, schedule=None, params={"snapshot": Param("")}
    )
