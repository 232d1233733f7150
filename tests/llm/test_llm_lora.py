"""LoRA on every linear layer, scaled by √r: packed, merged and exported as peft's own (A5, A14)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.nn import functional
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from csrm_tasks.errors import ConfigError
from csrm_tasks.llm.network.head import label_logits, soft_cross_entropy
from csrm_tasks.llm.network.identity import LlmCard
from csrm_tasks.llm.network.model import (
    Model,
    adapter_state,
    add_lora,
    checkpoint_activations,
    load_base,
    merge_adapter,
    put_adapter,
    save_adapter,
    start_from,
)
from csrm_tasks.llm.network.packed import Parts, pack, run_packed
from csrm_tasks.llm.prompt.encoding import PromptEncoder
from csrm_tasks.llm.prompt.prompts import RELEVANCE, ProductFields, QueryFields
from csrm_tasks.llm.scoring.export import export_classifier
from csrm_tasks.llm.scoring.predict import label_probabilities
from csrm_tasks.sections import Lora
from tests.llm_fixtures import make_base, make_tokenizer, save_random

WINDOW = 40  # tokens: prompts here have some 60
LAYERS: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 1, "head_dim": 16, "max_position_embeddings": 512,
}  # fmt: skip
SLIDING, FULL = "sliding_attention", "full_attention"
KINDS: dict[str, Any] = {
    "gemma3": (Gemma3ForCausalLM, Gemma3TextConfig,
               {"sliding_window": WINDOW, "layer_types": [SLIDING, FULL, SLIDING]}),
    "llama": (LlamaForCausalLM, LlamaConfig, {"tie_word_embeddings": False}),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, {"tie_word_embeddings": True}),
}  # fmt: skip
LORAS = {
    "all-linear": Lora(r=4, alpha=8, dropout=0.0, targets="all-linear"),
    "rslora": Lora(r=4, alpha=8, dropout=0.0, targets="all-linear", rslora=True),
    "listed": Lora(r=4, alpha=8, dropout=0.0, targets=("k_proj", "down_proj"), rslora=True),
}


@pytest.fixture(params=KINDS)
def base(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A stand-in with grouped heads: q/k norms and windows (Gemma 3), q/k norms, neither."""
    return make(request.param, tmp_path / "base")


def make(kind: str, folder: Path) -> Path:
    tokenizer = make_tokenizer(folder)
    model, config, more = KINDS[kind]
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    own = config(vocab_size=len(tokenizer), pad_token_id=None, **LAYERS, **more, **ends)
    return save_random(model, own, folder)


def adapted(base: Path, lora: Lora) -> Model:
    """Load it with an adapter that is not at zero."""
    model = load_base(str(base))
    add_lora(model, lora, seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, p in model.causal.named_parameters():
            if "lora_B" in name:
                p.normal_(0, 0.1, generator=generator)
    return model


def prompts() -> Parts:
    """Prompts of two queries in turn, and one that shares nothing."""
    rng = np.random.default_rng(0)
    prefixes = [rng.integers(3, 300, n, np.int32) for n in (30, 45, 5)]
    return [(prefixes[i], rng.integers(3, 300, 9 + 4 * i, np.int32)) for i in (0, 1, 0, 1, 1, 2)]


def by_peft(model: Model, parts: Parts) -> Tensor:
    """Label logits by peft's own forward, each prompt by itself, over the whole vocabulary."""
    found = []
    for both in parts:
        ids = torch.from_numpy(np.concatenate(both)).long()[None]
        logits = model.peft(input_ids=ids, use_cache=False).logits
        found.append(logits[0, -1, model.labels["relevance"]])
    return torch.stack(found)


def packed_logits(model: Model, parts: Parts) -> Tensor:
    hidden = run_packed(model.causal, pack(parts, model.device))
    return label_logits(model.causal, hidden, model.labels["relevance"])


def gradients(model: Model, loss: Tensor) -> list[Tensor]:
    trained = [p for p in model.causal.parameters() if p.requires_grad]
    return list(torch.autograd.grad(loss, trained))


@pytest.mark.parametrize("lora", LORAS.values(), ids=LORAS)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_loss_and_gradients_are_those_of_pefts_own_forward(
    base: Path, lora: Lora, checkpointing: bool
) -> None:
    model, parts = adapted(base, lora), prompts()
    model.causal.train()
    target = torch.randn(len(parts), 3, generator=torch.Generator().manual_seed(2)).softmax(-1)
    expected = functional.cross_entropy(by_peft(model, parts), target)
    theirs = gradients(model, expected)
    if checkpointing:
        checkpoint_activations(model.causal)
    found = soft_cross_entropy(packed_logits(model, parts), target)
    assert (found - expected).abs().item() <= 1e-5
    for ours, own in zip(gradients(model, found), theirs, strict=True):
        assert own.abs().max() > 1e-6
        assert (ours - own).abs().max() <= 1e-5 * max(1.0, float(own.abs().max()))


def test_all_linear_layers_of_the_trunk_are_adapted_and_nothing_else(base: Path) -> None:
    model = adapted(base, LORAS["rslora"])
    plain = load_base(str(base)).causal.base_model
    linear = {n for n, m in plain.named_modules() if isinstance(m, torch.nn.Linear)}
    assert len(linear) == 7 * LAYERS["num_hidden_layers"]
    trained = {n for n, p in model.causal.named_parameters() if p.requires_grad}
    expected = {f"model.{n}.lora_{x}.default.weight" for n in linear for x in "AB"}
    assert trained == expected
    assert all(p.dtype == torch.float32 for p in model.causal.parameters() if p.requires_grad)


@pytest.mark.parametrize("name", LORAS)
def test_merging_adds_the_product_at_its_scale(base: Path, tmp_path: Path, name: str) -> None:
    """The weights are W + scale · B · A, scale alpha / r or alpha / √r; nothing else is changed."""
    model = adapted(base, LORAS[name])
    state = adapter_state(model)
    save_adapter(model, state, tmp_path / "adapter")
    scale = 8 / 4 if name == "all-linear" else 8 / 2
    expected = {k: v.clone() for k, v in load_base(str(base)).causal.state_dict().items()}
    for key, a in state.items():
        if ".lora_A." in key:
            weight = key.removeprefix("base_model.model.").replace("lora_A.", "")
            expected[weight] += scale * state[key.replace("lora_A", "lora_B")] @ a
    merged = load_base(str(base))
    merge_adapter(merged, tmp_path / "adapter")
    found = merged.causal.state_dict()
    assert found.keys() == expected.keys()
    assert all((found[k] - expected[k]).abs().max() <= 1e-6 for k in expected)
    beside = load_base(str(base))
    put_adapter(beside, tmp_path / "adapter")
    live, again, alone = (
        label_probabilities(m, prompts(), "relevance") for m in (model, beside, merged)
    )
    assert np.array_equal(live, again)
    assert np.abs(alone - live).max() <= 1e-5
    plain = label_probabilities(load_base(str(base)), prompts(), "relevance")
    assert np.abs(plain - live).max() > 0.02


def test_an_adapter_of_all_layers_is_exported(base: Path, tmp_path: Path) -> None:
    model = adapted(base, LORAS["rslora"])
    save_adapter(model, adapter_state(model), tmp_path / "adapter")
    card(model).write(tmp_path)
    words = ["milk", "拉麵", "soup 尿布", "保久 milk", "辣味"]
    queries = [QueryFields(words[i % 5]) for i in range(10)]
    products = [ProductFields(" ".join(words[: 1 + i % 4])) for i in range(10)]
    (tmp_path / "out").mkdir()
    found = export_classifier(tmp_path, queries, products, tmp_path / "out")
    assert found.max_delta <= 1e-4
    encoder = PromptEncoder(model.tokenizer, 96)
    parts = [encoder.parts(RELEVANCE, q, p) for q, p in zip(queries, products, strict=True)]
    plain = label_probabilities(load_base(str(base)), parts, "relevance")
    assert np.abs(plain - label_probabilities(model, parts, "relevance")).max() > 0.02


def card(model: Model, base_digest: str = "") -> LlmCard:
    labels = {name: ids.tolist() for name, ids in model.labels.items()}
    digest = base_digest or model.base_digest
    return LlmCard(model.base, digest, labels, 96, False, "fp32", "a", 0)


def test_a_warm_start_is_the_other_adapter(tmp_path: Path) -> None:
    live = adapted(make("gemma3", tmp_path / "base"), LORAS["rslora"])
    save_adapter(live, adapter_state(live), tmp_path / "live" / "adapter")
    card(live).write(tmp_path / "live")
    model = load_base(live.base)
    add_lora(model, LORAS["rslora"], seed=5)
    start_from(model, tmp_path / "live")
    assert np.array_equal(*(label_probabilities(m, prompts(), "relevance") for m in (model, live)))
    assert all(p.requires_grad for n, p in model.causal.named_parameters() if "lora_" in n)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"r": 8}, "rank 4, this market 8"),
        ({"alpha": 9}, "alpha 8, this market 9"),
        ({"rslora": False}, "rslora True, this market False"),
        (
            {"targets": ("q_proj", "k_proj")},
            r"targets .*down_proj.*, this market .*'k_proj', 'q",
        ),
    ],
)
def test_a_warm_start_of_another_lora_is_refused(
    tmp_path: Path, changed: dict[str, Any], message: str
) -> None:
    live = adapted(make_base(tmp_path / "base"), LORAS["rslora"])
    save_adapter(live, adapter_state(live), tmp_path / "live" / "adapter")
    card(live).write(tmp_path / "live")
    model = load_base(live.base)
    add_lora(model, LORAS["rslora"].model_copy(update=changed), seed=0)
    with pytest.raises(ConfigError, match=f"llm.warm_start: .* has {message}") as caught:
        start_from(model, tmp_path / "live")
    assert "\n" not in str(caught.value)


def test_a_warm_start_on_another_base_is_refused(tmp_path: Path) -> None:
    live = adapted(make_base(tmp_path / "base"), LORAS["rslora"])
    save_adapter(live, adapter_state(live), tmp_path / "live" / "adapter")
    card(live, "0" * 64).write(tmp_path / "live")
    with pytest.raises(ConfigError, match=r"llm.warm_start: .* another base \(llm.base\)"):
        start_from(live, tmp_path / "live")


def test_a_warm_start_on_another_stage_0_is_refused(tmp_path: Path) -> None:
    live = adapted(make_base(tmp_path / "base"), LORAS["rslora"])
    save_adapter(live, adapter_state(live), tmp_path / "live" / "adapter")
    replace(card(live), pretraining="0" * 64).write(tmp_path / "live")
    with pytest.raises(ConfigError, match=r"llm.warm_start: .* another stage 0 \(llm.pretraining"):
        start_from(live, tmp_path / "live")


def test_targets_are_a_list_or_all_linear() -> None:
    with pytest.raises(ValidationError, match="all-linear"):
        Lora.model_validate({"targets": "q_proj"})
