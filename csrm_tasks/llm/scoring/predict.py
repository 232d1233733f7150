"""Label probabilities of many pairs, without gradients; a query's prefix is computed once (A12).

Prompts are packed into rows of a bounded number of tokens (:mod:`csrm_tasks.llm.network.packed`),
the products of a query one after the other. With a prefix of 35 tokens, 25 tokens of product and 20
products a query that is less than half of the tokens. A query whose products do not fit into one
row is run again at the start of the next one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from csrm_tasks.llm.network.head import label_logits
from csrm_tasks.llm.network.model import Model
from csrm_tasks.llm.network.packed import Parts, by_prefix, pack, run_packed
from csrm_tasks.llm.prompt.batching import Indices
from csrm_tasks.llm.prompt.encoding import PromptEncoder
from csrm_tasks.llm.prompt.prompts import LabelSpace, ProductFields, QueryFields

Floats = npt.NDArray[np.float32]

TOKENS = 2048  # of one row; small enough for a core's cache


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
    labels = model.labels[space]
    probabilities = np.empty((len(parts), len(labels)), np.float32)
    for at, hidden in last_hidden(model, parts):
        probabilities[at] = label_logits(model.causal, hidden, labels).softmax(-1).cpu().numpy()
    return probabilities


def last_hidden(model: Model, parts: Parts) -> Iterator[tuple[Indices, Tensor]]:
    """Yield positions and the hidden states that feed their label logits, (n, H), dropout off."""
    training = model.causal.training
    model.causal.eval()
    try:
        for at in rows(parts, TOKENS):
            with torch.inference_mode():
                packed = pack([parts[i] for i in at], model.device)
                yield at, run_packed(model.causal, packed)
    finally:
        model.causal.train(training)


def rows(parts: Parts, tokens: int) -> Iterator[Indices]:
    """Cut prompts into rows of at most ``tokens`` tokens (or one prompt), siblings together.

    The longest come first: running out of memory shows at once.
    """
    groups = [sorted(g, key=lambda i: -len(parts[i][1])) for g in by_prefix(parts)]
    groups.sort(key=lambda g: -sum(map(len, parts[g[0]])))
    row: list[int] = []
    used = 0
    for group in groups:
        prefix, fresh = len(parts[group[0]][0]), True
        for i in group:
            more = len(parts[i][1]) + prefix * fresh
            if row and used + more > tokens:
                yield np.asarray(row, np.int64)
                row, used, more = [], 0, len(parts[i][1]) + prefix
            row.append(i)
            used, fresh = used + more, False
    if row:
        yield np.asarray(row, np.int64)
