"""Rounds of self-distillation: where soft labels come from, and what they would change (A16-A18).

A teacher that has memorised its labels hands them back unread. Its soft labels then come from two
models of the same recipe, each trained on half of the queries and asked about the other half.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from csrm_tasks.llm.data import Fields, in_fold, load_pairs
from csrm_tasks.llm.prompt.prompts import RELEVANCE
from csrm_tasks.llm.scoring.scoring import RelevanceScorer
from csrm_tasks.llm.training.inputs import FinetuneInputs
from csrm_tasks.llm.training.launch import train_anew
from csrm_tasks.markets import MarketConfig

log = logging.getLogger("csrm")

EXAMPLES = 5  # per locale, of labels that the teacher disagrees with


def cross_fit(
    market: MarketConfig, given: FinetuneInputs, work: Path
) -> tuple[pl.DataFrame, dict[str, Any]]:
    """Return soft labels of all train pairs by 2-fold cross-fitting by query, and facts (A18).

    ``given`` is the teacher's own recipe, from a fresh adapter: a live one has seen both halves.
    Each half makes half the steps, so that it passes over
    its labels as often as the teacher did. A fold that is finished is found again below ``work``.
    """
    llm = market.llm.model_copy(update={"steps": -(-market.llm.steps // 2)})
    half = market.model_copy(update={"llm": llm})
    pairs = load_pairs(given.snapshot, "train").with_row_index("place")
    parts, facts = [], {}
    for fold in (0, 1):
        folder = work / f"fold{fold}"
        done = folder / "done"
        if not done.exists():
            log.info("cross-fitting: training on half %d of the queries", fold)
            recipe = replace(given, fold=fold)
            whose = f"cross-fitting, half {fold} of the queries"
            trained = train_anew(half, recipe, folder / "model", folder, whose)
            done.write_text(str(trained.facts["dev_micro_f1"]), encoding="utf-8")
        facts[f"fold{fold}_dev_micro_f1"] = float(done.read_text(encoding="utf-8"))
        others = in_fold(pairs, 1 - fold)
        scorer = RelevanceScorer.load(folder / "model")
        fields = scorer.fields(given.snapshot, given.rqa)
        parts.append(scorer.score(RELEVANCE, fields, others, calibrated=False))
    return pl.concat(parts).sort("place").drop("place"), facts


def changes(scored: pl.DataFrame, fields: Fields) -> dict[str, Any]:
    """Return what soft labels say of the human ones (``scored``: PAIRS keys, grade, p0, p1, p2).

    Per locale: pairs, agreement, flips (3 x 3 counts, human grade in rows, most probable in
    columns). Per category (its first level): pairs and how many flip. And the disagreements of
    which the teacher is surest, with their texts, such as the paper's 孕婦.
    """
    queries, products = fields.of(scored)
    p = scored.select("p0", "p1", "p2").to_numpy().reshape(-1, 3)
    human = scored["grade"].to_numpy().astype(np.int64)
    soft = p.argmax(axis=1)
    table = pl.DataFrame({
        "locale": scored["locale"], "human": human, "soft": soft, "flip": soft != human,
        "sure": p.max(axis=1), "p": p.tolist(),
        "category": [x.category.split(">")[0].strip() for x in products],
        "query": [q.query for q in queries], "title": [x.title for x in products],
    })  # fmt: skip
    flips = {}
    for (locale,), own in table.group_by("locale", maintain_order=True):
        counts = np.bincount(own["human"].to_numpy() * 3 + own["soft"].to_numpy(), minlength=9)
        flips[str(locale)] = counts.reshape(3, 3).tolist()
    by_category = (
        table.group_by("locale", "category")
        .agg(pairs=pl.len(), flips=pl.col("flip").sum())
        .sort("flips", "category", descending=[True, False])
    )
    surest = table.filter("flip").sort("sure", "query", "title", descending=[True, False, False])
    shown = surest.group_by("locale", maintain_order=True).head(EXAMPLES)
    return {
        "flips": dict(sorted(flips.items())),
        "categories": by_category.to_dicts(),
        "examples": shown.select("locale", "query", "title", "human", "p").to_dicts(),
    }
