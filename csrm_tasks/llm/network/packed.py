"""Prompts as one row of tokens without padding, a query's prefix once for all its products.

The trunk sees a single sequence (1, T)::

    [prefix a][product 1 of a][product 2 of a] … [prefix b][product 1 of b] … [a prompt alone] …

Everything but attention works token by token, so T is the number of different tokens and nothing
is padded (A11). Positions go on behind the prefix for every product, and attention is taken in
blocks of segments of about one length: a product's tokens see its query's prefix and, causally,
themselves; nothing else (A12). In a layer with a sliding window they see its last tokens of that.
So hidden states and gradients are those of one prompt at a time, and with 12 products a query, 110
tokens of prefix and 60 of product, 69 tokens are run a pair instead of 170. The cost: keys and
values of a prefix are gathered once per product and layer, those outside of a window among them.

A dense tree mask over the row would be simpler, but costs T² in attention; a cache of the prefix'
keys and values would need a second pass through the trunk, and cannot be checkpointed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from csrm_tasks.errors import ConfigError
from csrm_tasks.llm.network.plan import Block, Plan, Segment, make_plan
from csrm_tasks.llm.prompt.encoding import Ids

Parts = Sequence[tuple[Ids, Ids]]  # per prompt: the query's tokens, the rest

ATTENTION = "csrm_packed"  # its name among transformers' attention functions


@dataclass(frozen=True)
class Packed:
    """One row of prompts."""

    ids: Tensor  # (1, T)
    positions: Tensor  # (1, T)
    ends: Tensor  # (N,): the last token of each prompt
    longest: int  # tokens of the longest prompt
    plan: Plan
    last: Plan  # of the last layer, where only ``ends`` are read
    segments: tuple[Segment, ...]
    own: tuple[Segment, ...]  # of ``segments``, one for each prompt: where it ends
    every: bool = False  # every token is read, not only ``ends``; ``last`` is ``plan``
    windowed: dict[tuple[int, bool], Plan] = field(default_factory=dict)  # those made so far

    def plan_of(self, window: int | None, last: bool) -> Plan:
        """Return how a layer attends whose tokens see the ``window`` tokens up to themselves."""
        last = last and not self.every
        if window is None or self.longest <= window:
            return self.last if last else self.plan
        if (window, last) not in self.windowed:
            asking = self.own if last else self.segments
            self.windowed[window, last] = make_plan(
                asking, self.ids.shape[1], self.ids.device, last=last, window=window
            )
        return self.windowed[window, last]


def pack(parts: Parts, device: torch.device, every: bool = False) -> Packed:
    """Lay prompts out in one row; a prefix that several share stands there once.

    The order of ``ends`` is that of ``parts``. ``every``: for :func:`run_every`.
    """
    segments: list[Segment] = []
    own: list[Segment] = [None] * len(parts)  # type: ignore[list-item]
    place = 0

    def add(tokens: Ids, prefix: Segment | None = None) -> Segment:
        nonlocal place
        segments.append(Segment(tokens, place, prefix))
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
    plan = make_plan(segments, place, device, last=False)
    return Packed(
        torch.from_numpy(ids)[None].to(device),
        torch.from_numpy(positions)[None].to(device),
        torch.from_numpy(ends).to(device),
        int(positions.max()) + 1,
        plan,
        plan if every else make_plan(own, place, device, last=True),
        tuple(segments),
        tuple(own),
        every,
    )


def by_prefix(parts: Parts) -> list[list[int]]:
    """Return the positions of prompts with the same prefix, in order of first occurrence."""
    groups: dict[bytes, list[int]] = {}
    for i, (prefix, _) in enumerate(parts):
        groups.setdefault(prefix.tobytes(), []).append(i)
    return list(groups.values())


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
    if asked.requires_grad and q.dtype == torch.bfloat16 and q.device.type == "cpu" and not dropout:
        out = _attend_by_products(asked, keys, values, block.seen, scale)
    else:
        if block.seen is not None and q.is_cuda:  # with a mask, no fused kernel takes fewer heads
            keys, values, groups = repeat_kv(keys, groups), repeat_kv(values, groups), 1
        out = scaled_dot_product_attention(
            asked, keys, values, block.seen,
            dropout_p=dropout, is_causal=block.seen is None, scale=scale, enable_gqa=groups > 1,
        )  # fmt: skip
    return out.transpose(1, 2).reshape(n, length, *out.shape[1::2])


def _attend_by_products(
    query: Tensor, key: Tensor, value: Tensor, seen: Tensor | None, scale: float | None
) -> Tensor:
    """Return attention outputs (n, heads, L, D) by two products with a softmax in fp32 between.

    For training in bf16 on a CPU, where the backward pass of torch's fused kernel is slow on short
    segments: on Gemma 3 270M with 90 tokens a prompt it took a fifth of a step, and this a tenth.
    It rounds the weights' logits to bf16, which the fused kernel does not, so scoring keeps that
    one. Where keys have fewer heads, the queries of those that share one stand together.
    """
    n, heads, length, width = query.shape
    kept = key.shape[1]
    if seen is None:
        seen = torch.ones(length, key.shape[2], dtype=torch.bool, device=query.device).tril()
    grouped = query.reshape(n, kept, -1, width)  # (n, kept, groups · L, D)
    weights = (grouped @ key.transpose(2, 3)).float() * (scale or width**-0.5)
    weights = weights.view(n, kept, heads // kept, length, -1)
    masked = weights.masked_fill(~seen.unsqueeze(-3), -torch.inf)
    shares = masked.softmax(-1).to(value.dtype).view(n, kept, -1, key.shape[2])
    return (shares @ value).view(n, heads, length, -1)


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

    Raises :class:`ConfigError` for attention with soft caps.
    """
    if packed is None:
        plain: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, **more
        )
        return plain
    if more.get("softcap") is not None:
        raise ConfigError(
            f"model type {module.config.model_type!r} has soft-capped attention; choose another "
            "base model (llm.base)"
        )
    is_last = module.layer_idx == module.config.num_hidden_layers - 1
    plan = packed.plan_of(_window(module, more), is_last)
    return attend(query, key, value, plan, more.get("scaling"), more.get("dropout", 0.0)), None


def _window(module: Any, given: Mapping[str, Any]) -> int | None:
    """Return how many tokens a layer's token sees, itself among them; None: all before it.

    Most models say so with every call. Some (Qwen2-MoE, Phi-MoE) build it into a mask only, which
    is not read here: then it is what their configuration says of the layer.
    """
    config = module.config
    if "sliding_window" in given:
        found: int | None = given["sliding_window"]
        return found
    kinds = getattr(config, "layer_types", None)
    slides = kinds is None or kinds[module.layer_idx] == "sliding_attention"
    return getattr(config, "sliding_window", None) if slides else None


def run_packed(causal: Any, packed: Packed) -> Tensor:
    """Return the last hidden state of every prompt, (N, H); gradients flow.

    ``causal`` is the Hugging Face causal LM itself (LoRA layers, if any, already inside it). Only
    the last tokens are read out, so the last layer's attention and feed-forward part run on these
    alone. With 3 layers that is a fifth of all products, with 40 layers a sixtieth.
    """
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
        hidden = run_every(causal, packed)
    finally:
        for hook in hooks:
            hook.remove()
    return hidden.index_select(0, packed.ends)


def run_every(causal: Any, packed: Packed) -> Tensor:
    """Return the trunk's output for the whole row, (T, H).

    It is the last hidden state of every token where the row was packed for it.
    """
    if causal.config._attn_implementation != ATTENTION:
        causal.set_attn_implementation(ATTENTION)
    hidden: Tensor = causal.base_model(
        input_ids=packed.ids,
        position_ids=packed.positions,
        attention_mask=packed.ids.new_zeros(1, 1, 1, 1),  # given: none is built; not read
        use_cache=False,
        packed=packed,
    ).last_hidden_state
    return hidden[0]


ALL_ATTENTION_FUNCTIONS.register(ATTENTION, packed_attention)
ALL_MASK_ATTENTION_FUNCTIONS.register(ATTENTION, sdpa_mask)
