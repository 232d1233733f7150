"""Useful tokens per batch of an epoch: length buckets against random batches and transformers' own.

Prompt lengths of a real market (mean about 160 tokens, 95th percentile 240, at most 766), batches
of 64, padded to their longest prompt. The peer is ``group_by_length`` of transformers' trainer,
which TRL uses too. Label prompts are packed besides: their rows have no padding at all, whatever
the batch; only attention is taken over padded blocks, of which ``packed_attention`` is real.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from benchmarks.harness import alternate, closing_line, table
from benchmarks.llm_shapes import Lengths, realistic_lengths
from csrm_tasks.llm.network.packed import pack
from csrm_tasks.llm.prompt.batching import Indices, bucket, useful_share

BATCH = 64
SHOWN = 50  # batches that are packed to look at their attention


def length_buckets(lengths: Lengths) -> Sequence[Indices]:
    """Return batches in our way."""
    return bucket(lengths, BATCH, np.random.default_rng(0))


def random_batches(lengths: Lengths) -> Sequence[Indices]:
    """Return batches of prompts as they come."""
    order = np.random.default_rng(0).permutation(len(lengths))
    return np.array_split(order, len(lengths) // BATCH)


def grouped_by_length(lengths: Lengths) -> Sequence[Indices]:
    """Return batches as transformers' trainer draws them."""
    from transformers.trainer_pt_utils import get_length_grouped_indices

    torch.manual_seed(0)
    order = np.asarray(get_length_grouped_indices(lengths.tolist(), BATCH))
    return np.split(order, range(BATCH, len(order), BATCH))


def attended_share(lengths: Lengths, batches: Sequence[Indices]) -> float:
    """Return the useful share of attention's places when these batches are packed."""
    asked = sum(
        block.queries.numel()
        for batch in batches
        for block in pack(
            [(np.empty(0, np.int32), np.zeros(n, np.int32)) for n in lengths[batch]],
            torch.device("cpu"),
        ).plan.blocks
    )
    return float(sum(lengths[batch].sum() for batch in batches)) / asked


def main(quick: bool) -> None:
    """Print the table and the closing line."""
    lengths = realistic_lengths(5_000 if quick else 200_000)
    ways: dict[str, Callable[[Lengths], Sequence[Indices]]] = {
        "length buckets (ours)": length_buckets,
        "transformers, group_by_length": grouped_by_length,
        "random batches": random_batches,
    }
    timings = alternate(
        {name: lambda way=way: way(lengths) for name, way in ways.items()}, 1 if quick else 5
    )
    shares = {name: useful_share(lengths, way(lengths)) for name, way in ways.items()}
    packed = attended_share(lengths, random_batches(lengths)[:SHOWN])
    print(
        f"{len(lengths):,} prompts: mean {lengths.mean():.0f} tokens, 95th percentile "
        f"{np.quantile(lengths, 0.95):.0f}, longest {lengths.max()}; batches of {BATCH}\n"
    )
    rows: list[dict[str, object]] = [
        {"batches": name, "useful share": shares[name], "s per epoch": timings[name].median}
        for name in ways
    ]
    print(table(rows), end="\n\n")
    print(f"Random batches, packed: linear layers 1, attention {packed:.3f}\n")
    ours, peer, plain = shares.values()
    figures = {
        "useful_share": ours,
        "group_by_length": peer,
        "random": plain,
        "packed_attention": packed,
    }
    print(closing_line("batching", figures, ("numpy", "transformers")))
