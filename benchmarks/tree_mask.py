"""The best that transformers and torch have for many products of one query: a compiled tree mask.

A query's prefix and all its products stand in one row, each product at the positions behind the
prefix. A block mask lets a token see the prefix and its own product before it; FlexAttention,
compiled, skips the blocks that nobody sees. Masks are made before the clock starts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import torch

from benchmarks.llm_shapes import LABELS
from csrm_tasks.llm.prompt.encoding import Ids

BLOCK = 128  # of FlexAttention on a CPU


@dataclass(frozen=True)
class Tree:
    """One query: (1, L) tokens and positions, its mask, and where each product ends."""

    ids: torch.Tensor
    positions: torch.Tensor
    mask: Any
    ends: torch.Tensor


def trees(parts: Sequence[tuple[Ids, Ids]]) -> list[Tree]:
    """Return the queries of pairs that stand together by query."""
    return [_tree(list(pairs)) for _, pairs in groupby(parts, key=lambda p: id(p[0]))]


def _tree(pairs: list[tuple[Ids, Ids]]) -> Tree:
    from torch.nn.attention.flex_attention import create_block_mask

    prefix, products = pairs[0][0], [product for _, product in pairs]
    ids = torch.from_numpy(np.concatenate([prefix, *products])).long()
    positions = torch.cat(
        [torch.arange(len(prefix)), *(len(prefix) + torch.arange(len(p)) for p in products)]
    )
    lengths = torch.tensor([len(prefix), *map(len, products)])
    whose = torch.repeat_interleave(torch.arange(len(lengths)), lengths)  # 0: the prefix

    def sees(b: Any, h: Any, q: Any, kv: Any) -> Any:
        return (q >= kv) & ((whose[kv] == 0) | (whose[kv] == whose[q]))

    mask = create_block_mask(sees, 1, None, len(ids), len(ids), device="cpu", BLOCK_SIZE=BLOCK)
    return Tree(ids[None], positions[None], mask, lengths.cumsum(0)[1:] - 1)


def tree_model(causal: Any) -> Any:
    """Return the model with compiled FlexAttention in place of its own, changed in place."""
    causal.set_attn_implementation("flex_attention")
    return causal


def tree_scores(causal: Any, queries: Sequence[Tree]) -> torch.Tensor:
    """Return (N, K) probabilities of the labels, query by query.

    Every length is compiled for itself, which is the faster code, too; with lengths as variables
    torch 2.13's C++ of this mask does not build.
    """
    from torch._dynamo import config

    with config.patch(automatic_dynamic_shapes=False):
        return torch.cat(list(_scores(causal, queries)))


def _scores(causal: Any, queries: Sequence[Tree]) -> Iterator[torch.Tensor]:
    rows = torch.tensor(LABELS)
    for tree in queries:
        logits = causal(
            input_ids=tree.ids, position_ids=tree.positions, use_cache=False,
            attention_mask={"full_attention": tree.mask}, logits_to_keep=tree.ends,
        ).logits[0]  # fmt: skip
        yield logits[:, rows].float().softmax(-1)
