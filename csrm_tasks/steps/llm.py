"""Steps of the relevance LLM: train an arm or a round, score pairs, choose and calibrate."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from csrm_tasks.errors import ConfigError
from csrm_tasks.steps.registry import Context, Facts, step

if TYPE_CHECKING:
    from pathlib import Path

    import polars as pl

    from csrm_tasks.markets import MarketConfig
    from csrm_tasks.settings import Settings

log = logging.getLogger("csrm")


def _base_identity(market: MarketConfig, settings: Settings, params: Mapping[str, Any]) -> str:
    """The base model's files are an input of training, though no artifact."""
    from csrm_tasks.llm.identity import base_digest

    return base_digest(market.llm.base)


def _path(ctx: Context, name: str) -> Path | None:
    found = ctx.inputs.get(name)
    return None if found is None else found.path


def _use_threads(ctx: Context) -> None:
    import torch

    torch.set_num_threads(ctx.settings.threads)


@step(
    "train_llm",
    inputs=["snapshot"],
    optional=["rqa", "soft"],
    config=["llm", "seed"],
    rooms=["llm"],
    extra=_base_identity,
)
def train_llm(ctx: Context, *, arm: str, round: int = 0, ranker: bool = False) -> Facts:
    """Fine-tune LoRA on relevance, translation and conversion; keep the best on dev (A5-A7).

    Every round starts from the base with a fresh adapter (A17); ``soft`` mixes the teacher's soft
    labels into the targets (A15). ``ranker``: this run only ranks pseudo pairs (A21) and takes
    ``llm.ranker_steps``.
    """
    _use_threads(ctx)
    from csrm_tasks import tracking
    from csrm_tasks.llm.finetune import FinetuneInputs, finetune

    given = FinetuneInputs(
        ctx.input("snapshot").path, _path(ctx, "rqa"), _path(ctx, "soft"), arm, round
    )
    llm = ctx.market.llm
    if ranker and llm.ranker_steps:
        llm = llm.model_copy(update={"steps": llm.ranker_steps})
    market = ctx.market.model_copy(update={"llm": llm})
    result = finetune(market, given, ctx.out, ctx.work)
    tracking.log_run(
        ctx.settings, ctx.market.market, ctx.ref,
        params=result.params | {"arm": arm, "round": round, "snapshot": ctx.input("snapshot").ref},
        metrics={k: v for k, v in result.facts.items() if isinstance(v, int | float)},
        curves=result.curves,
        files=[ctx.out / "llm.json", ctx.out / "curves.json"],
    )  # fmt: skip
    return result.facts


@step(
    "score_pairs",
    inputs=["snapshot", "llm"],
    optional=["pairs", "rqa"],
    config=["llm"],
    rooms=["llm"],
)
def score_pairs(ctx: Context, *, space: str = "relevance", split: str = "") -> Facts:
    """Score given pairs, or the snapshot's own of ``split``, with a trained LLM (A8, A16, A19).

    ``split=train`` gives soft labels (temperature 1); the file then also has pair_id and grade.
    """
    if ("pairs" in ctx.inputs) == bool(split):
        raise ConfigError("score_pairs takes either input 'pairs' or parameter 'split', not both")
    _use_threads(ctx)
    from csrm_tasks.llm.data import load_fields, load_pairs, space_named
    from csrm_tasks.llm.scoring import RelevanceScorer
    from csrm_tasks.records import PAIRS, SCORED, write_table

    snapshot = ctx.input("snapshot").path
    scorer = RelevanceScorer.load(ctx.input("llm").path)
    fields = load_fields(snapshot, _path(ctx, "rqa"))
    judged = {k: PAIRS[k] for k in ("pair_id", "grade")} if split else {}
    pairs = load_pairs(snapshot, split) if split else _given_pairs(ctx)
    scored = scorer.score(space_named(space), fields, pairs, calibrated=split != "train")
    write_table(scored, judged | SCORED, ctx.out / "scored.parquet")
    facts: Facts = {"pairs": len(scored), "truncated": scorer.encoder.truncated}
    if split and space == "relevance":
        facts |= _agreement(ctx, scored, split)
    return facts


@step("select_llm", many=["llms"], rooms=["llm.calibration"])
def select_llm(ctx: Context) -> Facts:
    """Choose the best model on dev (A17) and calibrate its temperature there (A30)."""
    from csrm_tasks import tracking
    from csrm_tasks.llm.calibration import calibrate
    from csrm_tasks.llm.identity import read_card

    llms = ctx.lists["llms"]
    if not llms:
        raise ConfigError("select_llm needs at least one model in input 'llms'")
    best = max(llms, key=lambda a: float(a.facts["dev_micro_f1"]))  # the earliest of equals
    shutil.copytree(best.file("adapter"), ctx.out / "adapter")
    shutil.copy(best.file("curves.json"), ctx.out)
    found = calibrate(best.file("dev_scores.parquet"), ctx.out / "dev_scores.parquet")
    replace(read_card(best.path), temperature=found.temperature).write(ctx.out)
    facts: Facts = {
        "chosen_ref": best.ref,
        "dev_micro_f1": best.facts["dev_micro_f1"],
        "source_dev_micro_f1": best.facts["source_dev_micro_f1"],
        "candidates": {a.ref: a.facts["dev_micro_f1"] for a in llms},
    } | asdict(found)
    log.info(
        "chose %s: dev micro-F1 %.4f; temperature %.3f, ECE %.4f before, %.4f after",
        best.ref, facts["dev_micro_f1"], found.temperature, found.ece_before, found.ece_after,
    )  # fmt: skip
    tracking.log_run(
        ctx.settings, ctx.market.market, ctx.ref,
        params={"chosen_ref": best.ref},
        metrics={k: v for k, v in facts.items() if isinstance(v, float)},
        files=[ctx.out / "llm.json"],
    )  # fmt: skip
    return facts


def _given_pairs(ctx: Context) -> pl.DataFrame:
    import polars as pl

    return pl.read_parquet(
        ctx.input("pairs").file("pairs.parquet"), columns=["query_id", "product_id", "locale"]
    )


def _agreement(ctx: Context, scored: pl.DataFrame, split: str) -> Facts:
    """Agreement with the human grades; on train it says whether the teacher memorised (A18)."""
    import polars as pl

    predicted = pl.concat_list("p0", "p1", "p2").list.arg_max()
    right = scored.select("locale", right=predicted == pl.col("grade"))
    by_locale = right.group_by("locale").agg(pl.col("right").mean()).sort("locale")
    facts: Facts = {
        "agreement": right["right"].cast(pl.Float64).sum() / max(1, len(right)),
        "agreement_by_locale": dict(by_locale.iter_rows()),
    }
    if split != "train":
        return facts
    limit = ctx.market.llm.distillation.memorised
    memorised = facts["agreement"] >= limit
    log.info(
        "teacher agrees with %.1f %% of the human train labels: %s (limit %.1f %%)",
        100 * facts["agreement"], "it has memorised them" if memorised else "in-sample soft labels",
        100 * limit,
    )  # fmt: skip
    return facts | {"train_fit": facts["agreement"], "memorised": memorised}
