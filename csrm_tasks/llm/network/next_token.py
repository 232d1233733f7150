"""Next-token loss over the whole vocabulary, a piece of the logits at a time.

4,096 tokens against a vocabulary of 262,144 are 4.3 GB of logits in fp32, and their gradient as
much again. The head is frozen (A5), so all that a backward pass needs of them is the gradient of
the hidden states: it is made in the forward pass, piece by piece, and the logits are dropped.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

AT_ONCE = 1 << 24  # logits of a piece: 64 MB in fp32


def next_token_loss(causal: Any, hidden: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Return Σᵢ weightsᵢ · (−log p(targetsᵢ)) in fp32; gradients flow to ``hidden`` alone.

    ``hidden`` (N, H) are the last hidden states of the tokens before ``targets`` (N,).
    """
    head = causal.get_output_embeddings()
    given = (hidden, head.weight, head.bias, targets, weights)
    loss: Tensor = _Loss.apply(*given)  # type: ignore[no-untyped-call]
    return loss


class _Loss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor,
        weights: Tensor,
    ) -> Tensor:  # fmt: skip
        total = hidden.new_zeros((), dtype=torch.float32)
        gradient = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        size = max(1, AT_ONCE // len(weight))
        for start in range(0, len(hidden), size):
            at = slice(start, start + size)
            logits = functional.linear(hidden[at], weight, bias).float()
            rows = torch.arange(len(logits), device=logits.device)
            total += weights[at] @ (logits.logsumexp(-1) - logits[rows, targets[at]])
            if gradient is not None:
                slope = logits.softmax(-1)
                slope[rows, targets[at]] -= 1.0
                gradient[at] = (slope * weights[at, None]).to(weight.dtype) @ weight
        if gradient is not None:
            ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * outer[0].to(gradient.dtype), None, None, None, None
