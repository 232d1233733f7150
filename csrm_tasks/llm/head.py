"""Label-row head: classify with three rows of ``lm_head`` instead of the whole vocabulary (A2).

A label task needs 3 of 151,936 logits at one position of S. So: run the trunk, gather the hidden
state of each sample's last real token, multiply by the label rows, softmax in fp32. At B=16, S=96
and a vocabulary of 151,936 the logits that are never made are 0.9 GB in fp32, and their gradient
as much again. Translation needs the whole vocabulary, but at target positions only.

Batches are padded on the right and no mask is passed: with causal attention a real token never
sees the padding behind it, and the fast causal kernel needs no mask.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from csrm_tasks.errors import ConfigError


def run_trunk(causal: Any, ids: Tensor) -> Tensor:
    """Return the trunk's last hidden states, (B, T, H), of right-padded ``ids`` (B, T).

    ``causal`` is the Hugging Face causal LM itself (LoRA layers, if any, already inside it).
    """
    hidden: Tensor = causal.base_model(input_ids=ids, use_cache=False).last_hidden_state
    return hidden


def run_to_last(causal: Any, ids: Tensor, lengths: Tensor, **more: Any) -> Tensor:
    """Return the last real token's hidden state, (B, H), of right-padded ``ids`` (B, T).

    No other position is read out, so the last layer's feed-forward part, which attends to nothing,
    runs on that one token of each row (its output is broadcast over the others, which nobody
    reads). With 3 layers that is a fifth of all products, with 40 layers a sixtieth.
    ``more`` goes to the trunk (a cache, for example).
    """

    def keep_last(_: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return last_hidden(inputs[0], lengths)[:, None], *inputs[1:]

    hook = _last_feed_forward(causal).register_forward_pre_hook(keep_last)
    try:
        out = causal.base_model(input_ids=ids, **({"use_cache": False} | more))
    finally:
        hook.remove()
    return last_hidden(out.last_hidden_state, lengths)


def _last_feed_forward(causal: Any) -> torch.nn.Module:
    """Return ``mlp`` of the last layer, its name in Llama, Mistral, Qwen, Gemma, Phi and others."""
    module: torch.nn.Module = causal.base_model.layers[-1].mlp
    return module


def last_hidden(hidden: Tensor, lengths: Tensor) -> Tensor:
    """Return the hidden state of the last real token, (B, H), by length."""
    rows = torch.arange(len(lengths), device=hidden.device)
    return hidden[rows, lengths - 1]


def label_logits(causal: Any, hidden: Tensor, label_ids: Tensor) -> Tensor:
    """Return fp32 logits (B, K) of the K labels from hidden states (B, H)."""
    head = causal.get_output_embeddings()
    bias = None if head.bias is None else head.bias[label_ids].float()
    return functional.linear(hidden.float(), head.weight[label_ids].float(), bias)


def soft_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Return the mean over samples of −Σₖ targetₖ·log softmax(logits)ₖ; both (B, K), fp32.

    Paper 1, eq. (3); a one-hot target gives the usual cross-entropy.
    """
    return -(target * functional.log_softmax(logits, dim=-1)).sum(-1).mean()


def translation_loss(
    causal: Any, hidden: Tensor, ids: Tensor, start: Tensor, end: Tensor
) -> Tensor:
    """Return the cross-entropy of target tokens, a mean per sample and then over samples (A6, A7).

    ``hidden`` (B, T, H) and ``ids`` (B, T) are of the same right-padded batch; the target of row b
    is ids[b, start[b]:end[b]]. Hidden states are gathered first, so the full-vocabulary logits
    are (target tokens, V), never (B, T, V).
    """
    position = torch.arange(ids.shape[1], device=ids.device)
    wanted = (position >= start[:, None]) & (position < end[:, None])  # (B, T)
    row, column = wanted.nonzero(as_tuple=True)
    logits = causal.get_output_embeddings()(hidden[row, column - 1]).float()  # (N, V)
    losses = functional.cross_entropy(logits, ids[row, column], reduction="none")
    weight = 1.0 / (end - start).float()[row]  # each sample weighs the same, however long
    return (losses * weight).sum() / len(ids)


def check_read_out(causal: Any, ids: Tensor, label_ids: Tensor) -> None:
    """Compare the label rows with the model's own full logits on one prompt, ``ids`` (1, T).

    Raises :class:`ConfigError` for a model that changes its logits after ``lm_head`` (soft caps,
    scales), so that its label rows would not be its probabilities, or that is not built of layers
    with attention and ``mlp``.
    """
    length = torch.tensor([ids.shape[1]], device=ids.device)
    with torch.no_grad():
        own = causal(input_ids=ids, use_cache=False).logits[0, -1, label_ids].float()
        try:
            ours = label_logits(causal, run_to_last(causal, ids, length), label_ids)[0]
        except AttributeError as e:
            raise ConfigError(
                f"model type {causal.config.model_type!r} is not built of layers[-1].mlp ({e}); "
                "choose another base model (llm.base)"
            ) from e
    worst = float((own.softmax(-1) - ours.softmax(-1)).abs().max())
    if not worst <= 1e-2:  # also when either is NaN
        raise ConfigError(
            f"model type {causal.config.model_type!r} does not give plain lm_head logits "
            f"(label probabilities differ by {worst:.3g}); choose another base model (llm.base)"
        )
