"""One row of prompts with shared prefixes against one prompt at a time (A11, A12)."""

from __future__ import annotations

from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    MistralConfig,
    MistralForCausalLM,
    PhimoeConfig,
    PhimoeForCausalLM,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from csrm_tasks.errors import ConfigError
from csrm_tasks.llm.network.head import check_read_out, label_logits, soft_cross_entropy
from csrm_tasks.llm.network.model import add_lora, load_base
from csrm_tasks.llm.network.packed import Parts, pack, run_packed
from csrm_tasks.sections import Lora
from tests.llm_fixtures import make_base

CPU = torch.device("cpu")
LABELS = torch.tensor([7, 3, 11])
VOCABULARY = 280
TAILS = {"a": (9, 3, 40, 8, 9), "b": (1, 2), "c": (5,), "d": (30,)}  # c and d share nothing
PREFIXES = {"a": 12, "b": 31, "c": 7, "d": 20}


@pytest.fixture(params=["llama", "qwen3"])
def causal(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """A tiny model with grouped-query attention and a LoRA that is not at zero."""
    folder = make_base(tmp_path)
    if request.param == "qwen3":
        torch.manual_seed(0)
        config = Qwen3Config(
            vocab_size=346, hidden_size=32, intermediate_size=64, num_hidden_layers=3,
            num_attention_heads=4, num_key_value_heads=2, head_dim=16, initializer_range=0.15,
        )  # fmt: skip
        Qwen3ForCausalLM(config).save_pretrained(folder)
    model = load_base(str(folder))
    add_lora(model, Lora(r=4, alpha=8, dropout=0.0), seed=0)
    with torch.no_grad():
        for name, p in model.causal.named_parameters():
            if "lora_B" in name:
                p.normal_(0, 0.2, generator=torch.Generator().manual_seed(len(name)))
    return model.causal


def prompts(seed: int = 0) -> list[tuple[np.ndarray, np.ndarray]]:
    """Prompts of four queries in mixed order."""
    rng = np.random.default_rng(seed)
    found = []
    for name, tails in TAILS.items():
        prefix = rng.integers(0, VOCABULARY, PREFIXES[name], np.int32)
        found += [(prefix, rng.integers(0, VOCABULARY, n, np.int32)) for n in tails]
    rng.shuffle(found)
    return found


def packed_logits(causal: Any, parts: Parts) -> Tensor:
    return label_logits(causal, run_packed(causal, pack(parts, CPU)), LABELS)


def lone_logits(causal: Any, parts: Parts) -> Tensor:
    """Every prompt by itself, the model's own logits of the whole vocabulary."""
    found = []
    for both in parts:
        ids = torch.from_numpy(np.concatenate(both)).long()[None]
        found.append(causal(input_ids=ids).logits[0, -1, LABELS])
    return torch.stack(found)


def test_loss_and_gradients_are_those_of_one_prompt_at_a_time(causal: Any) -> None:
    causal = deepcopy(causal).double()  # in fp32 some processors' sums differ by more than 1e-6
    parts = prompts()
    target = torch.randn(len(parts), 3, generator=torch.Generator().manual_seed(2)).softmax(-1)
    losses = [soft_cross_entropy(f(causal, parts), target) for f in (packed_logits, lone_logits)]
    assert (losses[0] - losses[1]).abs().item() <= 2e-7
    trained = [p for p in causal.parameters() if p.requires_grad]
    for ours, theirs in zip(*(torch.autograd.grad(x, trained) for x in losses), strict=True):
        assert theirs.abs().max() > 1e-4
        assert (ours - theirs).abs().max() <= 2e-7


@pytest.mark.parametrize("seed", range(4))
def test_logits_are_those_of_one_prompt_at_a_time(causal: Any, seed: int) -> None:
    parts = prompts(seed)
    with torch.no_grad():
        difference = packed_logits(causal, parts) - lone_logits(causal, parts)
    assert difference.abs().max() <= 1e-5


def test_a_shared_prefix_stands_in_the_row_once() -> None:
    parts = prompts()
    packed = pack(parts, CPU)
    assert packed.ids.shape[1] == sum(PREFIXES.values()) + sum(map(sum, TAILS.values()))
    assert packed.longest == 12 + 40
    for i, (prefix, tail) in enumerate(parts):
        end = int(packed.ends[i])
        assert packed.ids[0, end] == tail[-1]
        assert packed.positions[0, end] == len(prefix) + len(tail) - 1


def test_a_product_is_not_seen_by_its_siblings_nor_what_follows_by_what_precedes(
    causal: Any,
) -> None:
    parts = prompts()
    other = [(p, t.copy()) for p, t in parts]
    changed = [i for i, (_, t) in enumerate(parts) if len(t) in (40, 30)]
    for i in changed:
        other[i][1][:] = (other[i][1] + 1) % VOCABULARY
    with torch.no_grad():
        before, after = packed_logits(causal, parts), packed_logits(causal, other)
    same = [i for i in range(len(parts)) if i not in changed]
    assert torch.equal(before[same], after[same])
    assert (before[changed] - after[changed]).abs().min() > 1e-4


def test_hidden_states_before_the_end_do_not_know_it(causal: Any) -> None:
    """The state of a prompt's token is that of the prompt which ends there."""
    prefix, tail = next(p for p in prompts() if len(p[1]) == 40)
    cut = [(prefix, tail[:n]) for n in range(1, 41)]
    ids = torch.from_numpy(np.concatenate([prefix, tail])).long()[None]
    with torch.no_grad():
        whole = causal(input_ids=ids).logits[0, len(prefix) :, LABELS]
        assert (packed_logits(causal, cut) - whole).abs().max() <= 1e-5


def test_neither_order_nor_company_matters(causal: Any) -> None:
    parts = prompts()
    order = np.random.default_rng(1).permutation(len(parts))
    with torch.no_grad():
        whole = packed_logits(causal, parts)
        assert (packed_logits(causal, [parts[i] for i in order]) - whole[order]).abs().max() <= 1e-5
        for size in (1, 2, 5):
            cut = [packed_logits(causal, parts[i : i + size]) for i in range(0, len(parts), size)]
            assert (torch.cat(cut) - whole).abs().max() <= 1e-5


def test_calls_without_a_packed_row_attend_as_before(causal: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, VOCABULARY, (2, 10), generator=generator)
    mask = torch.ones_like(ids)
    mask[0, :4] = 0  # padded on the left
    with torch.no_grad():
        causal.set_attn_implementation("sdpa")
        expected = causal(input_ids=ids, attention_mask=mask).logits[:, -1]
        run_packed(causal, pack(prompts(), CPU))
        assert torch.equal(causal(input_ids=ids, attention_mask=mask).logits[:, -1], expected)


SAME: dict[str, Any] = {
    "vocab_size": 300, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.15,
}  # fmt: skip
SLIDING, FULL = "sliding_attention", "full_attention"
FEW_EXPERTS: dict[str, Any] = {"num_experts": 2, "num_experts_per_tok": 1}
WINDOWED: dict[str, Any] = {
    "mistral": lambda n: MistralForCausalLM(MistralConfig(**SAME, sliding_window=n)),
    "gemma3": lambda n: Gemma3ForCausalLM(
        Gemma3TextConfig(
            **SAME, head_dim=16, sliding_window=n, layer_types=[SLIDING, FULL, SLIDING, SLIDING]
        )
    ),
    "qwen3": lambda n: Qwen3ForCausalLM(
        Qwen3Config(**SAME, head_dim=16, sliding_window=n, use_sliding_window=True,
                    layer_types=[FULL, SLIDING, FULL, FULL])
    ),
    "qwen2_moe": lambda n: Qwen2MoeForCausalLM(
        Qwen2MoeConfig(**SAME, **FEW_EXPERTS, moe_intermediate_size=16, sliding_window=n,
                       shared_expert_intermediate_size=16, use_sliding_window=True,
                       layer_types=[SLIDING, FULL, FULL, SLIDING])
    ),
    "phimoe": lambda n: PhimoeForCausalLM(
        PhimoeConfig(**SAME, num_local_experts=2, num_experts_per_tok=2, sliding_window=n)
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", sorted(WINDOWED))
@pytest.mark.parametrize("window", [1, 8, 13, 40])
def test_a_sliding_window_sees_what_the_model_itself_sees(kind: str, window: int) -> None:
    """Windows that end within a prompt's own tokens, within its prefix, and behind some prompts."""
    torch.manual_seed(0)
    causal = WINDOWED[kind](window).eval()
    wide = WINDOWED[kind](4096).eval()
    wide.load_state_dict(causal.state_dict())
    parts = prompts()
    assert max(len(a) + len(b) for a, b in parts) > 40 > min(len(a) + len(b) for a, b in parts)
    with torch.no_grad():
        expected = lone_logits(causal, parts)
        assert (packed_logits(causal, parts) - expected).abs().max() <= 1e-5
        assert (lone_logits(wide, parts) - expected).abs().max() > 1e-3  # the window matters
        assert (packed_logits(wide, parts) - lone_logits(wide, parts)).abs().max() <= 1e-5


@settings(max_examples=150)
@given(st.data())
def test_any_row_within_any_window(data: st.DataObject) -> None:
    causal = _mistral(data.draw(st.integers(1, 30)))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    prefixes = [rng.integers(0, 300, n, np.int32) for n in data.draw(LENGTHS)]
    tails = data.draw(st.lists(st.integers(1, 25), min_size=1, max_size=6))
    parts = [
        (prefixes[int(rng.integers(len(prefixes)))], rng.integers(0, 300, n, np.int32))
        for n in tails
    ]
    with torch.no_grad():
        difference = packed_logits(causal, parts) - lone_logits(causal, parts)
    assert difference.abs().max() <= 1e-5


LENGTHS = st.lists(st.integers(0, 25), min_size=1, max_size=3)


@cache
def _mistral(window: int) -> Any:
    torch.manual_seed(window)
    few = SAME | {"num_hidden_layers": 2}
    return MistralForCausalLM(MistralConfig(**few, sliding_window=window)).eval()


def test_training_within_a_window_has_the_gradients_of_one_prompt_at_a_time() -> None:
    torch.manual_seed(0)
    causal = WINDOWED["gemma3"](13)
    causal.gradient_checkpointing_enable({"use_reentrant": False})
    causal.base_model.layers[-1].gradient_checkpointing = False
    causal.train()
    parts = prompts()
    target = torch.randn(len(parts), 3, generator=torch.Generator().manual_seed(2)).softmax(-1)
    trained = [p for n, p in causal.named_parameters() if "_proj" in n]
    found = []
    for logits in (packed_logits, lone_logits):
        loss = soft_cross_entropy(logits(causal, parts), target)
        found.append(torch.autograd.grad(loss, trained))
    for ours, theirs in zip(*found, strict=True):
        assert theirs.abs().max() > 1e-5
        assert (ours - theirs).abs().max() <= 1e-6


def test_attention_in_chunks_is_refused_when_the_base_is_loaded() -> None:
    causal = WINDOWED["mistral"](40)
    causal.config.layer_types = ["chunked_attention"] * 4
    with pytest.raises(ConfigError, match=r"'mistral' attends in chunks .*attention_chunk_size"):
        check_read_out(causal, torch.tensor([[1, 5, 9]]))
