"""Steps of the self-validation filter (A39): one model per fold, then what is done with each pair.

Off unless a market sets ``filter.action``. The folds read judged pairs of train and dev; what is
decided is about train pairs only.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from csrm_tasks.errors import ConfigError, DataError
from csrm_tasks.steps.declaration import Context, Metadata, step
from csrm_tasks.steps.parts import check_parts

if TYPE_CHECKING:
    import polars as pl

    from csrm_tasks.markets import MarketConfig
    from csrm_tasks.settings import Settings

log = logging.getLogger("csrm")

RELEVANCE = "relevance"


def _scorer_identity(market: MarketConfig, settings: Settings, params: Mapping[str, Any]) -> str:
    """The base model's files are an input of the LLM's training, though no artifact."""
    from csrm_tasks.base_models import base_digest

    return base_digest(market.llm.base) if market.filter.scorer == "llm" else ""


@step(
    "filter_fold",
    inputs=["snapshot"],
    optional=["pretrained"],
    config=["filter.scorer", "filter.folds", "filter.steps", "llm", "seed"],
    external_inputs=_scorer_identity,
)
def filter_fold(ctx: Context, *, fold: int) -> Metadata:
    """Judge the pairs of one fold of the queries by a model that has learnt from the others (A39).

    Writes ``scored.parquet``: the fold's train and dev pairs with split, fold and probabilities.
    """
    import torch

    from csrm_tasks.curation.folds import held_out_scores
    from csrm_tasks.llm.network.identity import PRETRAINING
    from csrm_tasks.records import write_table

    rules = ctx.market.filter
    if not 0 <= fold < rules.folds:
        raise ConfigError(f"filter_fold: there is no fold {fold} of {rules.folds}, counted from 0")
    torch.set_num_threads(ctx.settings.threads)
    pretrained = ctx.inputs.get("pretrained")
    scored = held_out_scores(
        ctx.market, ctx.input("snapshot").path, fold,
        None if pretrained is None else pretrained.path / PRETRAINING, ctx.work,
    )  # fmt: skip
    write_table(scored, _scored(), ctx.out / "scored.parquet")
    return {"fold": fold, "of": rules.folds, "scorer": rules.scorer, "pairs": scored.height}


def _scored() -> dict[str, Any]:
    import polars as pl

    from csrm_tasks.records import PAIRS, SCORED

    return PAIRS | {"fold": pl.Int64} | SCORED


@step(
    "filter_noise",
    inputs=["snapshot"],
    many=["folds"],
    config=[
        "filter.action", "filter.folds", "filter.threshold", "filter.weight", "filter.max_share",
        "tasks",
    ],
)  # fmt: skip
def filter_noise(ctx: Context) -> Metadata:
    """Decide which train pairs are left out, weighed down or looked at again, and why (A39).

    Writes ``decisions.parquet``, a row for every train pair, and for ``review`` a sheet for each
    language, ``review-{locale}.csv``. Raises :class:`DataError` where it would remove too many.
    """
    import polars as pl

    from csrm_tasks.curation import noise, review
    from csrm_tasks.records import DECISIONS, write_table

    rules = ctx.market.filter
    if rules.action is None:
        raise ConfigError("filter.action is null: this market has no filter")
    if rules.action == "review" and RELEVANCE not in ctx.market.tasks:
        raise ConfigError(
            "filter.action review: sheets are of relevance labels, which this market does not "
            "learn; choose remove or down_weight"
        )
    parts, thresholds = [], {}
    for task, scored in _by_task(ctx, _out_of_fold(ctx)):
        thresholds[task] = noise.choose_threshold(scored, rules)
        parts.append(noise.decide(scored, rules, thresholds[task].value))
    decided = pl.concat(parts).sort("pair_id")
    write_table(decided, DECISIONS, ctx.out / "decisions.parquet")
    flagged = decided.filter(decided["action"] != "keep")
    if rules.action == "review":
        review.write_sheets(ctx.input("snapshot").path, flagged, ctx.out)
    for task, threshold in thresholds.items():
        log.info(
            "%s: %d of %d train pairs, threshold of %s %g (by %s)", rules.action, flagged.height,
            decided.height, task, threshold.value, threshold.chosen_by,
        )  # fmt: skip
        if threshold.value == noise.NOTHING:
            log.warning("%s: by dev no threshold flags mostly wrong labels: none is flagged", task)
    told = {task: asdict(threshold) for task, threshold in thresholds.items()}
    return {
        "action": rules.action, "pairs": decided.height, "flagged": flagged.height,
        "threshold": told.pop(RELEVANCE, None), "task_thresholds": told,
        "counts": noise.counts(decided),
    }  # fmt: skip


def _by_task(ctx: Context, scored: pl.DataFrame) -> list[tuple[str, pl.DataFrame]]:
    """Return the pairs of relevance; where a market does not learn it, those of each task."""
    from csrm_tasks.llm.task_data import learns_tasks_alone, load_task_pairs

    folder = ctx.input("snapshot").path
    if not learns_tasks_alone(folder):
        return [(RELEVANCE, scored)]
    named = scored.join(load_task_pairs(folder).select("task", "pair_id"), on="pair_id")
    by_task = named.sort("pair_id").partition_by("task", as_dict=True, include_key=False)
    return sorted((str(task), own) for (task,), own in by_task.items())


def _out_of_fold(ctx: Context) -> pl.DataFrame:
    """Return the pairs of all folds; raises :class:`DataError` unless each was judged once."""
    import polars as pl

    from csrm_tasks.curation.folds import judged
    from csrm_tasks.records import read_table

    of, folds = ctx.market.filter.folds, ctx.lists["folds"]
    if len(folds) != of:
        raise ConfigError(f"filter_noise needs all {of} folds in input 'folds', not {len(folds)}")
    check_parts(
        folds, [{"fold": k, "of": of} for k in range(of)],
        lambda x: x.was_made_from("snapshot", ctx.input("snapshot")),
        "fold {fold} of {of} of this snapshot; give them all, in order",
    )  # fmt: skip
    scored = pl.concat(read_table(f.file("scored.parquet"), _scored()) for f in folds)
    if set(scored["pair_id"]) != set(judged(ctx.input("snapshot").path, of)["pair_id"]):
        raise DataError("the folds do not hold every judged pair of this snapshot; run them again")
    return scored.sort("pair_id")
