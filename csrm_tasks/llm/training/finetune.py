"""One training of the relevance LLM, from a snapshot's tables to the files of its artifact."""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from csrm_tasks.llm.data import (
    languages,
    relevance_rows,
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
from csrm_tasks.llm.prompt.known import refuse_unknown
from csrm_tasks.llm.prompt.prompts import product_form
from csrm_tasks.llm.scoring.predict import Floats
from csrm_tasks.llm.scoring.transfer import measure_transfer
from csrm_tasks.llm.training.checkpoint import Curves
from csrm_tasks.llm.training.inputs import (
    FinetuneInputs,
    TrainingData,
    load_training_data,
    mixture_of,
)
from csrm_tasks.llm.training.judge import Judge, dev_figures, write_dev_scores
from csrm_tasks.llm.training.learnt import fit
from csrm_tasks.llm.training.task_judge import TaskJudge
from csrm_tasks.llm.training.train import TrainResult, train
from csrm_tasks.markets import MarketConfig

log = logging.getLogger("csrm")


@dataclass(frozen=True)
class Finetuned:
    """What one training found; the files are in the output folder."""

    facts: dict[str, Any]
    params: dict[str, Any]
    curves: Curves


def finetune(market: MarketConfig, given: FinetuneInputs, out: Path, work: Path) -> Finetuned:
    """Train, and write ``adapter/ llm.json dev_scores.parquet curves.json`` below ``out``.

    And a copy of stage 0's adapter, ``pretraining/``, if that is what it starts from.
    """
    config = market.llm
    data = load_training_data(market, given)
    model = load_base(config.base, sharded=config.sharding == "full", pretraining=given.pretraining)
    add_lora(model, config.lora, market.seed)
    if given.warm is not None:
        start_from(model, given.warm)
    if config.gradient_checkpointing:
        checkpoint_activations(model.causal)
    encoder = PromptEncoder(model.tokenizer, config.max_length, product_form(config))
    mixture = mixture_of(market, data, model, encoder)
    refuse_unknown(encoder, data.fields.titles())
    dev = Judge(model, encoder, relevance_rows(data.fields, data.dev))
    judge = TaskJudge(model, encoder, data.task_dev, market.target_locale) if data.tasks else None
    score = judge.score if judge is not None and not len(data.train) else dev.score
    result = train(model, mixture, config, market.seed, score, work, config.checkpoint_seconds)
    set_adapter_state(model, result.adapter)
    save_adapter(model, result.adapter, out / "adapter")
    if given.pretraining is not None:
        shutil.copytree(given.pretraining, out / PRETRAINING)
    card = LlmCard(
        base=config.base,
        base_digest=model.base_digest,
        label_ids={name: model.labels[name].tolist() for name in data.spaces},
        max_length=config.max_length,
        rqa=given.rqa is not None,
        precision=model.precision,
        arm=given.arm,
        round=given.round,
        product_fields=config.product_fields,
        category_levels=config.category_levels,
        pretraining=model.pretraining,
        pivot=data.fields.pivot,
    )
    card.write(out)
    (out / "curves.json").write_text(json.dumps(result.curves), encoding="utf-8")
    # A real base takes minutes over dev: where the last state is the best, it was just scored.
    is_last = result.best_step == result.progress.step
    probabilities = None
    if len(data.train):
        known = dev.last if is_last else None
        probabilities = dev.probabilities() if known is None else known
        write_dev_scores(data.dev, probabilities, out)
    said = {} if judge is None else judge.write(out, judge.last if is_last else None)
    facts = said | _fit(data, model, encoder, given.ranker and config.mixture.cvr > 0)
    facts |= _facts(data, result, probabilities, model, encoder)  # then: it counts what was cut
    if encoder.truncated:
        log.warning(
            "%d times a prompt was longer than llm.max_length (%d tokens): product text was cut "
            "from its end", encoder.truncated, config.max_length,
        )  # fmt: skip
    return Finetuned(facts, _params(market, model, data), result.curves)


def _facts(
    data: TrainingData,
    result: TrainResult,
    dev: Floats | None,
    model: Model,
    encoder: PromptEncoder,
) -> dict[str, Any]:
    progress = result.progress
    seconds = max(progress.seconds, 1e-9)
    source = Judge(model, encoder, relevance_rows(data.fields, data.source_dev))
    return (
        dev_figures(result.dev, data.dev, dev, source, data.source_dev)
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
            **{f"{rows.space.name}_pairs": len(rows) for rows in data.tasks},
            "truncated": encoder.truncated,
        }
        | measure_transfer(model, encoder, data.parallel)
    )


def _fit(
    data: TrainingData, model: Model, encoder: PromptEncoder, converts: bool
) -> dict[str, Any]:
    """Return :func:`fit` of the task that the model is for; ``converts``: to rank by conversion."""
    if converts and len(data.cvr):
        return fit(model, encoder, data.cvr, data.cvr.targets.argmax(axis=1).astype(np.int64))
    return fit(model, encoder, *data.labels)


def _params(market: MarketConfig, model: Model, data: TrainingData) -> dict[str, Any]:
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
        "dev_locale": languages(data.dev),
    }
