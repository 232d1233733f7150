"""One training of the relevance LLM, from a snapshot's tables to the files of its artifact."""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from csrm_tasks.errors import DataError
from csrm_tasks.llm.augmented import joined, load_negatives, misspelt_rows, negative_rows
from csrm_tasks.llm.data import (
    Fields,
    LabelRows,
    TranslationRows,
    cvr_rows,
    distilled_targets,
    human_targets,
    in_fold,
    load_fields,
    load_pairs,
    load_translations,
    relevance_rows,
    selection_dev,
    translation_rows,
    weighted,
)
from csrm_tasks.llm.network.identity import PRETRAINING, LlmCard
from csrm_tasks.llm.network.model import (
    Model,
    add_lora,
    checkpoint_activations,
    load_base,
    save_adapter,
    set_adapter_state,
    start_from,
)
from csrm_tasks.llm.prompt.encoding import PromptEncoder
from csrm_tasks.llm.prompt.prompts import product_form
from csrm_tasks.llm.scoring.transfer import ParallelPairs, measure_transfer, parallel_pairs
from csrm_tasks.llm.training.checkpoint import Curves
from csrm_tasks.llm.training.judge import Judge, dev_figures, write_dev_scores
from csrm_tasks.llm.training.learnt import fit
from csrm_tasks.llm.training.mixture import Mixture, TaskShare
from csrm_tasks.llm.training.tasks import LabelTask, TranslationTask
from csrm_tasks.llm.training.train import TrainResult, train
from csrm_tasks.llm.translated import load_translated, translated_rows
from csrm_tasks.markets import MarketConfig

log = logging.getLogger("csrm")


@dataclass(frozen=True)
class FinetuneInputs:
    """What one training starts from."""

    snapshot: Path
    rqa: Path | None
    soft: Path | None
    arm: str
    round: int
    fold: int | None = None  # train on the pairs of this half of the queries only (A18)
    warm: Path | None = None  # the model whose adapter is the start instead of a fresh one
    ranker: bool = False  # it is to rank by conversion only (A21)
    pretraining: Path | None = None  # stage 0's adapter, merged into the base
    filtered: Path | None = None  # what the filter has decided about the train pairs (A39)
    negatives: Path | None = None  # irrelevant pairs that nobody judged (A38)
    translated: Path | None = None  # train pairs with translated queries (A37)


@dataclass(frozen=True)
class Finetuned:
    """What one training found; the files are in the output folder."""

    facts: dict[str, Any]
    params: dict[str, Any]
    curves: Curves


@dataclass(frozen=True)
class _Data:
    """All rows of one training."""

    train: LabelRows  # what people judged
    grades: npt.NDArray[np.int64]  # human, of the train rows
    negatives: LabelRows
    misspelt: LabelRows
    translated: LabelRows
    cvr: LabelRows
    translations: TranslationRows
    dev: pl.DataFrame
    source_dev: pl.DataFrame
    fields: Fields
    parallel: ParallelPairs  # held-out translations (A44)


def finetune(market: MarketConfig, given: FinetuneInputs, out: Path, work: Path) -> Finetuned:
    """Train, and write ``adapter/ llm.json dev_scores.parquet curves.json`` below ``out``.

    And a copy of stage 0's adapter, ``pretraining/``, if that is what it starts from.
    """
    config = market.llm
    data = _load(market, given)
    model = load_base(config.base, sharded=config.sharding == "full", pretraining=given.pretraining)
    add_lora(model, config.lora, market.seed)
    if given.warm is not None:
        start_from(model, given.warm)
    if config.gradient_checkpointing:
        checkpoint_activations(model.causal)
    encoder = PromptEncoder(model.tokenizer, config.max_length, product_form(config))
    mixture = _mixture(market, data, model, encoder)
    dev = Judge(model, encoder, relevance_rows(data.fields, data.dev))
    result = train(model, mixture, config, market.seed, dev.score, work, config.checkpoint_seconds)
    set_adapter_state(model, result.adapter)
    save_adapter(model, result.adapter, out / "adapter")
    if given.pretraining is not None:
        shutil.copytree(given.pretraining, out / PRETRAINING)
    card = LlmCard(
        base=config.base,
        base_digest=model.base_digest,
        label_ids={name: ids.tolist() for name, ids in model.labels.items()},
        max_length=config.max_length,
        rqa=given.rqa is not None,
        precision=model.precision,
        arm=given.arm,
        round=given.round,
        product_fields=config.product_fields,
        category_levels=config.category_levels,
        pretraining=model.pretraining,
    )
    card.write(out)
    (out / "curves.json").write_text(json.dumps(result.curves), encoding="utf-8")
    # A real base takes minutes over dev: where the last state is the best, it was just scored.
    known = dev.last if result.best_step == result.progress.step else None
    probabilities = dev.probabilities() if known is None else known
    write_dev_scores(data.dev, probabilities, out)
    facts = _fit(data, model, encoder, given.ranker and config.mixture.cvr > 0)
    facts |= _facts(data, result, model, encoder)  # then: it counts what was cut
    if encoder.truncated:
        log.warning(
            "%d times a prompt was longer than llm.max_length (%d tokens): product text was cut "
            "from its end", encoder.truncated, config.max_length,
        )  # fmt: skip
    return Finetuned(facts, _params(market, model, data), result.curves)


def _load(market: MarketConfig, given: FinetuneInputs) -> _Data:
    fields = load_fields(given.snapshot, given.rqa)
    pairs = load_pairs(given.snapshot, "train")
    if given.fold is not None:
        pairs = in_fold(pairs, given.fold)
    if pairs.is_empty():
        raise DataError("the snapshot has no train pairs; ingest labels before training")
    weights = None
    if given.filtered is not None:
        pairs, weights = weighted(pairs, given.filtered)
        if pairs.is_empty():
            raise DataError("the filter has left no train pair; look at its decisions.parquet")
    source, target = market.source_locale, market.target_locale
    dev, source_dev = selection_dev(given.snapshot, source, target)
    alpha, smoothing = market.llm.distillation.alpha, market.llm.label_smoothing
    if given.soft is None:
        targets = human_targets(pairs, smoothing)
    else:
        targets = distilled_targets(pairs, given.soft, alpha, smoothing)
    rows = replace(relevance_rows(fields, pairs, targets), weights=weights)
    return _Data(
        rows,
        pairs["grade"].to_numpy().astype(np.int64),
        _negatives(fields, given, market.llm.negatives.weight),
        misspelt_rows(fields, pairs, rows, market.llm.misspelt_share, market.seed),
        translated_rows(
            fields,
            load_translated(given.snapshot, given.translated),
            rows,
            market.llm.augmentation.weight,
        ),
        cvr_rows(fields, given.snapshot),
        translation_rows(given.snapshot, source, target),
        dev,
        source_dev,
        fields,
        parallel_pairs(load_translations(given.snapshot, "dev")),
    )


def _negatives(fields: Fields, given: FinetuneInputs, weight: float) -> LabelRows:
    """Return what was drawn for the train queries, of this half only where cross-fitting (A38)."""
    found = load_negatives(given.snapshot, given.negatives)
    if given.fold is not None:
        found = in_fold(found, given.fold)
    return negative_rows(fields, found, weight)


def _mixture(market: MarketConfig, data: _Data, model: Model, encoder: PromptEncoder) -> Mixture:
    config, seed = market.llm, market.seed
    shares = config.mixture
    label_task = partial(
        LabelTask, model, encoder=encoder, rqa_dropout=config.rqa_dropout, siblings=config.siblings
    )
    relevance = joined(data.train, data.negatives, data.misspelt, data.translated)
    parts = [TaskShare(label_task(rows=relevance, seed=seed), 1.0)]
    if len(data.translations):
        task = TranslationTask(model, data.translations, encoder, seed + 1)
        parts.append(TaskShare(task, shares.mt, shares.mt_weight))
        if config.augmentation.translator == "llm":  # which is asked the way back, too (A37)
            back = TranslationTask(model, data.translations.turned(), encoder, seed + 3, "mt_back")
            parts.append(TaskShare(back, shares.mt, shares.mt_weight))
    if len(data.cvr):
        cvr = label_task(rows=data.cvr, seed=seed + 2)
        parts.append(TaskShare(cvr, shares.cvr, shares.cvr_weight))
    log.info(
        "training on %d judged pairs, %d negatives, %d pairs of misspelt and %d of translated "
        "queries, %d translations, %d conversion examples",
        len(data.train), len(data.negatives), len(data.misspelt), len(data.translated),
        len(data.translations), len(data.cvr),
    )  # fmt: skip
    return Mixture(parts, config.batch, seed)


def _facts(
    data: _Data, result: TrainResult, model: Model, encoder: PromptEncoder
) -> dict[str, Any]:
    progress = result.progress
    seconds = max(progress.seconds, 1e-9)
    source = Judge(model, encoder, relevance_rows(data.fields, data.source_dev))
    return (
        dev_figures(result.dev, data.dev, source, data.source_dev)
        | {
            "steps": progress.step,
            "best_step": result.best_step,
            "micro_batch": progress.micro_batch,
            "halved_at": progress.halved_at,
            "seconds": round(progress.seconds, 3),
            "samples_per_second": round(progress.samples / seconds, 1),
            "tokens_per_second": round(progress.tokens / seconds, 1),
            "train_pairs": len(data.train),
            "negatives": len(data.negatives),
            "misspelt_pairs": len(data.misspelt),
            "translated_pairs": len(data.translated),
            "translations": len(data.translations),
            "conversions": len(data.cvr),
            "truncated": encoder.truncated,
        }
        | measure_transfer(model, encoder, data.parallel)
    )


def _fit(data: _Data, model: Model, encoder: PromptEncoder, converts: bool) -> dict[str, Any]:
    """Return :func:`fit` of the task that the model is for; ``converts``: to rank by conversion."""
    if converts and len(data.cvr):
        return fit(model, encoder, data.cvr, data.cvr.targets.argmax(axis=1).astype(np.int64))
    return fit(model, encoder, data.train, data.grades)


def _params(market: MarketConfig, model: Model, data: _Data) -> dict[str, Any]:
    """Flatten the configuration for MLflow."""
    config = market.llm
    sections = ("lora", "pretraining", "mixture", "distillation", "negatives", "augmentation")
    flat = config.model_dump(mode="json", exclude={*sections})
    for name in sections:
        section = getattr(config, name).model_dump(mode="json")
        flat |= {f"{name}.{key}": value for key, value in section.items()}
    return flat | {
        "seed": market.seed,
        "precision": model.precision,
        "trainable": sum(p.numel() for p in model.causal.parameters() if p.requires_grad),
        "base_digest": model.base_digest[:16],
        "dev_locale": data.dev["locale"][0],
    }
