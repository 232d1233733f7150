"""Label-row head: classify with three rows of ``lm_head`` instead of the whole vocabulary (A2).

A label task needs 3 of 151,936 logits at one position of S. So: run the trunk, gather the hidden
state of each sample's last real token, multiply by the label rows, softmax in fp32. At B=16, S=96
and a vocabulary of 151,936 the logits that are never made are 0.9 GB in fp32, and their gradient
as much again. Translation needs the whole vocabulary, but at target positions only.

Label prompts come as one packed row (:mod:`csrm_tasks.llm.network.packed`). Translations are padded
on the right and no mask is passed: with causal attention a real token never sees the padding behind
it, and the fast causal kernel needs no mask.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from csrm_tasks.errors import ConfigError
from csrm_tasks.llm.network.packed import pack, run_packed

# Largest difference between two ways to the same state, as a share of its length. Rounding to bf16
# makes a few hundredths over twenty layers, attention of another kind several tenths.
NOISE, BF16_NOISE = 1e-3, 0.15


def run_trunk(causal: Any, ids: Tensor) -> Tensor:
    """Return the trunk's last hidden states, (B, T, H), of right-padded ``ids`` (B, T).

    ``causal`` is the Hugging Face causal LM itself (LoRA layers, if any, already inside it).
    """
    hidden: Tensor = causal.base_model(input_ids=ids, use_cache=False).last_hidden_state
    return hidden


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


def corrected_cross_entropy(logits: Tensor, votes: Tensor, rest: Tensor) -> Tensor:
    """Return the mean over samples of −α·log Σₖ pₖ·votesₖ/α − Σₖ restₖ·log pₖ; all (B, K), fp32.

    Forward correction (A51): α is the sum of a sample's ``votes``, which are in proportion to how
    likely its raters' answers are under each true label. Votes of one label alone give
    :func:`soft_cross_entropy`.
    """
    logs = functional.log_softmax(logits, dim=-1)
    share = votes.sum(-1)
    # A sample without votes has none in proportion to anything: ones, of weight 0.
    likely = torch.where(share[:, None] > 0, votes, 1.0).log()
    seen = torch.logsumexp(logs + likely, dim=-1)
    losses = share * (seen - torch.where(share > 0, share, 1.0).log()) + (rest * logs).sum(-1)
    return -losses.mean()


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


def check_read_out(causal: Any, ids: Tensor) -> None:
    """Compare what we read out with the model itself on one prompt, ``ids`` (1, T).

    What stands between the trunk's last state and the logits is looked at apart from what is
    computed, so that the noise of bf16 hides no fault: see :func:`_own_state`. The trunk is run on
    the prompt packed twice with its first half shared, as scoring and training do it.

    Raises :class:`ConfigError` for a model that changes states before ``lm_head`` or logits after
    it (scales, soft caps), so that its label rows would not be its probabilities, whose attention
    is neither causal nor that within a sliding window, or that is not built of layers with
    attention and ``mlp``.
    """
    kind = causal.config.model_type
    if "chunked_attention" in (getattr(causal.config, "layer_types", None) or ()):
        raise ConfigError(
            f"model type {kind!r} attends in chunks (attention_chunk_size); "
            "choose another base model (llm.base)"
        )
    tokens = ids[0].int().cpu().numpy()
    half = len(tokens) // 2
    with torch.no_grad():
        try:
            ours = run_packed(causal, pack([(tokens[:half], tokens[half:])] * 2, ids.device))
        except AttributeError as e:
            raise ConfigError(
                f"model type {kind!r} is not built of layers[-1].mlp ({e}); "
                "choose another base model (llm.base)"
            ) from e
        own = _own_state(causal, ids)
    worst = float(((ours.float() - own.float()).norm(dim=-1) / own.float().norm()).max())
    if not worst <= (BF16_NOISE if own.dtype == torch.bfloat16 else NOISE):  # also where it is NaN
        raise ConfigError(
            f"model type {kind!r} attends otherwise than its packed prompts do (its last state "
            f"differs by {worst:.3g} of its length); choose another base model (llm.base)"
        )


def _own_state(causal: Any, ids: Tensor) -> Tensor:
    """Return the trunk's last state (H,) of the model's own run, if ``lm_head`` is all behind it.

    The head's output is replaced by known logits far apart: whatever is done to them shows in what
    the model returns, to the last bit, in any number format. Its input must be the trunk's output.
    """
    head = causal.get_output_embeddings()
    seen: dict[str, Tensor] = {}

    def keep(_: Any, __: Any, out: Any) -> None:
        seen["trunk"] = out.last_hidden_state[0, -1]

    def plant(_: Any, inputs: tuple[Tensor, ...], out: Tensor) -> Tensor:
        seen["input"] = inputs[0][0, -1]
        planted = torch.linspace(-60, 60, out.shape[-1], device=out.device).to(out.dtype)
        seen["planted"] = planted
        return planted.expand_as(out)

    hooks = [causal.base_model.register_forward_hook(keep)]
    if isinstance(head, torch.nn.Linear):
        hooks.append(head.register_forward_hook(plant))
    try:
        logits = causal(input_ids=ids, use_cache=False).logits[0, -1]
    finally:
        for hook in hooks:
            hook.remove()
    plain = "planted" in seen and torch.equal(logits.float(), seen["planted"].float())
    if not (plain and torch.equal(seen["input"], seen["trunk"])):
        raise ConfigError(
            f"model type {causal.config.model_type!r} does not give plain lm_head logits (it "
            "changes states before lm_head or logits after it); choose another base model "
            "(llm.base)"
        )
    return seen["trunk"]
