"""
### Cold start (stage 1): a first release for a market with no labels and no behaviour

Learns from the source market's labels and conversions and from translations; no target label or
log is read. Where the market's file says so (`llm.pretraining`), the base first goes on
pre-training on its titles, queries and translations (stage 0, `pretrain_llm`); labels that a filter
contradicts (`filter.action`) are not learnt. Plain LLM → scores
BM25's pseudo pairs → trains the retriever → its titles augment the queries (RQA) → LLM again, with
RQA and, where the market adds some, irrelevant pairs that nobody judged (`llm.negatives`) and train
queries translated into languages without labels (`llm.augmentation`); with `ablation.enabled`,
`ablate` first leaves out which options the source's dev does not keep →
distilled into the online towers → bundle, probed in a fresh process (`servability`) → gate → live.

**Window**: everything published up to the day in parameter `until`. Started by hand; with
`dry_run` it trains and judges and releases nothing; nor does a run that was given another `base`,
`force` or `reuse`, unless `release` is set (docs/DAGS.md).
**A task failed?** Clear it: finished steps are found by their fingerprint, training resumes from
its checkpoint. **Nothing was promoted?** The verdict was not PASS, or a person has to approve
it: `csrm release history` tells; that is no error. Approved since? Clear `is_approved`. Where the
market has rollout steps, `csrm_rollout` takes a PASS from here.
"""

from __future__ import annotations

from csrm_params import cold_start_params
from csrm_parts import part, released
from csrm_shards import ablated_of, filtered_of, indexing_of, scoring_of, translated_of
from csrm_wiring import (
    ASKED,
    market_dag,
    negatives_of,
    pretrained_of,
    releasing,
    tasks_of,
)

from csrm_tasks.markets import MarketConfig


def cold_start(market: MarketConfig) -> None:
    """data → retrieval by the plain LLM → LLM with RQA → towers → judgement → release."""
    task, score = tasks_of(market), scoring_of(market)
    with part("data"):
        snap = task("snapshot", stage=1, until="{{ params.until }}")
        bm25 = task("build_bm25", snapshot=snap)

    # The plain LLM ranks what BM25 finds; the retriever learns from that (A21, A22).
    with part("retrieval"):
        pseudo = task("pseudo_pairs", snapshot=snap, bm25=bm25)
        stage0 = pretrained_of(market, task, snapshot=snap)
        learnt = {"snapshot": snap} | stage0 | filtered_of(market, snap, stage0)
        plain = task("train_llm", "train_llm_plain", arm="plain", ranker=True, **learnt)
        cvr = score("score_pseudo", {"snapshot": snap, "llm": plain, "pairs": pseudo}, space="cvr")
        mined = {"bm25": bm25} if market.retrieval.ebr.mining else {}
        ebr = task("train_ebr", local=False, snapshot=snap, scored=cvr, **mined)
        index = indexing_of(market)("build_index", {"snapshot": snap, "ebr": ebr})
        rqa = task("build_rqa", snapshot=snap, bm25=bm25, ebr=ebr, index=index)

    # The relevance LLM, with retrieved titles in its prompt (A9, A24); with negatives that the
    # plain one calls irrelevant, where the market adds some (A38).
    with part("llm"):
        found = {"snapshot": snap, "bm25": bm25, "ebr": ebr, "index": index}
        given = {"rqa": rqa} | learnt | negatives_of(market, task, llm=plain, **found)
        given |= translated_of(market, snap, plain)  # and of train queries in the target's language
        ablated = ablated_of(market, given)  # what dev keeps of the market's options (A41)
        stage1 = task("train_llm", "train_llm_stage1", arm="stage1", **given, **ablated)
        llm = task("select_llm", snapshot=snap, llms=[stage1])

    # The towers learn its soft labels (A29, A31).
    with part("towers"):
        pairs = task("tower_pairs", snapshot=snap, bm25=bm25, ebr=ebr, index=index)
        asked = {"snapshot": snap, "llm": llm, "pairs": pairs, "rqa": rqa}
        soft = scoring_of(market, market.towers.score_shards)("score_tower_pairs", asked)
        towers = task("train_towers", target="soft", snapshot=snap, scored=soft)
        if market.towers.query_layers:
            towers = task("shorten_query_tower", towers=towers, snapshot=snap, scored=soft)
        export = task("export_towers", towers=towers, snapshot=snap)
        vectors = task("embed_products", snapshot=snap, export=export)

    with part("judgement"):
        parts = {"llm": llm, "ebr": ebr, "index": index, "rqa": rqa, "export": export}
        if market.release.export_llm:
            parts["llm_export"] = task("export_llm", llm=llm, snapshot=snap, rqa=rqa)
        bundle = task("bundle", snapshot=snap, embeddings=vectors, **parts)
        live = task("champion", "find_champion")
        probed = task("servability", bundle=bundle, snapshot=snap, towers=towers)
        found = {"servability": probed, "champion": live}
        verdict = task("gate", "judge", stage=1, asked=ASKED, bundle=bundle, **found, **ablated)
    with part("release"):
        released(task, bundle, verdict)


for m in releasing():  # Airflow finds the DAGs among the names of this module
    params = cold_start_params(m)
    globals()[f"csrm_cold_start__{m.market}"] = market_dag(
        "csrm_cold_start", m, cold_start, doc=__doc__, schedule=None, params=params
    )
