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
from csrm_tasks.llm.prompt.batching import pad
from csrm_tasks.llm.prompt.encoding import Ids, PromptEncoder
from csrm_tasks.llm.prompt.prompts import RELEVANCE, ProductFields, QueryFields
from csrm_tasks.llm.scoring.predict import Floats, label_probabilities
from csrm_tasks.llm.scoring.scoring import load_own_base

log = logging.getLogger("csrm")

TOLERANCE = 1e-3  # largest |Δp| against the adapter on the probe pairs
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
    pairs, aligned; ``precision`` is fp32 or bf16, by default the one that it was trained in.
    Raises :class:`ArtifactError` where a probability moves by more than :data:`TOLERANCE`, and
    :class:`ConfigError` for a base that has no such form.
    """
    card = read_card(llm)
    precision = precision or card.precision
    if precision not in DTYPES:
        raise ConfigError(f"precision is fp32 or bf16, not {precision!r}")
    model = load_own_base(card, llm)
    encoder = PromptEncoder(model.tokenizer, card.max_length)
    encoder.prepare(RELEVANCE, queries, products)
    parts = [encoder.parts(RELEVANCE, q, p) for q, p in zip(queries, products, strict=True)]
    put_adapter(model, llm / "adapter")
    expected = label_probabilities(model, parts, RELEVANCE.name)

    merged = replace(load_own_base(card, llm), dtype=DTYPES[precision])
    merge_adapter(merged, llm / "adapter")
    architecture, padding = write_classifier(merged, encoder, out / "model")
    replace(card, precision=precision).write(out)
    del merged, model
    exported = classify(out / "model", [np.concatenate(part) for part in parts])
    delta = float(np.abs(exported - expected).max(initial=0.0))
    if not delta <= TOLERANCE:  # also when it is NaN
        raise ArtifactError(
            f"{llm}: merged in {precision}, a probability differs by {delta:.2g} from the "
            f"adapter's on {len(parts)} probe pairs, more than {TOLERANCE}; export in fp32"
        )
    log.info("exported %s in %s: largest |Δp| %.2g", architecture, precision, delta)
    return Exported(architecture, precision, padding, delta, len(parts))


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


def classify(folder: Path, prompts: Sequence[Ids]) -> Floats:
    """Return (N, 3) probabilities of the written classifier, loaded as anybody would load it."""
    model: Any = AutoModelForSequenceClassification.from_pretrained(str(folder), dtype="auto")
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
    kept = ("base", "base_digest", "label_ids", "prompt_version", "temperature", "max_length")
    return {name: getattr(card, name) for name in kept} | vars(exported)
