"""Scoring a large table, or embedding a catalogue, as mapped tasks, and a task that joins them.

A market with ``llm.score_shards: 1`` gets the one task that scores everything, and with
``retrieval.index_shards: 1`` the one that embeds everything. Tasks hand over
references only; a cleared or killed shard is scored again alone, what is done is found again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from airflow.sdk import XComArg
from csrm_wiring import run, tasks_of

from csrm_tasks.markets import MarketConfig

SHARD = "shard {{ task.op_kwargs['options']['shard'] }} of {{ task.op_kwargs['options']['of'] }}"


def scoring_of(market: MarketConfig, shards: int | None = None) -> Callable[..., XComArg]:
    """Return ``score(task_id, inputs, **params)``: the scores of pairs, however they were cut.

    ``shards`` overrides the market's ``llm.score_shards``.
    """
    task, of = tasks_of(market), shards or market.llm.score_shards

    def score(task_id: str, inputs: dict[str, Any], **params: str) -> XComArg:
        if of == 1:
            return task("score_pairs", task_id, **inputs, **params)
        shard = run.override(task_id=f"{task_id}_shards", map_index_template=SHARD)
        one = shard.partial(step="score_shard", market=market.market, inputs=inputs)
        shards = one.expand(options=[params | {"shard": k, "of": of} for k in range(of)])
        return task("join_shards", task_id, shards=shards, **inputs, **params)

    return score


def indexing_of(market: MarketConfig) -> Callable[..., XComArg]:
    """Return ``index(task_id, inputs)``: a catalogue's index, however its embedding was cut."""
    task, of = tasks_of(market), market.retrieval.index_shards

    def index(task_id: str, inputs: dict[str, Any]) -> XComArg:
        if of == 1:
            return task("build_index", task_id, **inputs)
        shard = run.override(task_id=f"{task_id}_shards", map_index_template=SHARD)
        one = shard.partial(step="embed_shard", market=market.market, inputs=inputs)
        shards = one.expand(options=[{"shard": k, "of": of} for k in range(of)])
        return task("join_index", task_id, shards=shards, **inputs)

    return index
