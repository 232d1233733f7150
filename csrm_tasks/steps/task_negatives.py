"""The step that draws semantic negatives for qc and qi where no relevance is learnt (A38)."""

from __future__ import annotations

import logging
from dataclasses import asdict
from typing import TYPE_CHECKING

from csrm_tasks.errors import ConfigError, DataError
from csrm_tasks.steps.declaration import Context, Metadata, step

if TYPE_CHECKING:
    import polars as pl

log = logging.getLogger("csrm")

ACCEPTED = 0.5  # of a model's probability of yes: no negative (A38)


@step(
    "mine_task_negatives",
    inputs=["snapshot"],
    optional=["llm"],
    config=["llm.negatives", "tasks", "seed"],
)
def mine_task_negatives(ctx: Context) -> Metadata:
    """Add pairs to qc and qi whose answer is no: near a right item, or easy (A38).

    For a market that learns no relevance; of train queries alone; see
    :mod:`csrm_tasks.retrieval.task_negatives`. ``llm``: what the current model accepts is dropped.
    Writes ``task_negatives.parquet``. Raises :class:`ConfigError` where they would swamp a task's
    judged pairs in a language, :class:`DataError` where there are none.
    """
    from csrm_tasks.dataset.tables import table
    from csrm_tasks.llm.task_data import load_task_pairs
    from csrm_tasks.records import TASK_NEGATIVES, write_table
    from csrm_tasks.retrieval.negatives import Counts, refuse_swamped
    from csrm_tasks.retrieval.task_negatives import draw_task_negatives

    config = ctx.market.llm.negatives
    if not config.per_query:
        raise ConfigError("llm.negatives.per_query is 0: this market adds no negatives")
    if "relevance" in ctx.market.tasks:
        raise ConfigError("mine_task_negatives is for markets without relevance: mine_negatives")
    folder, counts = ctx.input("snapshot").path, Counts()
    judged = load_task_pairs(folder)
    drawn = draw_task_negatives(judged, table(folder, "products"), config, ctx.market.seed, counts)
    kept = _rejected(ctx, drawn)
    log.info("negatives: %d kept of %d drawn; %s", len(kept), len(drawn), counts)
    if kept.is_empty():
        raise DataError(
            f"no negatives: of {counts.queries} train queries none has a candidate left ({counts}, "
            f"{len(drawn)} accepted by the current LLM); change llm.negatives (first and last are "
            "ranks among a right item's neighbours), or set per_query 0"
        )
    train = judged.filter(split="train")
    for (task,), own in kept.group_by("task", maintain_order=True):
        refuse_swamped(own, train.filter(task=task), config.weight)
    write_table(kept, TASK_NEGATIVES, ctx.out / "task_negatives.parquet")
    return {
        "negatives": len(kept), "accepted": len(drawn) - len(kept),
        **{name: _counted(kept, column) for name, column in
           (("tasks", "task"), ("kinds", "kind"), ("locales", "locale"))},
        "right_share": _shares(train), "right_share_dev": _shares(judged.filter(split="dev")),
        "right_share_with_negatives": {
            task: share * n / (n + config.weight * kept.filter(task=task).height)
            for task, share in _shares(train).items()
            for n in [train.filter(task=task).height]
        },
    } | asdict(counts)  # fmt: skip


def _counted(frame: pl.DataFrame, column: str) -> dict[str, int]:
    return dict(frame.group_by(column).len().sort(column).iter_rows())


def _shares(judged: pl.DataFrame) -> dict[str, float]:
    """Return the share of yes by task."""
    import polars as pl

    return dict(judged.group_by("task").agg(pl.col("grade").mean()).sort("task").iter_rows())


def _rejected(ctx: Context, drawn: pl.DataFrame) -> pl.DataFrame:
    """Return what the current LLM does not accept, with p0; everything where none is given."""
    if "llm" not in ctx.inputs or drawn.is_empty():
        return drawn
    import polars as pl
    import torch

    from csrm_tasks.llm.prompt.prompts import TASK_SPACES
    from csrm_tasks.llm.scoring.scoring import RelevanceScorer
    from csrm_tasks.llm.task_data import TaskTexts

    torch.set_num_threads(ctx.settings.threads)
    scorer, parts = RelevanceScorer.load(ctx.input("llm").path), []
    for (task,), own in drawn.group_by("task", maintain_order=True):
        if task not in scorer.card.label_ids:
            log.warning("the current LLM has not learnt task %s and is not asked", task)
            parts.append(own)
            continue
        asked = own.drop("p0").sort("query_id", "pair_id")
        scored = scorer.score(TASK_SPACES[str(task)], TaskTexts(str(task)), asked)
        parts.append(scored.filter(pl.col("p0") >= 1.0 - ACCEPTED).select(drawn.columns))
    return pl.concat(parts)
