"""
### Weekly retraining (stage 2): a candidate from this market's labels and behaviour, judged

Snapshot with target labels and behaviour → retriever with local clicks (RQA*) → LLM on all
languages' labels (from the live LLM's stage 0, if the market has one; without those that a filter
contradicts, if `filter.action` says so; with `llm.negatives`, `mine_negatives` adds irrelevant
pairs that nobody judged; with `llm.augmentation`, `translate_queries` adds train queries in
languages that have no labels; with `ablation.enabled`, `ablate` says which of these options dev
keeps) → self-distillation rounds → where the market asks for it (`llm.merge`), their adapters and
the live one merged → the best of all on dev → `choose_teacher` (the LLM, a stack of it and lexical
evidence, or labels where dev refuses it) → towers → with `second_stage.enabled`, a cross-encoder
stacked on them, as far as dev keeps it → everything, the live release included,
scored on the same frozen gold set, the bundle probed in a fresh process (`servability`: scores as
in training, latency and memory within budget) → gate → recorded with its verdict, promoted or not.

With `review.pairs`, `review_queue` puts served pairs without a sure grade on a sheet for raters;
where the gate leaves claims open, its report says which judgements decide them soonest.

With `tasks` besides relevance, `evaluate_tasks` judges them for the gate. A market without
relevance has nothing to serve: it goes snapshot → LLM → its tasks' gate, against the LLM that
passed last, and releases nothing (`docs/TASKS.md`).

**Window**: everything published up to the Sunday of the ISO week in parameter `week`, else of the
run's partition or data interval. **Starts** by the clock, or (`schedule.retrain: {at_least: …}`)
when the week's days are published: `is_due` asks the store, and skips the rest of a week that
lacks days or is trained already; its log says why. A late night has its week trained when it comes;
a day corrected after that trains nothing, unless the market asks (`again`). **Needs** a live
release (run `csrm_cold_start` first). With `dry_run`, and when it is a backfill, it trains and
judges and releases nothing; nor does a run that was given other `rounds`, another `base`, `force`
or `reuse`, unless `release` is set (docs/DAGS.md).
**A task failed?** Clear it: finished steps are found by their fingerprint, training resumes from
its checkpoint. **Nothing was promoted?** The verdict was not PASS, or a person has to approve
it: `csrm release history` tells; that is no error. Approved since? Clear `is_approved`. Where the
market has rollout steps, `csrm_rollout` takes a PASS from here.
"""

from __future__ import annotations

from typing import Any

from airflow.sdk import XComArg
from csrm_assets import once_due
from csrm_params import beyond, retrain_params
from csrm_parts import part, released
from csrm_shards import ablated_of, filtered_of, scoring_of, translated_of
from csrm_week import (
    Retrieved,
    Week,
    ablation_in,
    distilled,
    evaluated,
    judged,
    learnt_by_all,
    retrieval,
)
from csrm_wiring import (
    ASKED,
    fact,
    market_dag,
    markets,
    negatives_of,
    pretrained_of,
    tasks_judged_of,
    tasks_of,
)

from csrm_tasks.markets import MarketConfig


def retrain(market: MarketConfig) -> None:
    """data → retrieval → LLM → its rounds → towers → judgement → release."""
    task = tasks_of(market)
    with part("data"):
        live = task("champion", "find_champion")
        snap = task("snapshot", stage=2, until="{{ week_end(params, dag_run) }}")
        once_due(market, live, snap)
        bm25 = task("build_bm25", snapshot=snap, previous=fact(live, "bm25"))
        week = Week(market, live, snap, bm25)
    with part("retrieval"):
        found = retrieval(week)
    with part("llm"):
        learnt = learnt_by_all(week, found)
        stage2 = task("train_llm", "train_llm_stage2", arm="stage2", **learnt)
    with part("rounds"):
        llms = rounds(week, found, stage2, learnt)
        llm = task("select_llm", snapshot=snap, llms=[*llms.values()])
    with part("towers"):
        towers = distilled(week, found, llm)
    with part("judgement"):
        evaluation = evaluated(week, found, llms, llm, towers, learnt)
        bundle, verdict = judged(
            week, found, llm, towers, evaluation=evaluation, **ablation_in(learnt)
        )
    with part("release"):
        released(task, bundle, verdict)


def rounds(
    week: Week, found: Retrieved, stage2: XComArg, learnt: dict[str, Any]
) -> dict[str, XComArg]:
    """Return the candidates: each round learns from the one before; the best on dev wins (A15-A17).

    Merged with each other and with the live LLM they are candidates, too (A55).
    """
    market, score, last = week.market, scoring_of(week.market), stage2
    llms = {"stage2": last}
    for n in range(1, market.llm.distillation.rounds + 1):
        read = {"snapshot": week.snap, "llm": last, "rqa": found.rqa}
        soft = score(f"relabel_{n}", read, split="train", beyond=beyond(n))
        given = {"arm": f"round{n}", "round": n, "soft": soft} | learnt
        last = tasks_of(market)("train_llm", f"train_llm_round{n}", **given)
        llms[f"round{n}"] = last
    given = {"rqa": found.rqa, "llms": [*llms.values()], "live": week.of_live("llm")}
    for method in market.llm.merge:
        llms[f"merged_{method}"] = week.add("merge_llms", f"merge_{method}", method=method, **given)
    return llms


def retrain_tasks(market: MarketConfig) -> None:
    """snapshot → LLM → its judgement → verdict: the tasks alone, where nothing is served.

    Filter, negatives, translations and ablation stand before the LLM where the market has them.
    """
    task = tasks_of(market)
    passed = task("passed_llm", "find_champion")
    snap = task("snapshot", stage=2, until="{{ week_end(params, dag_run) }}")
    once_due(market, passed, snap)
    last = fact(passed, "llm")
    stage0 = pretrained_of(market, task, snapshot=snap, previous=last)
    learnt = {"snapshot": snap} | stage0 | filtered_of(market, snap, stage0)
    learnt |= negatives_of(market, task, "mine_task_negatives", snapshot=snap, llm=last)
    learnt |= translated_of(market, snap, last)
    llm = task("train_llm", arm="tasks", **learnt, **ablated_of(market, learnt))
    judged = tasks_judged_of(market, task, snapshot=snap, llm=llm, champion_llm=last)
    task("gate_tasks", "judge", asked=ASKED, evaluation=judged["task_evaluation"])


for m in markets():  # Airflow finds the DAGs among the names of this module
    build = retrain if "relevance" in m.tasks else retrain_tasks
    params = retrain_params(m)
    globals()[f"csrm_retrain__{m.market}"] = market_dag(
        "csrm_retrain", m, build, doc=__doc__, schedule=m.schedule.retrain, params=params
    )
