"""Label probabilities of many pairs, in batches of one length, without gradients."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch

from csrm_tasks.llm.batching import Indices, pad
from csrm_tasks.llm.encoding import PromptEncoder
from csrm_tasks.llm.head import label_logits, last_hidden, run_trunk
from csrm_tasks.llm.model import Model
from csrm_tasks.llm.prompts import LabelSpace, ProductFields, QueryFields

Floats = npt.NDArray[np.float32]

TOKENS = 4096  # of one batch, padding included; small enough for a core's cache


def predict(
    model: Model,
    encoder: PromptEncoder,
    space: LabelSpace,
    queries: Sequence[QueryFields],
    products: Sequence[ProductFields],
) -> Floats:
    """Return (N, K) probabilities at temperature 1, dropout off (A16); pairs are aligned."""
    pairs = list(zip(queries, products, strict=True))
    lengths = np.asarray([encoder.length(space, q, p) for q, p in pairs], np.int64)
    found = np.empty((len(pairs), len(space.tokens)), np.float32)
    training = model.causal.training
    model.causal.eval()
    with torch.inference_mode():
        for at in by_length(lengths, TOKENS):
            ids, ends = pad([encoder.prompt(space, *pairs[i]) for i in at], model.device)
            hidden = last_hidden(run_trunk(model.causal, ids), ends)
            logits = label_logits(model.causal, hidden, model.labels[space.name])
            found[at] = logits.softmax(-1).cpu().numpy()
    model.causal.train(training)
    return found


def by_length(lengths: Indices, tokens: int) -> Iterator[Indices]:
    """Cut positions into batches of similar length and at most ``tokens`` padded tokens each."""
    order = np.argsort(-lengths, kind="stable")  # the longest first: running out of memory shows
    start = 0
    while start < len(order):
        size = max(1, tokens // int(lengths[order[start]]))
        yield order[start : start + size]
        start += size
