"""Vocabulary trimming (A61): a base with the rows of a market's tokens only.

Of Gemma 3 270M 168 of 268 million weights are the table of its 262,144 tokens, of e5-small 96 of
117; a market uses a tenth. What is kept is numbered anew, in the order that it had, and rows of the
table and of the head are cut to it. Nothing else of the model changes, so hidden states of the
market's texts are the same numbers, and log-probabilities are the whole model's over the kept
tokens, renormalised. Both are checked on some of the texts before the new base appears.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import ModuleList, functional
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerFast

from csrm_tasks.artifacts import json_digest
from csrm_tasks.base_models import base_digest
from csrm_tasks.bases.landing import land
from csrm_tasks.bases.models import load_model
from csrm_tasks.bases.record import (
    CAUSAL,
    LICENCE,
    BaseRecord,
    Trimmed,
    describe,
    read_record,
)
from csrm_tasks.bases.sources import copy_licence
from csrm_tasks.bases.texts import MarketTexts, encoder_texts, prompt_texts
from csrm_tasks.bases.vocabulary import AT_ONCE, Cut, check_same_tokens, cut_tokenizer
from csrm_tasks.errors import ArtifactError, ConfigError

EQUAL = 1e-5  # of log-probabilities, and of an encoder's states
PROBES = 8  # texts on which the cut model is compared with the whole one …
PROBE_TOKENS = 64  # … and the tokens of each
SPECIAL_IDS = ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "mask_token_id",
               "sep_token_id", "cls_token_id", "decoder_start_token_id")  # fmt: skip


def trim_base(
    folder: Path,
    place: Path,
    market: str,
    texts: MarketTexts,
    *,
    prefixes: Collection[str] = (),
    layers: int | None = None,
) -> Iterator[str]:
    """Cut the kept base of ``folder`` to a market's texts, and land it as ``place``; yields lines.

    ``prefixes`` are what the market's encoders read before a text. ``layers``: keep the first so
    many only; None: all. Raises :class:`ConfigError` for what cannot be cut, :class:`ArtifactError`
    where the result is not equal to the whole base of as many layers on the market's texts.
    """
    record = read_record(folder)
    if record.trimmed is not None:
        raise ConfigError(f"base {folder.name} is trimmed already; trim the base it was cut from")
    record.check(folder)
    check_layers(folder, layers)
    root = base_digest(str(folder))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    read = prompt_texts(texts) if record.kind == CAUSAL else encoder_texts(texts, prefixes)
    cut = cut_tokenizer(
        tokenizer.backend_tokenizer, used_tokens(tokenizer, read), read,
        roles_of(tokenizer).values(),
    )  # fmt: skip
    check_same_tokens(lambda chunk: tokenizer(chunk)["input_ids"], cut, read)
    tokens = json_digest(cut.kept)
    trimmed = Trimmed(root, market, record.vocabulary, cut.reasons, tokens, len(read), layers)

    def build(part: Path) -> BaseRecord:
        some = read[:: max(len(read) // PROBES, 1)]
        probes = [tokenizer(text)["input_ids"][:PROBE_TOKENS] for text in some if text]
        cut_model(folder, part, record.kind, cut, probes, layers)
        save_tokenizer(tokenizer, cut, part)
        copy_licence(folder / LICENCE, part)
        return describe(part, record.origin, trimmed)

    added = land(place.parent, place.name, lambda found: found.trimmed == trimmed, build)
    new = read_record(place)
    yield f"{place}: {'trimmed' if added else 'is there already'}"
    yield (
        f"tokens {record.vocabulary:,} → {new.vocabulary:,} "
        f"({', '.join(f'{reason} {n:,}' for reason, n in cut.reasons.items())}; "
        f"{len(read):,} texts)"
    )
    if layers is not None:
        yield f"layers: the first {layers}"
    yield (
        f"parameters {record.parameters / 1e6:,.1f} M → {new.parameters / 1e6:,.1f} M; bytes "
        f"{sum(f['size'] for f in record.files):,} → {sum(f['size'] for f in new.files):,}"
    )


def used_tokens(tokenizer: Any, texts: Sequence[str]) -> set[int]:
    """Return every token of the texts, special ones included."""
    found: set[int] = set()
    for start in range(0, len(texts), AT_ONCE):
        for ids in tokenizer(list(texts[start : start + AT_ONCE]))["input_ids"]:
            found.update(ids)
    return found


def cut_model(
    folder: Path,
    part: Path,
    kind: str,
    cut: Cut,
    probes: Sequence[Sequence[int]],
    layers: int | None = None,
) -> None:
    """Write the model of ``folder`` with the kept rows and layers only to ``part``.

    ``probes``: texts as tokens of the whole vocabulary. Raises :class:`ArtifactError` where states
    or log-probabilities differ by more than :data:`EQUAL`.
    """
    with torch.inference_mode():
        model = load_model(folder, kind)
        if layers is not None:
            cut_layers(model, layers)
        kept = torch.tensor(cut.kept)
        new_ids = {old: new for new, old in enumerate(cut.kept)}
        before = [_read_out(model, list(ids), kept) for ids in probes]
        cut_rows(model, kept)
        renumber(model, new_ids)
        every = torch.arange(len(kept))
        for ids, expected in zip(probes, before, strict=True):
            found = _read_out(model, [new_ids[i] for i in ids], every)
            worst = float((found - expected).abs().max())
            if not worst <= EQUAL:  # also when it is NaN
                raise ArtifactError(
                    f"the cut model differs by {worst:.3g} from the whole one; not trimmed"
                )
    model.save_pretrained(part)


def _read_out(model: Any, ids: list[int], rows: Tensor) -> Tensor:
    """Return log-probabilities over ``rows`` (T, K) in fp32; of an encoder its states (T, H)."""
    probe = torch.tensor([ids])
    head = model.get_output_embeddings()
    if head is None:
        states: Tensor = model(input_ids=probe).last_hidden_state[0].float()
        return states
    hidden = model.base_model(input_ids=probe, use_cache=False).last_hidden_state[0]
    bias = None if head.bias is None else head.bias[rows].float()
    logits = functional.linear(hidden.float(), head.weight[rows].float(), bias)
    return functional.log_softmax(logits, dim=-1)


def check_layers(folder: Path, layers: int | None) -> None:
    """Raise :class:`ConfigError` where the base of ``folder`` has no ``layers`` to keep."""
    config = AutoConfig.from_pretrained(folder)
    most = getattr(config, "num_hidden_layers", None)
    if layers is not None and (most is None or not 0 < layers <= most):
        raise ConfigError(f"base {folder.name} has {most} layers; keep 1 to {most}, not {layers}")


def cut_layers(model: Any, layers: int) -> None:
    """Leave the model its first ``layers`` layers, in place; the last norm stays behind them.

    What the upper ones add is knowledge of the next word; a classifier with some thousand labels
    learns sooner without (docs/BASES.md).
    """
    stack = next(
        (m for m in model.modules() if isinstance(getattr(m, "layers", None), ModuleList)), None
    )
    name = "layers"
    if stack is None:
        name = "layer"
        stack = next(m for m in model.modules() if isinstance(getattr(m, name, None), ModuleList))
    setattr(stack, name, getattr(stack, name)[:layers])
    model.config.num_hidden_layers = layers
    kinds = getattr(model.config, "layer_types", None)
    if kinds is not None:
        model.config.layer_types = kinds[:layers]


def cut_rows(model: Any, kept: Tensor) -> None:
    """Leave the input table and, of a causal model, the head the rows ``kept``, in place."""
    table, head = model.get_input_embeddings(), model.get_output_embeddings()
    tied = head is not None and head.weight is table.weight
    table.weight = _rows(table.weight, kept)
    table.num_embeddings = len(kept)
    if table.padding_idx is not None:
        table.padding_idx = {old: i for i, old in enumerate(kept.tolist())}.get(table.padding_idx)
    if head is not None:
        head.weight = table.weight if tied else _rows(head.weight, kept)
        head.out_features = len(kept)
        if head.bias is not None:
            head.bias = _rows(head.bias, kept)
    model.config.vocab_size = len(kept)


def _rows(weight: Tensor, kept: Tensor) -> torch.nn.Parameter:
    return torch.nn.Parameter(weight[kept].clone(), requires_grad=False)


def renumber(model: Any, new_ids: dict[int, int]) -> None:
    """Give the ids of special tokens in the model's configurations their new numbers."""
    for config in (model.config, getattr(model, "generation_config", None)):
        for name in SPECIAL_IDS:
            old = getattr(config, name, None)
            if isinstance(old, int):
                setattr(config, name, new_ids.get(old))
            elif isinstance(old, list):
                setattr(config, name, [new_ids[i] for i in old if i in new_ids] or None)


def roles_of(tokenizer: Any) -> dict[str, str]:
    """Return the special tokens that have a role: start, end, padding, …; not those of a chat."""
    found = tokenizer.special_tokens_map.items()
    return {role: str(token) for role, token in found if not isinstance(token, list | tuple)}


def save_tokenizer(whole: Any, cut: Cut, part: Path) -> None:
    """Write the cut tokenizer with the roles and limits of the whole one."""
    roles: dict[str, Any] = roles_of(whole)
    PreTrainedTokenizerFast(
        tokenizer_object=cut.tokenizer, model_max_length=whole.model_max_length,
        model_input_names=whole.model_input_names, padding_side=whole.padding_side,
        clean_up_tokenization_spaces=False, **roles,
    ).save_pretrained(part)  # fmt: skip
