"""Label probabilities of many pairs, without gradients; a query's prefix is computed once (A12).

Pairs are taken in groups of queries whose prefixes have the same number of tokens. The trunk runs
over the prefixes of a group and keeps keys and values; then over the products, in batches of one
length, each row beginning with the keys and values of its query. With a prefix of 35 tokens, 25
tokens of product and 20 products a query that is less than half of the tokens. Queries with a
single product would only pay for a second pass, so they go through in one.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import DynamicCache

from csrm_tasks.llm.batching import Indices, pad
from csrm_tasks.llm.encoding import Ids, PromptEncoder
from csrm_tasks.llm.head import label_logits, run_to_last
from csrm_tasks.llm.model import Model
from csrm_tasks.llm.prompts import LabelSpace, ProductFields, QueryFields

Floats = npt.NDArray[np.float32]
Parts = Sequence[tuple[Ids, Ids]]  # per pair: the query's tokens, the rest

TOKENS = 2048  # of one batch, padding included; small enough for a core's cache
SHARE_FROM = 2.0  # products per query from which the prefix is shared


def predict(
    model: Model,
    encoder: PromptEncoder,
    space: LabelSpace,
    queries: Sequence[QueryFields],
    products: Sequence[ProductFields],
) -> Floats:
    """Return (N, K) probabilities at temperature 1, dropout off (A16); pairs are aligned."""
    encoder.prepare(space, queries, products)
    parts = [encoder.parts(space, q, p) for q, p in zip(queries, products, strict=True)]
    return label_probabilities(model, parts, space.name)


def label_probabilities(model: Model, parts: Parts, space: str) -> Floats:
    """Return (N, K) probabilities of the labels of ``space`` from prompts as token ids."""
    training = model.causal.training
    model.causal.eval()
    labels = model.labels[space]
    found = np.empty((len(parts), len(labels)), np.float32)
    owners = {prefix.tobytes() for prefix, _ in parts}
    batches = _shared if len(parts) >= SHARE_FROM * len(owners) else _whole
    with torch.inference_mode():
        for at, hidden in batches(model, parts):
            logits = label_logits(model.causal, hidden, labels)
            found[at] = logits.softmax(-1).cpu().numpy()
    model.causal.train(training)
    return found


def _whole(model: Model, parts: Parts) -> Iterator[tuple[Indices, Tensor]]:
    """Yield positions and their last hidden states, each prompt run from its start."""
    lengths = np.asarray([len(a) + len(b) for a, b in parts], np.int64)
    for at in by_length(lengths, TOKENS):
        ids, ends = pad([np.concatenate(parts[i]) for i in at], model.device)
        yield at, run_to_last(model.causal, ids, ends)


def _shared(model: Model, parts: Parts) -> Iterator[tuple[Indices, Tensor]]:
    """Yield positions and their last hidden states, prefixes run once per query."""
    prefixes: dict[bytes, list[int]] = {}
    for i, (prefix, _) in enumerate(parts):
        prefixes.setdefault(prefix.tobytes(), []).append(i)
    groups: dict[int, list[list[int]]] = {}
    for members in prefixes.values():
        groups.setdefault(len(parts[members[0]][0]), []).append(members)
    for length, group in groups.items():
        step = max(1, TOKENS // length)
        for start in range(0, len(group), step):
            yield from _group(model, parts, group[start : start + step])


def _group(
    model: Model, parts: Parts, group: Sequence[Sequence[int]]
) -> Iterator[tuple[Indices, Tensor]]:
    """Score the pairs of some queries whose prefixes are equally long."""
    ids, _ = pad([parts[members[0]][0] for members in group], model.device)
    cache = DynamicCache(config=model.causal.config)
    model.causal.base_model(input_ids=ids, past_key_values=cache, use_cache=True)
    positions = np.asarray([i for members in group for i in members], np.int64)
    owners = np.repeat(np.arange(len(group)), [len(members) for members in group])
    lengths = np.asarray([len(parts[i][1]) for i in positions], np.int64)
    for at in by_length(lengths, TOKENS):
        ids, ends = pad([parts[i][1] for i in positions[at]], model.device)
        rows = torch.from_numpy(owners[at]).to(model.device)
        kept = _select(cache, rows)
        yield (
            positions[at],
            run_to_last(model.causal, ids, ends, past_key_values=kept, use_cache=True),
        )


def _select(cache: Any, rows: Tensor) -> Any:
    """Return a cache with one row per element of ``rows``; ``cache`` stays as it is."""
    chosen = copy.copy(cache)
    chosen.layers = [copy.copy(layer) for layer in cache.layers]
    chosen.batch_select_indices(rows)
    return chosen


def by_length(lengths: Indices, tokens: int) -> Iterator[Indices]:
    """Cut positions into batches of similar length and at most ``tokens`` padded tokens each."""
    order = np.argsort(-lengths, kind="stable")  # the longest first: running out of memory shows
    start = 0
    while start < len(order):
        size = max(1, tokens // int(lengths[order[start]]))
        yield order[start : start + size]
        start += size
