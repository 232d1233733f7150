"""Scoring many products of one query: the query's prefix once, against padded batches.

The peer is batch scoring as one writes it with transformers: prompts padded on the left to the
longest of the batch, an attention mask, logits of the last position only
(``logits_to_keep=1``: its best setting), softmax over the label rows. ``ratio_32`` and
``ratio_120``: prefix of 110 tokens, products of 60. ``ratio_all``: 120 products of realistic
lengths in arrival order, and whatever precision our probe chooses.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from benchmarks.harness import alternate, closing_line, ratio, table, timing_rows
from benchmarks.llm_shapes import LABELS, Lengths, qwen3, realistic_lengths
from csrm_tasks.llm.encoding import Ids
from csrm_tasks.llm.model import Model
from csrm_tasks.llm.precision import choose_dtype
from csrm_tasks.llm.predict import label_probabilities

PREFIX, PRODUCT = 110, 60
BATCH = 32  # pairs per batch of the peer
TOLERANCE = 2e-3  # of a probability, between contestants of one precision


@dataclass(frozen=True)
class Case:
    """Prompts of some queries: (tokens of the query, tokens of the product) per pair."""

    name: str
    parts: list[tuple[Ids, Ids]]


def make(name: str, queries: int, lengths: Lengths, seed: int) -> Case:
    """Return ``queries`` × len(lengths) pairs with products of these lengths."""
    rng = np.random.default_rng(seed)
    parts = []
    for _ in range(queries):
        prefix = rng.integers(0, 1000, PREFIX, np.int32)
        parts += [(prefix, rng.integers(0, 1000, n, np.int32)) for n in lengths]
    return Case(name, parts)


def peer_scores(causal: Any, case: Case) -> torch.Tensor:
    """Return (N, K) probabilities by padded batches in arrival order."""
    found = []
    rows = torch.tensor(LABELS)
    for start in range(0, len(case.parts), BATCH):
        prompts = [
            torch.from_numpy(np.concatenate(p)).long() for p in case.parts[start : start + BATCH]
        ]
        width = max(len(p) for p in prompts)
        ids = torch.stack([functional.pad(p, (width - len(p), 0)) for p in prompts])
        mask = torch.stack([functional.pad(torch.ones_like(p), (width - len(p), 0))
                            for p in prompts])  # fmt: skip
        logits = causal(
            input_ids=ids, attention_mask=mask, logits_to_keep=1, use_cache=False
        ).logits[:, -1, rows]
        found.append(logits.float().softmax(-1))
    return torch.cat(found)


def run(model: Model, peer: Any, case: Case, repeats: int) -> tuple[float, float]:
    """Print the table of one case; return ratio and the largest difference of a probability."""
    timings = {}
    with torch.inference_mode():
        timings = alternate(
            {
                "prefix reuse, length buckets (ours)": lambda: label_probabilities(
                    model, case.parts, "bench"
                ),
                "transformers, padded batches": lambda: peer_scores(peer, case),
            },
            repeats,
        )
        difference = np.abs(
            label_probabilities(model, case.parts, "bench") - peer_scores(peer, case).numpy()
        ).max()
    print(f"{case.name}\n\n{table(timing_rows(timings, len(case.parts), 'pairs/s'))}")
    print(f"\nlargest difference of a probability: {difference:.2g}\n")
    ours, theirs = timings.values()
    return ratio(theirs, ours), float(difference)


def main(quick: bool) -> None:
    """Print tables and the closing line."""
    torch.set_num_threads(1)
    device = torch.device("cpu")
    causal = qwen3()
    labels = {"bench": torch.tensor(LABELS)}
    model = Model(causal, None, labels, device, torch.float32, "qwen3-shaped", "")
    repeats, queries = (1, 1) if quick else (5, 2)
    constant = {n: np.full(n, PRODUCT) for n in (32, 120)}
    ratios = {}
    for n, lengths in constant.items():
        case = make(f"{n} products per query, {PREFIX} + {PRODUCT} tokens", queries, lengths, n)
        ratios[f"ratio_{n}"], difference = run(model, causal, case, repeats)
        assert difference <= TOLERANCE, difference
    dtype = choose_dtype(device, causal.config.hidden_size)
    fast = Model(
        qwen3().to(dtype) if dtype != torch.float32 else causal,
        None, labels, device, dtype, "qwen3-shaped", "",
    )  # fmt: skip
    varied = np.maximum(realistic_lengths(120) - PREFIX, 10)
    case = make(f"120 products, lengths as delivered, {fast.precision}", queries, varied, 7)
    ratios["ratio_all"], _ = run(fast, causal, case, repeats)
    print(closing_line("llm_score", ratios, ("torch", "transformers")))
