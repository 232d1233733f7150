"""LoRA and attention of a bf16 base on a CPU, against peft's and torch's own in fp32."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from peft.tuners.lora.layer import Linear
from torch import Tensor
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, Qwen2Config, Qwen2ForCausalLM

from csrm_tasks.llm.network.lora import Bf16Linear, LowRankProduct, compute_in_bf16
from csrm_tasks.llm.network.packed import attend, pack

ROUNDING = 2.0**-8  # of one bf16 number, relative
CPU = torch.device("cpu")


def small(kind: str) -> Any:
    """A causal model in bf16: no bias (Gemma 3), or one in q, k and v (Qwen 2)."""
    torch.manual_seed(0)
    shared: dict[str, Any] = {
        "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.2,
    }  # fmt: skip
    if kind == "gemma3":
        return Gemma3ForCausalLM(Gemma3TextConfig(**shared, head_dim=8)).to(torch.bfloat16)
    causal = Qwen2ForCausalLM(Qwen2Config(**shared)).to(torch.bfloat16)
    for name, weight in causal.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(weight, 0.0, 0.5)
    return causal


def adapted(kind: str, dropout: float = 0.0) -> Any:
    """A LoRA on all linear layers whose B is not zero."""
    config = LoraConfig(r=4, lora_alpha=8, lora_dropout=dropout, target_modules="all-linear")
    causal = small(kind)
    peft = get_peft_model(causal, config)
    for name, weight in peft.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, 0.0, 0.1)
    return causal


def gradients(causal: Any, ids: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits, and the gradients of the adapter under a random direction of them."""
    logits = causal(input_ids=ids, use_cache=False).logits.float()
    direction = torch.randn(logits.shape, generator=torch.Generator().manual_seed(1))
    (logits * direction).sum().backward()
    found = {n: p.grad.clone() for n, p in causal.named_parameters() if p.grad is not None}
    causal.zero_grad()
    return logits.detach(), found


@pytest.mark.parametrize("kind", ["gemma3", "qwen2"])
def test_a_bf16_lora_is_pefts_but_for_rounding(kind: str) -> None:
    causal = adapted(kind)
    ids = torch.arange(3, 43)[None]
    logits, expected = gradients(causal, ids)
    compute_in_bf16(causal)
    assert sum(isinstance(m, Bf16Linear) for m in causal.modules()) == 14
    found_logits, found = gradients(causal, ids)
    assert torch.equal(found_logits, logits) is False  # another path was taken
    assert (found_logits - logits).abs().max() < 16 * ROUNDING * logits.abs().max()
    assert found.keys() == expected.keys()
    for name, grad in found.items():
        assert grad.dtype == torch.float32
        distance = (grad - expected[name]).norm() / expected[name].norm()
        assert distance < 16 * ROUNDING, name


def test_the_product_and_its_gradients_are_exact() -> None:
    made = torch.Generator().manual_seed(0)

    def draw(*shape: int, grad: bool = True) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=made).requires_grad_(grad)

    x, weight, a, b = draw(5, 4), draw(6, 4, grad=False), draw(2, 4), draw(6, 2)
    y = LowRankProduct.apply(x, weight, a, b, 0.7)
    torch.testing.assert_close(y, x @ weight.T + 0.7 * (x @ a.T) @ b.T)
    assert torch.autograd.gradcheck(LowRankProduct.apply, (x, weight, a, b, 0.7))


def test_what_does_not_fit_stays_pefts() -> None:
    with_dropout = adapted("gemma3", dropout=0.1)
    fp32 = adapted("gemma3").to(torch.float32)
    for causal in (with_dropout, fp32):
        compute_in_bf16(causal)
        kinds = {type(m) for m in causal.modules() if isinstance(m, Linear)}
        assert kinds == {Linear}


def test_a_merged_layer_adds_its_adapter_once() -> None:
    causal = adapted("gemma3")
    compute_in_bf16(causal)
    ids = torch.arange(3, 43)[None]
    before, _ = gradients(causal, ids)
    for layer in causal.modules():
        if isinstance(layer, Linear):
            layer.merge()
    with torch.no_grad():
        after = causal(input_ids=ids, use_cache=False).logits.float()
    assert (after - before).abs().max() < 32 * ROUNDING * before.abs().max()


@settings(max_examples=60, deadline=None)
@given(
    tails=st.lists(st.integers(1, 40), min_size=1, max_size=6),
    prefix=st.integers(0, 30),
    heads=st.sampled_from([(4, 1), (4, 2), (2, 2)]),
    window=st.sampled_from([None, 5, 16]),
    last=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_attention_in_bf16_is_the_one_in_fp32(
    tails: list[int],
    prefix: int,
    heads: tuple[int, int],
    window: int | None,
    last: bool,
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    shared = rng.integers(0, 9, prefix, np.int32)
    packed = pack([(shared, rng.integers(0, 9, n, np.int32)) for n in tails], CPU)
    total, made = packed.ids.shape[1], torch.Generator().manual_seed(seed)
    asked, kept = heads
    query, key, value = (
        torch.randn(1, h, total, 8, generator=made).bfloat16() for h in (asked, kept, kept)
    )
    plan = packed.plan_of(window, last)
    found = []
    for kind in (torch.bfloat16, torch.float32):
        given_ = [x.detach().to(kind).requires_grad_() for x in (query, key, value)]
        out = attend(given_[0], given_[1], given_[2], plan, None)
        out.float().square().sum().backward()
        found.append(
            [out.detach().float(), *(x.grad.float() for x in given_ if x.grad is not None)]
        )
    for ours, exact in zip(*found, strict=True):
        assert (ours - exact).abs().max() <= 8 * ROUNDING * (1 + exact.abs().max())
