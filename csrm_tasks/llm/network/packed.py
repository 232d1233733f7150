"""Prompts as one row of tokens without padding, a query's prefix once for all its products.

The trunk sees a single sequence (1, T)::

    [prefix a][product 1 of a][product 2 of a] … [prefix b][product 1 of b] … [a prompt alone] …

Everything but attention works token by token, so T is the number of different tokens and nothing
is padded (A11). Positions go on behind the prefix for every product, and attention is taken in
blocks of segments of about one length: a product's tokens see its query's prefix and, causally,
themselves; nothing else (A12). So hidden states and gradients are those of one prompt at a time,
and with 12 products a query, 110 tokens of prefix and 60 of product, 69 tokens are run a pair
instead of 170. The cost: keys and values of a prefix are gathered once per product and layer.

A dense tree mask over the row would be simpler, but costs T² in attention; a cache of the prefix'
keys and values would need a second pass through the trunk, and cannot be checkpointed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from csrm_tasks.errors import ConfigError
from csrm_tasks.llm.prompt.encoding import Ids

Indices = npt.NDArray[np.int64]
Parts = Sequence[tuple[Ids, Ids]]  # per prompt: the query's tokens, the rest

ATTENTION = "csrm_packed"  # its name among transformers' attention functions
ALIKE = 0.75  # the shortest segment of an attention block is at least so long as its longest


@dataclass(frozen=True)
class Block:
    """Segments whose attention is taken together; all indices are places in the row."""

    queries: Tensor  # (n, L)
    keys: Tensor  # (n, P + L), the prefix first
    seen: Tensor | None  # (n, 1, L, P + L), bool; None: plain causal attention, no prefix


@dataclass(frozen=True)
class Plan:
    """How attention of one layer is taken: by blocks, their outputs put back by ``order``."""

    blocks: tuple[Block, ...]
    order: Tensor  # (T,): where each token's output is among those of all blocks


@dataclass(frozen=True)
class Packed:
    """One row of prompts."""

    ids: Tensor  # (1, T)
    positions: Tensor  # (1, T)
    ends: Tensor  # (N,): the last token of each prompt
    longest: int  # tokens of the longest prompt
    plan: Plan
    last: Plan  # of the last layer, where only ``ends`` are read


@dataclass(frozen=True)
class _Segment:
    """Some neighbouring tokens of the row."""

    tokens: Ids
    start: int  # place of the first token
    prefix: _Segment | None  # what it sees besides itself

    @property
    def before(self) -> int:
        return 0 if self.prefix is None else len(self.prefix.tokens)


def pack(parts: Parts, device: torch.device) -> Packed:
    """Lay prompts out in one row; a prefix that several share stands there once.

    The order of ``ends`` is that of ``parts``.
    """
    segments: list[_Segment] = []
    own: list[_Segment] = [None] * len(parts)  # type: ignore[list-item]
    place = 0

    def add(tokens: Ids, prefix: _Segment | None = None) -> _Segment:
        nonlocal place
        segments.append(_Segment(tokens, place, prefix))
        place += len(tokens)
        return segments[-1]

    for members in by_prefix(parts):
        prefix = parts[members[0]][0]
        if len(members) == 1 or not len(prefix):
            for i in members:
                own[i] = add(np.concatenate(parts[i]))
        else:
            shared = add(prefix)
            for i in members:
                own[i] = add(parts[i][1], shared)
    ids = np.concatenate([s.tokens for s in segments]).astype(np.int64)
    positions = np.concatenate([s.before + np.arange(len(s.tokens)) for s in segments])
    ends = np.asarray([s.start + len(s.tokens) - 1 for s in own], np.int64)
    return Packed(
        torch.from_numpy(ids)[None].to(device),
        torch.from_numpy(positions)[None].to(device),
        torch.from_numpy(ends).to(device),
        int(positions.max()) + 1,
        _plan(segments, place, device, last=False),
        _plan(own, place, device, last=True),
    )


def by_prefix(parts: Parts) -> list[list[int]]:
    """Return the positions of prompts with the same prefix, in order of first occurrence."""
    groups: dict[bytes, list[int]] = {}
    for i, (prefix, _) in enumerate(parts):
        groups.setdefault(prefix.tobytes(), []).append(i)
    return list(groups.values())


def _plan(segments: Sequence[_Segment], total: int, device: torch.device, last: bool) -> Plan:
    """Cut segments into blocks; with ``last`` only the last token of each one asks."""
    blocks, order, done = [], np.full(total, -1, np.int64), 0
    for group in _alike(segments):
        block, asked, real = _block(group, last)
        order[asked[real]] = done + np.flatnonzero(real.ravel())
        done += asked.size
        blocks.append(Block(*(None if x is None else torch.from_numpy(x).to(device)
                              for x in block)))  # type: ignore[arg-type]  # fmt: skip
    order[order < 0] = done  # a row of zeros behind them all
    return Plan(tuple(blocks), torch.from_numpy(order).to(device))


def _alike(segments: Sequence[_Segment]) -> Iterator[list[_Segment]]:
    """Yield segments in groups: all with or all without a prefix, all of about one length."""
    for wanted in (False, True):
        group: list[_Segment] = []
        chosen = [s for s in segments if (s.prefix is not None) == wanted]
        for segment in sorted(chosen, key=lambda s: -len(s.tokens)):
            if group and len(segment.tokens) < ALIKE * len(group[0].tokens):
                yield group
                group = []
            group.append(segment)
        if group:
            yield group


def _block(
    group: Sequence[_Segment], last: bool
) -> tuple[tuple[Indices, Indices, npt.NDArray[np.bool_] | None], Indices, npt.NDArray[np.bool_]]:
    """Return queries, keys and mask of a block, again the queries, and which of these are real."""
    lengths = np.asarray([len(s.tokens) for s in group])[:, None]
    before = np.asarray([s.before for s in group])[:, None]
    starts = np.asarray([s.start for s in group])[:, None]
    own_at, own_real = _places(starts, lengths)
    prefix_starts = np.asarray([s.prefix.start if s.prefix else 0 for s in group])[:, None]
    prefix_at, prefix_real = _places(prefix_starts, before)
    keys = np.hstack([prefix_at, own_at])
    if last:
        seen = np.hstack([prefix_real, own_real])[:, None, None]
        asked = starts + lengths - 1
        return (asked, keys, seen), asked, np.ones_like(asked, bool)
    if not prefix_at.shape[1]:
        return (own_at, keys, None), own_at, own_real
    width = own_at.shape[1]
    causal = np.broadcast_to(np.tri(width, dtype=bool), (len(group), width, width))
    prefix_seen = np.broadcast_to(prefix_real[:, None], (len(group), width, prefix_at.shape[1]))
    return (own_at, keys, np.concatenate([prefix_seen, causal], 2)[:, None]), own_at, own_real


def _places(starts: Indices, lengths: Indices) -> tuple[Indices, npt.NDArray[np.bool_]]:
    """Return the places (n, longest) of some segments' tokens, and which of them are real."""
    steps = np.arange(int(lengths.max()))[None]
    real = steps < lengths
    return starts + np.where(real, steps, 0), real


def attend(
    query: Tensor, key: Tensor, value: Tensor, plan: Plan, scale: float | None, dropout: float = 0.0
) -> Tensor:
    """Return attention outputs (1, T, heads, D) of query (1, heads, T, D), key and value.

    Keys and values may have fewer heads (grouped-query attention).
    """
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))  # (T, heads, D)
    blocks = [_attend_block(q, k, v, b, scale, dropout).flatten(0, 1) for b in plan.blocks]
    zero = q.new_zeros(1, *blocks[0].shape[1:])
    return torch.cat([*blocks, zero]).index_select(0, plan.order)[None]


def _attend_block(
    q: Tensor, k: Tensor, v: Tensor, block: Block, scale: float | None, dropout: float
) -> Tensor:
    """Return (n, L, heads, D)."""
    n, length = block.queries.shape
    asked, keys, values = _take(q, block.queries), _take(k, block.keys), _take(v, block.keys)
    groups = q.shape[1] // k.shape[1]
    if block.seen is not None and q.is_cuda:  # with a mask, no fused kernel there takes fewer heads
        keys, values, groups = repeat_kv(keys, groups), repeat_kv(values, groups), 1
    out = scaled_dot_product_attention(
        asked, keys, values, block.seen,
        dropout_p=dropout, is_causal=block.seen is None, scale=scale, enable_gqa=groups > 1,
    )  # fmt: skip
    return out.transpose(1, 2).reshape(n, length, *out.shape[1::2])


def _take(x: Tensor, at: Tensor) -> Tensor:
    """Return (n, heads, L, D) of (T, heads, D)."""
    return x.index_select(0, at.flatten()).view(*at.shape, *x.shape[1:]).transpose(1, 2)


def packed_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    packed: Packed | None = None,
    **more: Any,
) -> tuple[Tensor, None]:
    """Attend as transformers' models ask for it; without ``packed`` it is their own ``sdpa``.

    Raises :class:`ConfigError` for attention that is not plain (soft caps, a sliding window that
    is shorter than a prompt).
    """
    if packed is None:
        plain: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, **more
        )
        return plain
    window = more.get("sliding_window")
    if more.get("softcap") is not None or (window is not None and packed.longest > window):
        raise ConfigError(
            f"model type {module.config.model_type!r} has soft-capped attention or a window of "
            f"{window} tokens, shorter than a prompt; choose another base model (llm.base)"
        )
    is_last = module.layer_idx == module.config.num_hidden_layers - 1
    plan = packed.last if is_last else packed.plan
    return attend(query, key, value, plan, more.get("scaling"), more.get("dropout", 0.0)), None


def run_packed(causal: Any, packed: Packed) -> Tensor:
    """Return the last hidden state of every prompt, (N, H); gradients flow.

    ``causal`` is the Hugging Face causal LM itself (LoRA layers, if any, already inside it). Only
    the last tokens are read out, so the last layer's attention and feed-forward part run on these
    alone. With 3 layers that is a fifth of all products, with 40 layers a sixtieth.
    """
    if causal.config._attn_implementation != ATTENTION:
        causal.set_attn_implementation(ATTENTION)
    layer = causal.base_model.layers[-1]

    def keep_ends(_: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return inputs[0].index_select(1, packed.ends), *inputs[1:]

    def put_back(_: Any, __: tuple[Tensor, ...], out: Tensor) -> Tensor:
        return out.new_zeros(1, packed.ids.shape[1], out.shape[-1]).index_copy(1, packed.ends, out)

    hooks = (
        layer.mlp.register_forward_pre_hook(keep_ends),
        layer.mlp.register_forward_hook(put_back),
    )
    try:
        hidden: Tensor = causal.base_model(
            input_ids=packed.ids,
            position_ids=packed.positions,
            attention_mask=packed.ids.new_zeros(1, 1, 1, 1),  # given: none is built; not read
            use_cache=False,
            packed=packed,
        ).last_hidden_state
    finally:
        for hook in hooks:
            hook.remove()
    return hidden[0].index_select(0, packed.ends)


ALL_ATTENTION_FUNCTIONS.register(ATTENTION, packed_attention)
ALL_MASK_ATTENTION_FUNCTIONS.register(ATTENTION, sdpa_mask)
