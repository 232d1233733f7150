"""Scoring, embedding, judging folds or options, translating: mapped tasks, joined by one.

A market with ``llm.score_shards: 1`` gets the one task that scores everything, and with
``retrieval.index_shards: 1`` the one that embeds everything. Tasks hand over
references only; a cleared or killed shard is scored again alone, what is done is found again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from airflow.sdk import XComArg
from csrm_limits import limits_of
from csrm_wiring import ASKED, run, tasks_of

from csrm_tasks.markets import MarketConfig
from csrm_tasks.options import ablation_arms

FOLD = "fold {{ task.op_kwargs['options']['fold'] }}"
WITHOUT = (
    "without {{ task.op_kwargs['options']['without'] or 'nothing' }}, "
    "seed {{ task.op_kwargs['options']['repeat'] }}"
)
SHARD = "shard {{ task.op_kwargs['options']['shard'] }} of {{ task.op_kwargs['options']['of'] }}"


def mapped(
    market: MarketConfig, step: str, task_id: str, named: str, inputs: Mapping[str, Any],
    **same: str,
) -> Any:  # noqa: ANN401 Airflow's decorated task, whose type it keeps to itself  # fmt: skip
    """Return a task to expand over ``options``; ``named`` is the template of each one's name.

    ``same``: parameters of all of them; Airflow renders templates in these, in ``options`` none.
    """
    one = run.override(task_id=task_id, map_index_template=named, **limits_of(market, step))
    of = {"step": step, "market": market.market, "asked": ASKED}
    return one.partial(**of, inputs=dict(inputs), same=same)


def scoring_of(market: MarketConfig, shards: int | None = None) -> Callable[..., XComArg]:
    """Return ``score(task_id, inputs, **params)``: the scores of pairs, however they were cut.

    ``shards`` overrides the market's ``llm.score_shards``.
    """
    task, of = tasks_of(market), shards or market.llm.score_shards

    def score(task_id: str, inputs: dict[str, Any], **params: str) -> XComArg:
        if of == 1:
            return task("score_pairs", task_id, **inputs, **params)
        one = mapped(market, "score_shard", f"{task_id}_shards", SHARD, inputs, **params)
        shards = one.expand(options=[{"shard": k, "of": of} for k in range(of)])
        return task("join_shards", task_id, shards=shards, **inputs, **params)

    return score


def indexing_of(market: MarketConfig) -> Callable[..., XComArg]:
    """Return ``index(task_id, inputs)``: a catalogue's index, however its embedding was cut."""
    task, of = tasks_of(market), market.retrieval.index_shards

    def index(task_id: str, inputs: dict[str, Any]) -> XComArg:
        if of == 1:
            return task("build_index", task_id, **inputs)
        one = mapped(market, "embed_shard", f"{task_id}_shards", SHARD, inputs)
        shards = one.expand(options=[{"shard": k, "of": of} for k in range(of)])
        return task("join_index", task_id, shards=shards, **inputs)

    return index


def filtered_of(
    market: MarketConfig, snap: XComArg, stage0: dict[str, XComArg]
) -> dict[str, XComArg]:
    """Return the filter's decisions as an input of every training (A39), where it changes any.

    A filter whose flagged pairs are only reviewed stands beside the trainings: none waits for it.
    """
    rules = market.filter
    if rules.action is None:
        return {}
    given = {"snapshot": snap} | (stage0 if rules.scorer == "llm" else {})
    one = mapped(market, "filter_fold", "filter_folds", FOLD, given)
    folds = one.expand(options=[{"fold": k} for k in range(rules.folds)])
    decided = tasks_of(market)("filter_noise", snapshot=snap, folds=folds)
    return {} if rules.action == "review" else {"filtered": decided}


def ablated_of(market: MarketConfig, learnt: dict[str, XComArg]) -> dict[str, XComArg]:
    """Return what dev keeps of the market's options as an input of its trainings (A41), if asked.

    ``learnt``: inputs of these trainings; short ones read them, but for a live adapter.
    """
    arms = ablation_arms(market)
    if not arms:
        return {}
    given = {name: made for name, made in learnt.items() if name != "warm"}
    one = mapped(market, "ablation_run", "ablation_runs", WITHOUT, given)
    runs = one.expand(options=arms)
    return {"ablation": tasks_of(market)("ablate", snapshot=learnt["snapshot"], runs=runs)}


def translated_of(market: MarketConfig, snap: XComArg, llm: object) -> dict[str, XComArg]:
    """Return translated train queries as an input of trainings (A37), where a market asks for it.

    ``llm`` translates where the market's translator is the LLM. In as many shards as scoring.
    """
    translator, of = market.llm.augmentation.translator, market.llm.score_shards
    if translator is None:
        return {}
    given = {"snapshot": snap} | ({"llm": llm} if translator == "llm" else {})
    one = mapped(market, "translate_shard", "translate_shards", SHARD, given)
    shards = one.expand(options=[{"shard": k, "of": of} for k in range(of)])
    return {"translated": tasks_of(market)("translate_queries", snapshot=snap, shards=shards)}
