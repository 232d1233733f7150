"""Scoring many products of one query: the query's prefix once, against padded batches.

The first peer is batch scoring as one writes it with transformers: prompts padded on the left to
the longest of the batch, an attention mask, logits of the last position only
(``logits_to_keep=1``: its best setting), softmax over the label rows. The second has a query and
all its products in one row, under a compiled tree mask (:mod:`benchmarks.tree_mask`).
``ratio_32`` and ``ratio_120``: prefix of 110 tokens, products of 60. ``ratio_all``: 120 products of
realistic lengths in arrival order, ours in whatever precision our probe chooses on this machine.
``ratio_tree_mask``: the tree mask's time over ours at 120 products, both fp32.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from benchmarks.harness import QUICK, alternate, closing_line, ratio, table, timing_rows
from benchmarks.llm_shapes import LABELS, Lengths, qwen3, realistic_lengths
from benchmarks.tree_mask import tree_model, tree_scores, trees
from csrm_tasks.llm.network.model import Model
from csrm_tasks.llm.prompt.encoding import Ids
from csrm_tasks.llm.scoring.predict import label_probabilities
from csrm_tasks.training.precision import choose_dtype

SHARE = 4 if os.environ.get(QUICK) else 1  # a quick run has a quarter of the tokens
PREFIX, PRODUCT = 110 // SHARE, 60 // SHARE
BATCH = 32  # pairs per batch of the peer
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2}  # of a probability


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


@dataclass(frozen=True)
class Peers:
    """The same random model twice: with the attention that it comes with, and with a tree mask."""

    padded: Any
    tree: Any


def run(model: Model, peers: Peers, case: Case, repeats: int, tolerance: float) -> list[float]:
    """Print the table of one case; returns time of padded batches and of the tree mask over ours.

    Raises :class:`ValueError` where a probability differs by more than ``tolerance``.
    """
    found: dict[str, np.ndarray] = {}
    queries = trees(case.parts)

    def ours() -> None:
        found["ours"] = label_probabilities(model, case.parts, "bench")

    def padded() -> None:
        found["padded"] = peer_scores(peers.padded, case).numpy()

    def tree() -> None:
        found["tree"] = tree_scores(peers.tree, queries).numpy()

    with torch.inference_mode():
        timings = alternate(
            {
                "packed rows, shared prefix (ours)": ours,
                "transformers, padded batches": padded,
                "transformers, compiled tree mask": tree,
            },
            repeats,
        )
    difference = max(float(np.abs(found["ours"] - found[p]).max()) for p in ("padded", "tree"))
    if not difference <= tolerance:
        raise ValueError(f"{case.name}: scores differ by {difference:.2g}, allowed {tolerance}")
    print(f"{case.name}\n\n{table(timing_rows(timings, len(case.parts), 'pairs/s'))}")
    print(f"\nlargest difference of a probability: {difference:.2g}, allowed {tolerance}\n")
    mine, *theirs = timings.values()
    return [ratio(t, mine) for t in theirs]


def main(quick: bool) -> None:
    """Print tables and the closing line."""
    torch.set_num_threads(1)
    layers, repeats, queries = (1, 1, 1) if quick else (8, 5, 2)
    peers = Peers(qwen3(layers=layers), tree_model(qwen3(layers=layers)))
    dtype = choose_dtype(torch.device("cpu"), peers.padded.config.hidden_size)
    exact, fast = (scorer(layers, d) for d in (torch.float32, dtype))
    ratios = {}
    for n in (32, 120):
        name = f"{n} products per query, {PREFIX} + {PRODUCT} tokens, both fp32"
        case = make(name, queries, np.full(n, PRODUCT), n)
        found = run(exact, peers, case, repeats, TOLERANCE[torch.float32])
        ratios[f"ratio_{n}"] = found[0]
    ratios["ratio_tree_mask"] = found[1]  # of 120 products
    varied = np.maximum(realistic_lengths(120) // SHARE - PREFIX, 10)
    name = f"120 products, lengths as delivered, ours in {fast.precision}, peers in fp32"
    case = make(name, queries, varied, 7)
    ratios["ratio_all"] = run(fast, peers, case, repeats, TOLERANCE[dtype])[0]
    print(closing_line("llm_score", ratios, ("torch", "transformers")))


def scorer(layers: int, dtype: torch.dtype) -> Model:
    """Return our scorer of the same random model, in ``dtype``."""
    causal = qwen3(layers=layers).to(dtype)
    labels = {"bench": torch.tensor(LABELS)}
    return Model(causal, None, labels, torch.device("cpu"), dtype, "qwen3-shaped", "")
