"""Steps of the relevance LLM: train an arm or a round, score pairs, choose and calibrate."""

from __future__ import annotations

import json
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

    from csrm_tasks.artifacts import Artifact
    from csrm_tasks.llm.data import Fields
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
    labels into the targets (A15); where the rounds have stopped (A17), the round before is passed
    on. ``ranker``: this run only ranks pseudo pairs (A21) and takes ``llm.ranker_steps``.
    """
    soft = ctx.inputs.get("soft")
    if soft is not None and soft.facts.get("stopped"):
        return _pass_on(ctx, soft)
    _use_threads(ctx)
    from csrm_tasks import tracking
    from csrm_tasks.llm.finetune import FinetuneInputs
    from csrm_tasks.llm.launch import run_training

    given = FinetuneInputs(
        ctx.input("snapshot").path, _path(ctx, "rqa"), _path(ctx, "soft"), arm, round
    )
    llm = ctx.market.llm
    if ranker and llm.ranker_steps:
        llm = llm.model_copy(update={"steps": llm.ranker_steps})
    market = ctx.market.model_copy(update={"llm": llm})
    result = run_training(market, given, ctx.out, ctx.work)
    tracking.log_run(
        ctx.settings, ctx.market.market, ctx.ref,
        params=result.params | {"arm": arm, "round": round} | _parents(ctx),
        metrics={k: v for k, v in result.facts.items() if isinstance(v, int | float)},
        curves=result.curves,
        files=[ctx.out / "llm.json", ctx.out / "curves.json"],
    )  # fmt: skip
    return result.facts


def _parents(ctx: Context) -> dict[str, str]:
    """What a training started from: its inputs with their digests and, of a round, the teacher."""
    found = {name: artifact.ref for name, artifact in ctx.inputs.items()}
    found |= {f"{name}_digest": artifact.digest for name, artifact in ctx.inputs.items()}
    soft = ctx.inputs.get("soft")
    return found if soft is None else found | {"teacher": soft.inputs["llm"]}


def _pass_on(ctx: Context, soft: Artifact) -> Facts:
    """Publish the last round's model as this round's: dev has stopped improving (A17)."""
    last = ctx.store.open(soft.inputs["llm"])
    log.info("no further round: %s; %s is passed on", soft.facts["stopped"], last.ref)
    shutil.copytree(last.path, ctx.out, dirs_exist_ok=True)
    return dict(last.facts) | {"stopped": soft.facts["stopped"], "passed_on": last.ref}


@step(
    "score_pairs",
    inputs=["snapshot", "llm"],
    optional=["pairs", "rqa"],
    config=["llm", "seed"],
    rooms=["llm"],
)
def score_pairs(ctx: Context, *, space: str = "relevance", split: str = "") -> Facts:
    """Score given pairs, or the snapshot's own of ``split``, with a trained LLM (A8, A16, A19).

    ``split=train`` gives soft labels (temperature 1); the file then also has pair_id and grade.
    They are cross-fitted where the teacher has memorised its labels (A18), and there are none where
    the teacher is no better on dev than its own teacher was: the rounds end there (A17).
    """
    if ("pairs" in ctx.inputs) == bool(split):
        raise ConfigError("score_pairs takes either input 'pairs' or parameter 'split', not both")
    relabel = split == "train" and space == "relevance"
    stopped = _stopped(ctx) if relabel else None
    if stopped:
        log.info("no soft labels: %s", stopped)
        return {"stopped": stopped, "pairs": 0}
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
    facts: Facts = {"pairs": len(scored), "truncated": scorer.encoder.truncated}
    if split and space == "relevance":
        facts |= _agreement(scored)
    if relabel:
        scored, facts = _soft_labels(ctx, scored, fields, facts)
    write_table(scored, judged | SCORED, ctx.out / "scored.parquet")
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
        files=[ctx.out / "llm.json", _reliability(best, ctx.out)],
    )  # fmt: skip
    return facts


def _reliability(best: Artifact, out: Path) -> Path:
    """Draw the chosen model's reliability on dev, before and after its temperature."""
    import numpy as np
    import polars as pl

    from csrm_tasks.evaluation import reliability
    from csrm_tasks.evaluation.metrics import calibration_by_query

    curves = {}
    for when, folder in (("before", best.path), ("after", out)):
        scores = pl.read_parquet(folder / "dev_scores.parquet")
        p, grade = scores.select("p0", "p1", "p2").to_numpy(), scores["grade"].to_numpy()
        one = np.zeros(len(p), np.int64)  # all in one
        bins = calibration_by_query(p.astype(np.float64), grade.astype(np.int64), one, 1)
        curves[when] = reliability.curve(bins[0].tolist())
    path = out / "reliability.svg"
    path.write_text(reliability.plot("Reliability on dev", curves, reliability.STYLE))
    return path


def _given_pairs(ctx: Context) -> pl.DataFrame:
    import polars as pl

    return pl.read_parquet(
        ctx.input("pairs").file("pairs.parquet"), columns=["query_id", "product_id", "locale"]
    )


def _agreement(scored: pl.DataFrame) -> Facts:
    """Agreement with the human grades, over all and by locale."""
    import polars as pl

    predicted = pl.concat_list("p0", "p1", "p2").list.arg_max()
    right = scored.select("locale", right=predicted == pl.col("grade"))
    by_locale = right.group_by("locale").agg(pl.col("right").mean()).sort("locale")
    return {
        "agreement": right["right"].cast(pl.Float64).sum() / max(1, len(right)),
        "agreement_by_locale": dict(by_locale.iter_rows()),
    }


def _teacher_of(ctx: Context, llm: Artifact) -> Artifact | None:
    """Return the model whose soft labels ``llm`` learnt from, if any."""
    soft = llm.inputs.get("soft")
    return None if soft is None else ctx.store.open(ctx.store.open(soft).inputs["llm"])


def _stopped(ctx: Context) -> str | None:
    """Say why there is no further round of self-distillation, or None where there is (A17)."""
    teacher = ctx.input("llm")
    before = _teacher_of(ctx, teacher)
    if before is None or "stopped" in teacher.facts:
        found: str | None = teacher.facts.get("stopped")
        return found
    now, then = (float(a.facts["dev_micro_f1"]) for a in (teacher, before))
    if now > then:
        return None
    return f"dev micro-F1 {now:.4f} after a round, {then:.4f} before it"


def _soft_labels(
    ctx: Context, scored: pl.DataFrame, fields: Fields, facts: Facts
) -> tuple[pl.DataFrame, Facts]:
    """Return soft labels, cross-fitted where the teacher knows its labels by heart (A18).

    Writes ``changes.json``: what they say of the human labels.
    """
    from csrm_tasks.llm.finetune import FinetuneInputs
    from csrm_tasks.llm.rounds import changes, cross_fit

    limit, fit = ctx.market.llm.distillation.memorised, facts["agreement"]
    memorised = fit >= limit
    log.info(
        "teacher agrees with %.1f %% of the human train labels (limit %.1f %%): %s",
        100 * fit, 100 * limit,
        "memorised, so two halves label each other" if memorised else "in-sample soft labels",
    )  # fmt: skip
    facts |= {"train_fit": fit, "memorised": memorised, "cross_fitted": memorised}
    if memorised:
        soft = ctx.input("llm").inputs.get("soft")
        given = FinetuneInputs(
            ctx.input("snapshot").path, _path(ctx, "rqa"),
            None if soft is None else ctx.store.open(soft).path, "fold", 0,
        )  # fmt: skip
        scored, folds = cross_fit(ctx.market, given, ctx.work)
        facts |= folds | _agreement(scored)
    found = {"agreement": facts["agreement"], "cross_fitted": memorised} | changes(scored, fields)
    text = json.dumps(found, ensure_ascii=False, indent=1)
    (ctx.out / "changes.json").write_text(text, encoding="utf-8")
    return scored, facts
