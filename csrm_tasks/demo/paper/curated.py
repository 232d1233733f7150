"""Table 2 and figure 2 of paper 2: a ladder of curated data for qc and qi, and thresholds.

===========  ======================================================================
arm          beside the labels of three languages
===========  ======================================================================
sft          nothing
ta           translated queries (A37)
ta_sns       … and negatives that the plain model does not accept (A38)
ta_sns_svf   … and without labels that a cross-fitted model contradicts (A39)
ta_svf       translated queries, and without these labels
…_thr        the same answers, at the threshold that dev has chosen (A40)
===========  ======================================================================

All others say yes at one half. Market and trainings: :mod:`csrm_tasks.demo.curation`.
"""

from __future__ import annotations

import numpy as np
import polars as pl

from csrm_tasks.demo.curation.arms import Arms
from csrm_tasks.demo.curation.market import CurationMarket
from csrm_tasks.demo.paper.plan import CURVES
from csrm_tasks.demo.paper.recipe import Recipe
from csrm_tasks.demo.paper.results import Found
from csrm_tasks.evaluation.metrics import Floats, confusion_by_query, positive_f1

GRID = tuple(round(0.05 * k, 2) for k in range(1, 20))  # thresholds of figure 2


def curated(market: CurationMarket, recipe: Recipe, found: Found) -> None:
    """Train and judge the ladder on languages without a train label."""
    arms = Arms(market, recipe.curation)
    base = arms.train("base")
    given = {
        "translated": arms.translated(),
        "negatives": arms.negatives(base),
        "filtered": arms.filtered("remove"),
    }
    _keep(found, "sft", arms.said(base))
    for arm, names in (
        ("ta", ("translated",)),
        ("ta_sns", ("translated", "negatives")),
        ("ta_sns_svf", ("translated", "negatives", "filtered")),
        ("ta_svf", ("translated", "filtered")),
    ):
        llm = arms.train(arm, arms.combined(names), **{n: given[n] for n in names})
        said = arms.said(llm)
        _keep(found, arm, said)
        if arm in ("ta_sns", "ta_svf"):
            _keep(found, f"{arm}_thr", said, chosen=True)
        for task, (of, _) in CURVES.items():
            if of == arm:
                found.curve(arm, f"{task}_f1", _curve(said.filter(task=task)))


def _keep(found: Found, arm: str, said: pl.DataFrame, chosen: bool = False) -> None:
    for (task,), own in said.sort("task", "query_id", "pair_id").group_by(
        "task", maintain_order=True
    ):
        limit = own["threshold"] if chosen else pl.Series([0.5] * own.height)
        queries, counts = _confusions(own, own["p"] >= limit)
        found.add(arm, f"{task}_f1", queries, counts)


def _confusions(own: pl.DataFrame, yes: pl.Series) -> tuple[list[str], Floats]:
    """Return query ids and (Q, 2, 2) of one task's answers, sorted by query."""
    ids = own["query_id"].unique(maintain_order=True).to_list()
    query = own["query_id"].rank("dense").to_numpy().astype(np.int64) - 1
    truth, said = own["grade"].to_numpy().astype(np.int64), yes.to_numpy().astype(np.int64)
    return ids, confusion_by_query(truth, said, query, len(ids), 2)


def _curve(own: pl.DataFrame) -> list[tuple[float, float]]:
    """Return F1 by threshold."""
    rows = own.sort("query_id", "pair_id")
    return [(at, float(positive_f1(_confusions(rows, rows["p"] >= at)[1].sum(0)))) for at in GRID]
