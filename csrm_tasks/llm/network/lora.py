"""LoRA layers of a bf16 base that compute in bf16; the adapter itself stays fp32 (A5).

peft multiplies by an fp32 adapter in fp32: it casts every layer's input, and an fp32 product is
about four times slower than a bf16 one on a CPU that has both. With all linear layers of Gemma 3
270M adapted at rank 32 that was a quarter of a step and a third of its memory. Here the two thin
products run in the base's format, which is what autocast does on a GPU, and the gradients of the
adapter are fp32 again, so that small updates are not lost to rounding.
"""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora.layer import Linear
from torch import Tensor
from torch.autograd.function import once_differentiable


class LowRankProduct(torch.autograd.Function):
    """y = W·x + s·B·(A·x) in the format of x; ``weight`` is frozen.

    Shapes: x (T, I), weight (O, I), a (r, I), b (O, r), y (T, O). ``a`` and ``b`` may be fp32 where
    x is not, and have gradients of their own format.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
        """Return y."""
        thin, wide = a.to(x.dtype), (b * scale).to(x.dtype)
        low = x @ thin.T  # (T, r)
        ctx.save_for_backward(x, weight, thin, wide, low)
        ctx.scale, ctx.kept = scale, a.dtype
        return torch.addmm(x @ weight.T, low, wide.T)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, Tensor, Tensor, None]:
        """Return the gradients of x, a and b."""
        x, weight, thin, wide, low = ctx.saved_tensors
        grad_low = grad @ wide  # (T, r)
        grad_x = torch.addmm(grad @ weight, grad_low, thin)
        grad_a = (grad_low.T @ x).to(ctx.kept)
        grad_b = (grad.T @ low).to(ctx.kept) * ctx.scale
        return grad_x, None, grad_a, grad_b, None


class Bf16Linear(Linear):  # type: ignore[misc]
    """peft's layer with :class:`LowRankProduct`; nothing else of it changes."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return the layer's output (…, O) of x (…, I)."""
        weight, name = self.base_layer.weight, self.active_adapters[0]
        if weight.dtype != torch.bfloat16 or self.merged or self.disable_adapters:
            out: Tensor = super().forward(x, *args, **kwargs)
            return out
        y: Tensor = LowRankProduct.apply(  # type: ignore[no-untyped-call]
            x.reshape(-1, x.shape[-1]), weight,
            self.lora_A[name].weight, self.lora_B[name].weight, self.scaling[name],
        )  # fmt: skip
        y, bias = y.view(*x.shape[:-1], -1), self.base_layer.bias
        return y if bias is None else y + bias


def compute_in_bf16(causal: torch.nn.Module) -> None:
    """Let the LoRA layers of a bf16 base on a CPU compute in bf16, in place.

    Not where a layer has dropout before its adapter, or more than one adapter: these are peft's.
    """
    for layer in causal.modules():
        if type(layer) is Linear and _fits(layer):
            layer.__class__ = Bf16Linear


def _fits(layer: Linear) -> bool:
    weight = layer.base_layer.weight
    plain = not layer.lora_variant and len(layer.active_adapters) == 1
    dropout = any(isinstance(d, torch.nn.Dropout) and d.p > 0 for d in layer.lora_dropout.values())
    return weight.dtype == torch.bfloat16 and weight.device.type == "cpu" and plain and not dropout
