"""Stage 0 of the relevance LLM: continued pre-training on the market's texts, before any label.

A small base that has hardly seen a market's language learns its titles and queries as they stand
in prompts, and translations in both directions (:mod:`csrm_tasks.llm.corpus`), by the loop of every
training. What comes out is an adapter, not a copy of the base: every later training merges it into
the base while it is loaded (:func:`csrm_tasks.llm.network.model.load_base`) and puts a fresh one on
top (A17). That is a hundredth of the bytes, the base stays the one that
``csrm base`` keeps, checks and identifies, and a release's LLM is told by two digests. Each
trained model holds its own copy in ``pretraining/``: whoever scores, exports or retrains with it
needs no other artifact, and nothing can be pruned from under it.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from accelerate.utils.memory import clear_device_cache

from csrm_tasks.llm.corpus import Corpus, Text, load_corpus
from csrm_tasks.llm.data import TranslationRows
from csrm_tasks.llm.network.identity import PRETRAINING, PretrainingCard, pretraining_settings
from csrm_tasks.llm.network.model import (
    Model,
    add_lora,
    checkpoint_activations,
    load_base,
    save_adapter,
)
from csrm_tasks.llm.prompt.encoding import Ids, PromptEncoder
from csrm_tasks.llm.prompt.prompts import product_form
from csrm_tasks.llm.training.finetune import Finetuned
from csrm_tasks.llm.training.mixture import Mixture, TaskShare
from csrm_tasks.llm.training.tasks import translation_prompts
from csrm_tasks.llm.training.train import DevScore, TrainResult, train
from csrm_tasks.llm.training.windows import NOTHING, Sequences, WindowTask, mean_loss
from csrm_tasks.markets import MarketConfig
from csrm_tasks.sections import Llm

log = logging.getLogger("csrm")

WINDOWS = 8  # of a step, so that shares, passes and processes can cut it
NOTHING_LEARNT = 1e-3  # nats a token


@dataclass(frozen=True)
class PretrainInputs:
    """What stage 0 starts from."""

    snapshot: Path


def pretrain(market: MarketConfig, given: PretrainInputs, out: Path, work: Path) -> Finetuned:
    """Train, and write ``pretraining/ curves.json`` below ``out``; killed, it goes on as others do.

    The best adapter is that of the least loss on held-out titles, languages weighing the same. What
    is reported is the perplexity of the base with it merged, as later trainings find it: in bf16
    what is less than half a step of the number format is lost.
    """
    config, folder = _loop(market.llm), out / PRETRAINING
    corpus = load_corpus(given.snapshot, product_form(market.llm), market.evaluation_locales)
    before, trained = _learn(config, market.seed, corpus, folder, work)
    clear_device_cache(garbage_collection=True)  # one base at a time
    card = PretrainingCard(
        trained.params["base"],
        trained.params["base_digest"],
        trained.params["precision"],
        pretraining_settings(market.llm),
    )
    card.write(folder)
    figures = _perplexities(before, _merged_losses(config, corpus, folder))
    replace(card, figures=figures).write(folder)
    (out / "curves.json").write_text(json.dumps(trained.curves), encoding="utf-8")
    return replace(trained, facts=figures | trained.facts)


def _learn(
    config: Llm, seed: int, corpus: Corpus, folder: Path, work: Path
) -> tuple[dict[str, float], Finetuned]:
    """Write the best adapter to ``folder``; return the losses before, and the rest."""
    model = load_base(config.base, sharded=config.sharding == "full")
    add_lora(model, config.lora, seed)
    if config.gradient_checkpointing:
        checkpoint_activations(model.causal)
    encoder = PromptEncoder(model.tokenizer, window_of(config))
    held_out = _HeldOut(model, encoder, corpus)
    before = held_out.losses()
    mixture = _mixture(config, seed, corpus, model, encoder)
    seconds = config.checkpoint_seconds
    result = train(model, mixture, config, seed, held_out.score, work, seconds)
    save_adapter(model, result.adapter, folder)
    facts = _facts(result, corpus, encoder)
    return before, Finetuned(facts, _params(config, seed, model), result.curves)


def _merged_losses(config: Llm, corpus: Corpus, folder: Path) -> dict[str, float]:
    model = load_base(config.base, sharded=config.sharding == "full", pretraining=folder)
    encoder = PromptEncoder(model.tokenizer, window_of(config))
    return _HeldOut(model, encoder, corpus).losses()


def _loop(llm: Llm) -> Llm:
    """Return what the loop goes by: rate and steps of stage 0, and the rest of ``llm``."""
    own = {"steps": llm.pretraining.steps, "lr": llm.pretraining.lr}
    return Llm.model_validate(llm.model_dump() | own)


def window_of(llm: Llm) -> int:
    """Return the tokens of a window, and of a text: longer ones are cut."""
    return min(llm.max_length, llm.pretraining.tokens // WINDOWS)


class _HeldOut:
    """Measures the model as it is on titles that it does not learn from."""

    def __init__(self, model: Model, encoder: PromptEncoder, corpus: Corpus) -> None:
        self._model, self._tokens = model, WINDOWS * encoder.max_length
        # without an end: where a title stands in a text, its brand or category may follow
        self._titles = {
            locale: _texts(encoder, titles, NOTHING) for locale, titles in corpus.held_out.items()
        }

    def losses(self) -> dict[str, float]:
        """Return the mean loss of a token by locale, in nats."""
        return {k: mean_loss(self._model, t, self._tokens) for k, t in self._titles.items()}

    def score(self) -> DevScore:
        """Return their mean; the perplexities go into the curves."""
        losses = self.losses()
        shown = {f"perplexity_{k}": math.exp(loss) for k, loss in losses.items()}
        return DevScore(None, sum(losses.values()) / len(losses), shown)


def _mixture(
    config: Llm, seed: int, corpus: Corpus, model: Model, encoder: PromptEncoder
) -> Mixture:
    texts = _texts(encoder, corpus.texts, encoder.stop)
    translations = _translations(encoder, corpus.translations)
    share = config.pretraining.translations if len(translations) else 0.0
    window = encoder.max_length
    parts = [
        TaskShare(WindowTask("text", model, texts, window, seed), 1.0 - share),
        TaskShare(WindowTask("translation", model, translations, window, seed + 1), share),
    ]
    log.info("pre-training on %d texts and %d translations", len(texts), len(translations))
    return Mixture(parts, max(1, config.pretraining.tokens // window), seed)


def _texts(encoder: PromptEncoder, texts: Sequence[Text], stop: Ids) -> Sequences:
    encoder.tokenize(s for text in texts for s in text.segments)
    ids = []
    for text in texts:
        whole = np.concatenate([encoder.join(text.segments), stop])
        encoder.truncated += len(whole) > encoder.max_length
        ids.append(whole[: encoder.max_length])
    first = max(1, len(encoder.join(())))  # the start token is given
    names = ["".join(text.segments) for text in texts]
    return _sequences(ids, [first] * len(ids), [text.kind for text in texts], names)


def _translations(encoder: PromptEncoder, directions: Sequence[TranslationRows]) -> Sequences:
    prompts: list[tuple[Ids, Ids]] = []
    kinds: list[str] = []
    names: list[str] = []
    for rows in directions:
        prompts += translation_prompts(rows, encoder)
        kinds += rows.groups
        names += rows.sources
    ids = [np.concatenate(both) for both in prompts]
    return _sequences(ids, [len(before) for before, _ in prompts], kinds, names)


def _sequences(
    ids: Sequence[Ids], starts: Sequence[int], kinds: Sequence[str], names: Sequence[str]
) -> Sequences:
    """Return what has a token to tell."""
    kept = [i for i, (text, start) in enumerate(zip(ids, starts, strict=True)) if len(text) > start]
    return Sequences(
        [ids[i] for i in kept],
        np.asarray([starts[i] for i in kept], np.int64),
        np.asarray([kinds[i] for i in kept], np.str_),
        [f"{kinds[i]} {names[i]!r}" for i in kept],
    )


def _perplexities(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """Return what was learnt; says so where it was nothing."""
    figures = {}
    for locale, loss in before.items():
        figures[f"perplexity_before_{locale}"] = math.exp(loss)
        figures[f"perplexity_{locale}"] = math.exp(after[locale])
        log.info("%s: perplexity %.2f, was %.2f", locale, math.exp(after[locale]), math.exp(loss))
    if sum(before.values()) - sum(after.values()) < NOTHING_LEARNT * len(before):
        log.warning(
            "stage 0 taught nothing: the loss on held-out titles is not below the base's; change "
            "llm.pretraining.lr or steps, or set steps to 0"
        )
    return figures


def _facts(result: TrainResult, corpus: Corpus, encoder: PromptEncoder) -> dict[str, Any]:
    progress = result.progress
    seconds = max(progress.seconds, 1e-9)
    return {
        "steps": progress.step,
        "best_step": result.best_step,
        "micro_batch": progress.micro_batch,
        "halved_at": progress.halved_at,
        "seconds": round(progress.seconds, 3),
        "tokens": progress.tokens,
        "tokens_per_second": round(progress.tokens / seconds, 1),
        "texts": len(corpus.texts),
        "translations": sum(map(len, corpus.translations)),
        "held_out": {locale: len(titles) for locale, titles in corpus.held_out.items()},
        "truncated": encoder.truncated,
    }


def _params(config: Llm, seed: int, model: Model) -> dict[str, Any]:
    stage, lora = config.pretraining.model_dump(mode="json"), config.lora.model_dump(mode="json")
    return (
        stage
        | {f"lora.{key}": value for key, value in lora.items()}
        | {
            "base": config.base,
            "base_digest": model.base_digest,
            "seed": seed,
            "precision": model.precision,
            "trainable": sum(p.numel() for p in model.causal.parameters() if p.requires_grad),
        }
    )
