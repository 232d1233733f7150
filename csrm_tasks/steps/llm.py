"""Steps of the relevance LLM: stage 0, train an arm or a round, choose and calibrate."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from csrm_tasks.errors import ConfigError
from csrm_tasks.steps.declaration import Context, Metadata, step

if TYPE_CHECKING:
    from pathlib import Path

    from csrm_tasks.artifacts import Artifact
    from csrm_tasks.markets import MarketConfig
    from csrm_tasks.settings import Settings

log = logging.getLogger("csrm")

TASK_FILES = ("tasks.json", "task_dev.parquet")  # of llm.training.task_judge


def base_identity(market: MarketConfig, settings: Settings, params: Mapping[str, Any]) -> str:
    """The base model's files are an input of training, though no artifact."""
    from csrm_tasks.base_models import base_digest

    return base_digest(market.llm.base)


def _path(ctx: Context, name: str) -> Path | None:
    artifact = ctx.inputs.get(name)
    return None if artifact is None else artifact.path


def _use_threads(ctx: Context) -> None:
    import torch

    torch.set_num_threads(ctx.settings.threads)


@step(
    "pretrain_llm",
    inputs=["snapshot"],
    optional=["previous"],
    config=[  # of what the loop reads; rate and steps are stage 0's own
        "llm.base", "llm.pretraining", "llm.lora", "llm.weight_decay", "llm.warmup", "llm.schedule",
        "llm.max_length", "llm.evaluate_every", "llm.patience", "llm.micro_batch",
        "llm.gradient_checkpointing", "llm.processes", "llm.sharding", "llm.product_fields",
        "llm.category_levels", "seed",
    ],
    external_inputs=base_identity,
)  # fmt: skip
def pretrain_llm(ctx: Context) -> Metadata:
    """Stage 0: go on pre-training the base on the market's titles, queries and translations.

    ``previous``: an LLM of this market. What it was pre-trained with is passed on, unless base,
    ``llm.pretraining`` or ``llm.lora`` have changed: a market's language does not change in a week.
    """
    from csrm_tasks import tracking

    if not ctx.market.llm.pretraining.steps:
        raise ConfigError("llm.pretraining.steps is 0: this market has no stage 0")
    previous = ctx.inputs.get("previous")
    known = None if previous is None else _known_pretraining(ctx, previous)
    if known is not None:
        return known
    _use_threads(ctx)
    from csrm_tasks.llm.training.launch import run_training
    from csrm_tasks.llm.training.pretrain import PretrainInputs

    given = PretrainInputs(ctx.input("snapshot").path)
    result = run_training(ctx.market, given, ctx.out, ctx.work)
    tracking.log_run(
        ctx.settings, ctx.market.market, ctx.ref,
        params=result.params | _parents(ctx),
        metrics={k: v for k, v in result.facts.items() if isinstance(v, int | float)},
        curves=result.curves,
        files=[ctx.out / "curves.json"],
    )  # fmt: skip
    return result.facts


def _known_pretraining(ctx: Context, previous: Artifact) -> Metadata | None:
    """Pass the stage 0 of ``previous`` on; None where it has none, or another is asked for."""
    from csrm_tasks.base_models import base_digest
    from csrm_tasks.llm.network.identity import PRETRAINING, read_pretraining

    own = previous.path / PRETRAINING
    if not own.is_dir():
        return None
    card = read_pretraining(own)
    if not card.fits(ctx.market.llm, base_digest(ctx.market.llm.base)):
        log.info("base or settings of stage 0 have changed since %s: once more", previous.ref)
        return None
    log.info("no training: base and settings are those of the stage 0 of %s", previous.ref)
    shutil.copytree(own, ctx.out / PRETRAINING)
    return dict(card.figures) | {"passed_on": previous.ref}


@step(
    "train_llm",
    inputs=["snapshot"],
    optional=[
        "rqa",
        "soft",
        "warm",
        "pretrained",
        "negatives",
        "filtered",
        "translated",
        "ablation",
    ],
    config=["llm", "seed"],
    external_inputs=base_identity,
)
def train_llm(ctx: Context, *, arm: str, round: int = 0, ranker: bool = False) -> Metadata:
    """Fine-tune LoRA on relevance, translation and conversion; keep the best on dev (A5-A7).

    Every round starts from the base with a fresh adapter (A17), or all of them from that of
    ``warm`` (``llm.warm_start``); the base has stage 0 merged into it where ``pretrained`` (of
    ``pretrain_llm``) is given. ``soft`` mixes the teacher's soft labels into the targets (A15);
    where the rounds have stopped (A17), the round before is passed on. ``negatives`` (of
    ``mine_negatives``) are learnt as irrelevant (A38), ``translated`` (of ``translate_queries``)
    beside the pairs that they are of (A37); ``filtered`` (of ``filter_noise``) leaves train pairs
    out or weighs them down (A39); options that ``ablation`` (of ``ablate``) has dropped are off
    (A41). ``ranker``: this run only ranks pseudo pairs (A21) and takes ``llm.ranker_steps``.

    A training that has learnt nothing is recorded in MLflow and fails, so that nothing is scored
    with it: :class:`UnlearntError`. In a round of self-distillation the rounds stop there.
    """
    soft = ctx.inputs.get("soft")
    if soft is not None and soft.facts.get("stopped"):
        return _pass_on(ctx, soft, soft.facts["stopped"])
    _use_threads(ctx)
    from csrm_tasks import tracking
    from csrm_tasks.llm.network.identity import PRETRAINING
    from csrm_tasks.llm.training.inputs import FinetuneInputs
    from csrm_tasks.llm.training.launch import run_training
    from csrm_tasks.llm.training.learnt import UnlearntError, unlearnt
    from csrm_tasks.options import honoured

    market, unread = honoured(ctx.market, ctx.inputs.get("ablation"), ctx.input("snapshot"))
    pretrained = _path(ctx, "pretrained")
    given = FinetuneInputs(
        ctx.input("snapshot").path, _path(ctx, "rqa"), _path(ctx, "soft"), arm, round,
        warm=_path(ctx, "warm"), ranker=ranker,
        pretraining=None if pretrained is None else pretrained / PRETRAINING,
        negatives=_path(ctx, "negatives"), filtered=_path(ctx, "filtered"),
        translated=_path(ctx, "translated"),
    ).leaving_out(unread)  # fmt: skip
    llm = market.llm
    if ranker and llm.ranker_steps:
        llm = llm.model_copy(update={"steps": llm.ranker_steps})
    market = market.model_copy(update={"llm": llm})
    result = run_training(market, given, ctx.out, ctx.work)
    tracking.log_run(
        ctx.settings, ctx.market.market, ctx.ref,
        params=result.params | {"arm": arm, "round": round} | _parents(ctx),
        metrics={k: v for k, v in result.facts.items() if isinstance(v, int | float)},
        curves=result.curves,
        files=[ctx.out / "llm.json", ctx.out / "curves.json"],
    )  # fmt: skip
    reason = unlearnt(result.facts)
    if reason is None:
        return result.facts
    log.warning("%s: %s", arm, reason)
    if not llm.must_learn:
        return result.facts | {"unlearnt": reason}
    if soft is None:
        raise UnlearntError(f"{arm}: {reason}")
    return _pass_on(ctx, soft, reason)


def _parents(ctx: Context) -> dict[str, str]:
    """What a training started from: its inputs with their digests and, of a round, the teacher."""
    parents = {name: artifact.ref for name, artifact in ctx.inputs.items()}
    parents |= {f"{name}_digest": artifact.digest for name, artifact in ctx.inputs.items()}
    soft = ctx.inputs.get("soft")
    return parents if soft is None else parents | {"teacher": soft.inputs["llm"]}


def _pass_on(ctx: Context, soft: Artifact, stopped: str) -> Metadata:
    """Publish the last round's model as this round's: the rounds have stopped (A17), and why."""
    last = ctx.store.open(soft.inputs["llm"])
    log.info("no further round: %s; %s is passed on", stopped, last.ref)
    shutil.copytree(last.path, ctx.out, dirs_exist_ok=True)
    return dict(last.facts) | {"stopped": stopped, "passed_on": last.ref}


@step(
    "select_llm",
    inputs=["snapshot"],
    many=["llms"],
)
def select_llm(ctx: Context) -> Metadata:
    """Choose the best model on dev (A17) and calibrate its temperature there (A30, A49)."""
    from csrm_tasks import tracking
    from csrm_tasks.dataset.tables import table
    from csrm_tasks.llm.network.identity import PRETRAINING, read_card
    from csrm_tasks.llm.scoring.calibration import calibrate

    llms = ctx.lists["llms"]
    if not llms:
        raise ConfigError("select_llm needs at least one model in input 'llms'")
    best = max(llms, key=lambda a: float(a.facts["dev_micro_f1"]))  # the earliest of equals
    shutil.copytree(best.file("adapter"), ctx.out / "adapter")
    if (best.path / PRETRAINING).is_dir():
        shutil.copytree(best.path / PRETRAINING, ctx.out / PRETRAINING)
    shutil.copy(best.file("curves.json"), ctx.out)
    for name in TASK_FILES:  # of a market with tasks besides relevance
        if (best.path / name).is_file():
            shutil.copy(best.file(name), ctx.out)
    votes = table(ctx.input("snapshot").path, "votes")
    calibration = calibrate(best.file("dev_scores.parquet"), votes, ctx.out / "dev_scores.parquet")
    replace(read_card(best.path), temperature=calibration.temperature).write(ctx.out)
    facts: Metadata = {
        "chosen_ref": best.ref,
        "dev_micro_f1": best.facts["dev_micro_f1"],
        "source_dev_micro_f1": best.facts["source_dev_micro_f1"],
        "candidates": {a.ref: a.facts["dev_micro_f1"] for a in llms},
    } | asdict(calibration)
    log.info(
        "chose %s: dev micro-F1 %.4f; temperature %.3f: %s",
        best.ref, facts["dev_micro_f1"], calibration.temperature, calibration.calibration,
    )  # fmt: skip
    tracking.log_run(
        ctx.settings, ctx.market.market, ctx.ref,
        params={"chosen_ref": best.ref},
        metrics={k: v for k, v in facts.items() if isinstance(v, float)},
        files=[ctx.out / "llm.json", *_reliability(best, ctx.out)],
    )  # fmt: skip
    return facts


def _reliability(best: Artifact, out: Path) -> list[Path]:
    """Draw the chosen model's reliability on dev pairs with a consensus, before and after.

    Draws nothing where no dev pair has one: a single rater's errors would be taken for the model's.
    """
    import numpy as np
    import polars as pl

    from csrm_tasks.evaluation import reliability
    from csrm_tasks.evaluation.metrics import calibration_by_query

    agreed = pl.read_parquet(out / "dev_scores.parquet").select("pair_id", "consensus").drop_nulls()
    if agreed.is_empty():
        return []
    curves = {}
    for when, folder in (("before", best.path), ("after", out)):
        scores = pl.read_parquet(folder / "dev_scores.parquet").drop("consensus", strict=False)
        scores = scores.join(agreed, on="pair_id", maintain_order="left")
        p, grade = scores.select("p0", "p1", "p2").to_numpy(), scores["consensus"].to_numpy()
        one = np.zeros(len(p), np.int64)  # all in one
        bins = calibration_by_query(p.astype(np.float64), grade.astype(np.int64), one, 1)
        curves[when] = reliability.curve(bins[0].tolist())
    path = out / "reliability.svg"
    title = "Reliability on dev pairs with a consensus"
    path.write_text(reliability.plot(title, curves, reliability.STYLE))
    return [path]
