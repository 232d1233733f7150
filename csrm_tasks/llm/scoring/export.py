"""Export: the adapter merged into its base, as a plain 3-label sequence classifier (A14).

``…ForSequenceClassification`` of transformers pools the last token that is no padding and
multiplies by ``score.weight``; with the label rows of ``lm_head`` there, its logits are the
label-row head's (A2), and any server of such models loads the folder as it is. Probabilities are
those at temperature 1; ``llm.json`` beside the model has the temperature (A30), the prompt version
and the label ids.

A server has to be sent token ids, joined from segments as
:class:`csrm_tasks.llm.prompt.encoding.PromptEncoder` does: a tokenizer may join words across
borders.
"""

from __future__ import annotations

import copy
import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification

from csrm_tasks.errors import ArtifactError, ConfigError
from csrm_tasks.llm.network.identity import LlmCard, read_card
from csrm_tasks.llm.network.model import Model, merge_adapter, put_adapter
from csrm_tasks.llm.network.packed import Parts
from csrm_tasks.llm.prompt.batching import pad
from csrm_tasks.llm.prompt.encoding import Ids, PromptEncoder
from csrm_tasks.llm.prompt.prompts import RELEVANCE, ProductFields, QueryFields
from csrm_tasks.llm.scoring.predict import Floats, label_probabilities
from csrm_tasks.llm.scoring.scoring import load_own_base
from csrm_tasks.training.precision import cast

log = logging.getLogger("csrm")

TOLERANCE = 1e-3  # largest |Δp| against the adapter on the probe pairs, in fp32 (A14)
SAME = 1e-4  # largest |Δp| between two runs of the same weights in fp32
NAMES = ("irrelevant", "substitute", "exact")  # of grades 0, 1, 2
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
PROBE_BATCH = 8  # prompts of different lengths, so that padding is tried


@dataclass(frozen=True)
class Exported:
    """What was written, and how near to the adapter it is."""

    architecture: str
    precision: str
    pad_token_id: int
    max_delta: float  # largest |Δp| on the probe pairs
    probed: int


def export_classifier(
    llm: Path,
    queries: Sequence[QueryFields],
    products: Sequence[ProductFields],
    out: Path,
    precision: str = "",
) -> Exported:
    """Write ``model/`` (weights, tokenizer) and ``llm.json`` below ``out``, and compare them.

    ``llm`` is an artifact of ``train_llm`` or ``select_llm``; queries and products are the probe
    pairs, aligned. ``precision`` is fp32 or bf16; by default the one that it was trained in where
    that keeps to :data:`TOLERANCE`, else fp32. What it is compared with is computed in fp32: the
    arithmetic of bf16 alone moves a probability by more than the tolerance.

    Raises :class:`ArtifactError` where a probability moves by more than that, or the model merged
    in memory, as scoring merges it, is not the one in the file; :class:`ConfigError` for a base
    that has no such form.
    """
    card = read_card(llm)
    precisions = [precision] if precision else list(dict.fromkeys([card.precision, "fp32"]))
    if precisions[0] not in DTYPES:
        raise ConfigError(f"precision is fp32 or bf16, not {precision!r}")
    probe = _probe(card, llm, queries, products)
    for tried in precisions:
        found = _export(card, llm, probe, out, tried)
        if found.max_delta <= TOLERANCE:  # not when it is NaN
            log.info(
                "exported %s in %s: largest |Δp| %.2g", found.architecture, tried, found.max_delta
            )
            return found
        reason = (
            f"{llm}: merged in {tried}, a probability differs by {found.max_delta:.2g} from the "
            f"adapter's on {found.probed} probe pairs, more than {TOLERANCE}"
        )
        log.info("%s", reason)
    remedy = "train again" if tried == "fp32" else "export in fp32"
    raise ArtifactError(f"{reason}; {remedy}")


@dataclass(frozen=True)
class _Probe:
    """Prompts, and what base and adapter say of them in fp32, (N, 3)."""

    encoder: PromptEncoder
    parts: Parts
    expected: Floats


def _probe(
    card: LlmCard, llm: Path, queries: Sequence[QueryFields], products: Sequence[ProductFields]
) -> _Probe:
    model = load_own_base(card, llm, torch.float32)
    encoder = PromptEncoder(model.tokenizer, card.max_length, card.product_form)
    encoder.prepare(RELEVANCE, queries, products)
    parts = [encoder.parts(RELEVANCE, q, p) for q, p in zip(queries, products, strict=True)]
    put_adapter(model, llm / "adapter")
    return _Probe(encoder, parts, label_probabilities(model, parts, RELEVANCE.name))


def _export(card: LlmCard, llm: Path, probe: _Probe, out: Path, precision: str) -> Exported:
    """Write it in one precision; return how far it is from the adapter."""
    folder = out / "model"
    shutil.rmtree(folder, ignore_errors=True)  # another precision is cut into other files
    merged = replace(load_own_base(card, llm, torch.float32), dtype=DTYPES[precision])
    merge_adapter(merged, llm / "adapter")
    architecture, padding = write_classifier(merged, probe.encoder, folder)
    replace(card, precision=precision).write(out)
    prompts = [np.concatenate(part) for part in probe.parts]
    _check_memory(llm, merged, probe.parts, classify(folder, prompts, "float32"))
    del merged
    delta = _largest(classify(folder, prompts), probe.expected)
    return Exported(architecture, precision, padding, delta, len(prompts))


def _check_memory(llm: Path, merged: Model, parts: Parts, written: Floats) -> None:
    """Compare the model in memory with the one that was written from it, both run in fp32.

    What is no weight is not in the file but made anew from the configuration when it is loaded
    (rotary frequencies), so a file may be right though the model that scoring merges is not. The
    same arithmetic for both, so that nothing but such a fault makes a difference.
    """
    cast(merged.causal, torch.float32)
    delta = _largest(label_probabilities(merged, parts, RELEVANCE.name), written)
    if not delta <= SAME:
        raise ArtifactError(
            f"{llm}: the merged model in memory differs by {delta:.2g} of a probability from the "
            "same weights loaded from their file, so its scores are not this model's; do not "
            "release it, and report base and versions"
        )


def _largest(found: Floats, expected: Floats) -> float:
    return float(np.abs(found - expected).max(initial=0.0))


def write_classifier(model: Model, encoder: PromptEncoder, folder: Path) -> tuple[str, int]:
    """Write a merged model as a classifier; return architecture and padding id.

    Raises :class:`ConfigError` where transformers has no such form of the base.
    """
    head = model.causal.get_output_embeddings()
    if head.bias is not None:
        raise ConfigError(f"llm.base {model.base!r} has a bias on lm_head, a classifier has none")
    config = copy.deepcopy(model.causal.config)
    config.num_labels = len(NAMES)
    config.id2label = dict(enumerate(NAMES))
    config.label2id = {name: i for i, name in enumerate(NAMES)}
    config.pad_token_id = _padding(model, encoder)
    config.tie_word_embeddings = False  # there is no lm_head
    try:
        with torch.device("meta"):  # its weights are those of the model at hand
            classifier: Any = AutoModelForSequenceClassification.from_config(config)
    except ValueError as e:
        raise ConfigError(
            f"transformers has no sequence classifier of model type {config.model_type!r}; "
            "choose another base model (llm.base)"
        ) from e
    setattr(classifier, classifier.base_model_prefix, model.causal.base_model)
    rows = head.weight[model.labels[RELEVANCE.name]].detach().clone()  # (3, H)
    classifier.score.weight = torch.nn.Parameter(rows, requires_grad=False)
    classifier.save_pretrained(str(folder))
    model.tokenizer.save_pretrained(str(folder))
    return type(classifier).__name__, config.pad_token_id


def _padding(model: Model, encoder: PromptEncoder) -> int:
    """Return the id that the classifier takes for padding: the last other one is read out."""
    tokenizer = model.tokenizer
    padding_id = tokenizer.pad_token_id
    chosen = int(tokenizer.eos_token_id if padding_id is None else padding_id)
    if chosen == encoder.slot[-1]:
        raise ConfigError(f"tokenizer {tokenizer.name_or_path!r} pads with the end of a prompt")
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(chosen)
    return chosen


def classify(folder: Path, prompts: Sequence[Ids], dtype: str = "auto") -> Floats:
    """Return (N, 3) probabilities of the written classifier, loaded as anybody would load it."""
    model: Any = AutoModelForSequenceClassification.from_pretrained(str(folder), dtype=dtype)
    model.eval()
    probabilities = np.empty((len(prompts), len(NAMES)), np.float32)
    with torch.inference_mode():
        for start in range(0, len(prompts), PROBE_BATCH):
            batch = prompts[start : start + PROBE_BATCH]
            ids, lengths = pad(batch, model.device)
            mask = torch.arange(ids.shape[1])[None] < lengths[:, None]
            ids = ids.masked_fill(~mask, model.config.pad_token_id)
            logits = model(input_ids=ids, attention_mask=mask.long()).logits
            probabilities[start : start + len(batch)] = logits.float().softmax(-1).numpy()
    return probabilities


def record(card: LlmCard, exported: Exported) -> dict[str, Any]:
    """Return what a registration has to say of the export."""
    kept = (
        "base", "base_digest", "pretraining", "label_ids", "prompt_version", "temperature",
        "max_length",
    )  # fmt: skip
    return {name: getattr(card, name) for name in kept} | vars(exported)
