"""
### Weekly retraining (stage 2): yesterday's release against one that has seen this market

Snapshot with target labels and behaviour → retriever with local clicks (RQA*) → LLM on both
markets (from the live LLM's stage 0, if the market has one; without the labels that a filter
contradicts, if `filter.action` says so; with `llm.negatives`, `mine_negatives` adds irrelevant
pairs that nobody judged; with `llm.augmentation`, `translate_queries` adds train queries in
languages that have no labels) → self-distillation rounds → where the market asks for it
(`llm.merge`), their adapters and the live one merged → the best of all on dev → towers →
everything, the live release included, scored on the same frozen gold set, the bundle probed in a
fresh process (`servability`: scores as in training, latency and memory within budget) → gate →
recorded with its verdict, and promoted or not.

**Window**: everything published up to the Sunday of the ISO week in parameter `week`, else of the
run's data interval. **Needs** a live release (run `csrm_cold_start` first).
**A task failed?** Clear it: finished steps are found by their fingerprint, training resumes from
its checkpoint. **Nothing was promoted?** The verdict was not PASS, or a person has to approve
it: `csrm release history` tells; that is no error. Approved since? Clear `is_approved`. Where the
market has rollout steps, `csrm_rollout` takes a PASS from here.
"""

from __future__ import annotations

from typing import Any

from airflow.sdk import XComArg
from csrm_shards import filtered_of, indexing_of, scoring_of, translated_of
from csrm_wiring import (
    WEEK,
    fact,
    is_approved,
    market_dag,
    markets,
    negatives_of,
    peers_of,
    pretrained_of,
    tasks_of,
)

from csrm_tasks.markets import MarketConfig


def retrain(market: MarketConfig) -> None:
    """snapshot → retrieval → LLM and its rounds → towers → judgement → release."""
    task, score = tasks_of(market), scoring_of(market)
    live = task("champion", "find_champion")
    live_llm, live_ebr, live_towers = (fact(live, name) for name in ("llm", "ebr", "export"))
    snap = task("snapshot", stage=2, until="{{ week_end(params, dag_run) }}")
    bm25 = task("build_bm25", snapshot=snap, previous=fact(live, "bm25"))

    # What the live retriever finds now: the live LLM reads it, and RQA* is compared with it.
    of_live = {"ebr": live_ebr, "previous": fact(live, "index")}
    index0 = indexing_of(market)("build_index_live", {"snapshot": snap} | of_live)
    found0 = {"snapshot": snap, "bm25": bm25, "ebr": live_ebr, "index": index0}
    rqa0 = task("build_rqa", "build_rqa_live", **found0)

    # The retriever, now with local behaviour: RQA* (A23).
    pseudo = task("pseudo_pairs", snapshot=snap, bm25=bm25)
    read0 = {"snapshot": snap, "llm": live_llm, "rqa": rqa0}
    cvr = score("score_pseudo", read0 | {"pairs": pseudo}, space="cvr")
    mined = {"bm25": bm25} if market.retrieval.ebr.mining else {}
    ebr = task("train_ebr", local=True, snapshot=snap, scored=cvr, warm=live_ebr, **mined)
    index = indexing_of(market)("build_index", {"snapshot": snap, "ebr": ebr})
    rqa = task("build_rqa", snapshot=snap, bm25=bm25, ebr=ebr, index=index)
    given = {"snapshot": snap, "scored": cvr, "warm": live_ebr} | mined
    unclicked = without_clicks(market, given, bm25, behind=rqa)

    # The LLM: stage 2, then each round learns from the one before; the best on dev wins (A15-A17).
    # All start from the live LLM's stage 0, where the market has one and it still fits, and from
    # its adapter where the market says so; all of the pairs that the filter leaves (A39).
    stage0 = pretrained_of(market, task, snapshot=snap, previous=live_llm)
    warm = {"warm": live_llm} if market.llm.warm_start == "live" else {}
    learnt = {"snapshot": snap, "rqa": rqa} | stage0 | warm | filtered_of(market, snap, stage0)
    # And of negatives that the live LLM calls irrelevant, where the market adds some (A38).
    found = {"snapshot": snap, "bm25": bm25, "ebr": ebr, "index": index}
    learnt |= negatives_of(market, task, llm=live_llm, rqa=rqa0, **found)
    # And of train queries translated into languages that have no labels of their own (A37).
    learnt |= translated_of(market, snap, live_llm)
    last = task("train_llm", "train_llm_stage2", arm="stage2", **learnt)
    llms = {"stage2": last}
    for n in range(1, market.llm.distillation.rounds + 1):
        soft = score(f"relabel_{n}", {"snapshot": snap, "llm": last, "rqa": rqa}, split="train")
        given = {"arm": f"round{n}", "round": n, "soft": soft} | learnt
        last = llms[f"round{n}"] = task("train_llm", f"train_llm_round{n}", **given)
    # Merged with each other and with the live LLM they are candidates, too (A55).
    given = {"snapshot": snap, "rqa": rqa, "llms": [*llms.values()], "live": live_llm}
    for method in market.llm.merge:
        llms[f"merged_{method}"] = task("merge_llms", f"merge_{method}", method=method, **given)
    llm = task("select_llm", snapshot=snap, llms=[*llms.values()])

    # The towers learn its soft labels (A29-A31), but nothing of gold queries; beside them the same
    # towers on hard labels (A32), and as a control some that were taught gold queries, too.
    seen = market.controls.towers_seen
    pairs = task("tower_pairs", seen=seen, snapshot=snap, bm25=bm25, ebr=ebr, index=index)
    asked = {"snapshot": snap, "llm": llm, "pairs": pairs, "rqa": rqa}
    soft = scoring_of(market, market.towers.score_shards)("score_tower_pairs", asked)
    towers = task("train_towers", target="soft", snapshot=snap, scored=soft)
    if market.towers.query_layers:
        towers = task("shorten_query_tower", towers=towers, snapshot=snap, scored=soft)
    export = task("export_towers", towers=towers, snapshot=snap)
    vectors = task("embed_products", snapshot=snap, export=export)
    exports = {"champion_towers": live_towers}
    if market.towers.hard_baseline:
        hard = task("train_towers", "train_towers_hard", target="hard", snapshot=snap)
        rqa0 >> hard  # nothing waits for it: beside what follows, not in front of it
        exports["towers_hard"] = task("export_towers", "export_hard", towers=hard, snapshot=snap)
    if seen:
        knows = task("train_towers", "train_towers_seen", seen=True, snapshot=snap, scored=soft)
        exports["towers_seen"] = task("export_towers", "export_seen", towers=knows, snapshot=snap)
    if market.controls.cross_encoder:
        exports["cross_encoder"] = task("train_cross_encoder", snapshot=snap, scored=soft)
    exports["towers"] = export

    # All on the same frozen gold pairs; each LLM reads the titles that it was trained with.
    # What is later in this order is compared with what is before it.
    readers = {"champion": (live_llm, rqa0)}
    if market.controls.rqa_cold:
        given = learnt | {"rqa": rqa0}
        cold = task("train_llm", "train_llm_rqa_cold", arm="rqa_cold", **given)
        rqa >> cold  # as the hard towers, and behind them
        readers["rqa_cold"] = (cold, rqa0)
    readers |= {name: (one, rqa) for name, one in llms.items()}
    readers |= {name: (llm, titles) for name, titles in unclicked.items()}
    readers["final"] = (llm, rqa)
    scores = [
        task("score_pairs", f"score_{name}", split="gold", snapshot=snap, llm=one, rqa=titles)
        for name, (one, titles) in readers.items()
    ]
    untrained = peers_of(market, task, snap, rqa)
    scores += untrained.values()
    tower_scores = [
        task("score_towers", f"score_{name}", snapshot=snap, export=one)
        for name, one in exports.items()
    ]
    peers = {"baselines": task("baselines", snapshot=snap), "champion": live}
    names = ",".join([*readers, *untrained, *exports])
    given = {"snapshot": snap, "llm_scores": scores, "tower_scores": tower_scores}
    if market.controls.rqa_off:
        peers["alone"] = task("score_pairs", "score_alone", split="gold", snapshot=snap, llm=llm)
    evaluation = task("evaluate", names=names, **given, **peers)

    # Judge, then record, and promote: the last and only risky step guards itself as well.
    parts = {"llm": llm, "ebr": ebr, "index": index, "rqa": rqa, "export": export}
    if market.release.export_llm:
        parts["llm_export"] = task("export_llm", llm=llm, snapshot=snap, rqa=rqa)
    bundle = task("bundle", snapshot=snap, embeddings=vectors, **parts)
    probed = task("servability", bundle=bundle, snapshot=snap, towers=towers)
    found = {"evaluation": evaluation, "servability": probed, "champion": live}
    verdict = task("gate", "judge", stage=2, bundle=bundle, **found)
    registered = task("register", bundle=bundle, gate=verdict)
    promoted = task("promote", bundle=bundle, gate=verdict, register=registered)
    registered >> is_approved(verdict) >> promoted


def without_clicks(
    market: MarketConfig, given: dict[str, Any], bm25: XComArg, behind: XComArg
) -> dict[str, XComArg]:
    """Add RQA* without what shoppers did with gold queries, where a market asks for the control.

    ``given``: inputs of the retriever's training. Nothing waits for it: it is behind ``behind``.
    """
    if not market.controls.rqa_unclicked:
        return {}
    task = tasks_of(market)
    ebr = task("train_ebr", "train_ebr_unclicked", local=True, unclicked=True, **given)
    behind >> ebr
    found = {"snapshot": given["snapshot"], "ebr": ebr}
    found["index"] = indexing_of(market)("build_index_unclicked", found)
    return {"rqa_unclicked": task("build_rqa", "build_rqa_unclicked", bm25=bm25, **found)}


for m in markets():  # Airflow finds the DAGs among the names of this module
    globals()[f"csrm_retrain__{m.market}"] = market_dag(
        "csrm_retrain", m, retrain, doc=__doc__, schedule=m.schedule.retrain, params={"week": WEEK}
    )
