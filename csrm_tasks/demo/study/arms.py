"""The study's arms: each a training of the LLM by the product's own steps, then scored on gold.

Every arm starts from the base with a fresh adapter and makes the same number of optimizer steps of
as many relevance samples; what an arm adds (translations) is added to the batch. So an arm and its
control differ in one thing only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import polars as pl

from csrm_tasks.artifacts import Artifact
from csrm_tasks.demo.study.data import SeedMarket
from csrm_tasks.steps.running import Inputs, run_step


def with_llm(seed: SeedMarket, **changes: object) -> SeedMarket:
    """Return ``seed`` with another configuration of the LLM; sections are given as mappings."""
    llm = seed.market.llm
    sections = {
        name: getattr(llm, name).model_copy(update=dict(value))
        for name, value in changes.items()
        if isinstance(value, Mapping)
    }
    changed = llm.model_copy(update=changes | sections)
    changed = changed.model_copy(update={"evaluate_every": changed.steps})  # once, at the end
    return replace(seed, market=seed.market.model_copy(update={"llm": changed}))


def shares(seed: SeedMarket, relevance: int, mt: float, weight: float) -> SeedMarket:
    """Add translations to the batch; a step has ``relevance`` relevance samples whatever ``mt``."""
    batch = round(relevance * (1.0 + mt))
    return with_llm(seed, batch=batch, mixture={"mt": mt, "mt_weight": weight, "cvr": 0.0})


def train(
    seed: SeedMarket,
    name: str,
    snapshot: str,
    rqa: str | None = None,
    soft: str | None = None,
    number: int = 0,
) -> str:
    """Train an arm, or round ``number``, on ``snapshot``; returns the model's reference."""
    given = {"snapshot": snapshot, "rqa": rqa, "soft": soft}
    return step(seed, "train_llm", given, arm=name, round=number)


def score(seed: SeedMarket, llm: str, rqa: str | None = None) -> str:
    """Score the clean gold pairs; returns the scores' reference."""
    given = {"snapshot": seed.stage2, "llm": llm, "rqa": rqa}
    return step(seed, "score_pairs", given, split="gold")


def relabel(seed: SeedMarket, llm: str, snapshot: str, rqa: str | None = None) -> str:
    """Let a model say soft labels of the train pairs (A16), cross-fitted where due (A18)."""
    return step(seed, "score_pairs", {"snapshot": snapshot, "llm": llm, "rqa": rqa}, split="train")


def step(seed: SeedMarket, name: str, inputs: Inputs, **params: object) -> str:
    """Run a step of the product for this seed."""
    return run_step(name, seed.market, inputs, params, seed.settings)


def cold_retriever(seed: SeedMarket) -> tuple[str, str]:
    """Return a CVR ranker and the EBR that it teaches, as csrm_cold_start does (A21, A22).

    Of the target market they have seen its catalogue and the translations.
    """
    ranker = step(seed, "train_llm", {"snapshot": seed.stage1}, arm="plain", ranker=True)
    given = {"snapshot": seed.stage1, "scored": _scored_pseudo(seed, seed.stage1, ranker)}
    return ranker, step(seed, "train_ebr", given, local=False)


def local_retriever(seed: SeedMarket, ranker: str, cold: str) -> str:
    """Let the cold EBR go on with local clicks and purchases, as csrm_retrain does (A23), but for
    those of gold queries: a released RQA* has them of queries that were asked before, and what is
    claimed here is of new ones.
    """
    scored = _scored_pseudo(seed, seed.stage2, ranker)
    given = {"snapshot": seed.stage2, "scored": scored, "warm": cold}
    return step(seed, "train_ebr", given, local=True, unclicked=True)


def titles(seed: SeedMarket, ebr: str) -> str:
    """Return the RQA of all stage-2 queries, gold ones included."""
    bm25 = step(seed, "build_bm25", {"snapshot": seed.stage2})
    index = step(seed, "build_index", {"snapshot": seed.stage2, "ebr": ebr})
    given = {"snapshot": seed.stage2, "bm25": bm25, "ebr": ebr, "index": index}
    return step(seed, "build_rqa", given)


def _scored_pseudo(seed: SeedMarket, snapshot: str, ranker: str) -> str:
    bm25 = step(seed, "build_bm25", {"snapshot": snapshot})
    pairs = step(seed, "pseudo_pairs", {"snapshot": snapshot, "bm25": bm25})
    given = {"snapshot": snapshot, "llm": ranker, "pairs": pairs}
    return step(seed, "score_pairs", given, space="cvr")


def facts(seed: SeedMarket, ref: str) -> Mapping[str, Any]:
    """Return what an artifact says of itself."""
    return seed.store.open(ref).facts


def answers(seed: SeedMarket, scored: str) -> pl.DataFrame:
    """Return gold answers: query_id, grade, said."""
    found: Artifact = seed.store.open(scored)
    table = pl.read_parquet(found.file("scored.parquet"))
    said = pl.concat_list("p0", "p1", "p2").list.arg_max().cast(pl.Int64)
    return table.select("query_id", "pair_id", pl.col("grade").cast(pl.Int64), said=said)
