"""One row of prompts with shared prefixes against one prompt at a time (A11, A12)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import MistralConfig, MistralForCausalLM, Qwen3Config, Qwen3ForCausalLM

from csrm_tasks.errors import ConfigError
from csrm_tasks.llm.network.head import label_logits, soft_cross_entropy
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
    parts = prompts()
    target = torch.randn(len(parts), 3, generator=torch.Generator().manual_seed(2)).softmax(-1)
    losses = [soft_cross_entropy(f(causal, parts), target) for f in (packed_logits, lone_logits)]
    assert (losses[0] - losses[1]).abs().item() <= 1e-6
    trained = [p for p in causal.parameters() if p.requires_grad]
    for ours, theirs in zip(*(torch.autograd.grad(x, trained) for x in losses), strict=True):
        assert theirs.abs().max() > 1e-4
        assert (ours - theirs).abs().max() <= 1e-6


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


def test_a_window_shorter_than_a_prompt_is_refused() -> None:
    config = MistralConfig(
        vocab_size=300, hidden_size=32, intermediate_size=64, num_hidden_layers=1,
        num_attention_heads=4, num_key_value_heads=2, sliding_window=40,
    )  # fmt: skip
    mistral = MistralForCausalLM(config)
    long = (np.zeros(20, np.int32), np.ones(21, np.int32))
    run_packed(mistral, pack([(long[0], long[1][:20])] * 2, CPU))
    with pytest.raises(ConfigError, match="window of 40 tokens"):
        run_packed(mistral, pack([long], CPU))
