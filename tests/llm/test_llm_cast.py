"""A base wide enough for bf16: casting rounds its weights and nothing else (A13, A14)."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    ModernBertConfig,
    ModernBertModel,
    XLMRobertaConfig,
    XLMRobertaModel,
)

from csrm_tasks.errors import ArtifactError
from csrm_tasks.llm.network import model as network
from csrm_tasks.llm.network.model import Model, load_base, merge_adapter
from csrm_tasks.llm.prompt.encoding import PromptEncoder
from csrm_tasks.llm.prompt.prompts import RELEVANCE, ProductFields, QueryFields
from csrm_tasks.llm.scoring import export as export_module
from csrm_tasks.llm.scoring.export import TOLERANCE, classify, export_classifier
from csrm_tasks.llm.scoring.predict import Floats, label_probabilities
from csrm_tasks.retrieval.encoder import BiEncoder
from csrm_tasks.training.precision import NARROW, cast
from tests.llm.test_llm_export import trained
from tests.llm_fixtures import make_tokenizer

WORDS = ("milk", "拉麵", "soup 尿布", "保久 milk", "辣味", "우유 라면 순한맛")
LENGTH = 256  # tokens: what rounded frequencies do grows with the position


@pytest.fixture
def wide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A rotary model in bf16, of the smallest width at which bf16 may be chosen; here it is."""
    folder = tmp_path / "base"
    tokenizer = make_tokenizer(folder)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=NARROW, intermediate_size=NARROW,
        num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    torch.manual_seed(0)
    causal = LlamaForCausalLM(config)
    for weight in causal.parameters():
        if weight.ndim == 2:
            torch.nn.init.normal_(weight, 0.0, 0.1)
    causal.to(torch.bfloat16).save_pretrained(folder)
    monkeypatch.setattr(network, "choose_dtype", lambda device, width: torch.bfloat16)
    return folder


def pairs() -> tuple[list[QueryFields], list[ProductFields]]:
    queries = [QueryFields(WORDS[i % 6], titles=WORDS[:3] * 6) for i in range(24)]
    products = [ProductFields(" ".join((WORDS * 6)[: 1 + i]), WORDS[i % 3]) for i in range(24)]
    return queries, products


def prompts_of(model: Model) -> list[tuple[Any, Any]]:
    encoder = PromptEncoder(model.tokenizer, LENGTH)
    return [encoder.parts(RELEVANCE, q, p) for q, p in zip(*pairs(), strict=True)]


def llm_of(base: Path, folder: Path) -> Path:
    """Write an adapter of ``base``, with a card of prompts as long as the probes."""
    llm, model = trained(base, folder, "bf16")
    assert model.dtype == torch.bfloat16
    card = (llm / "llm.json").read_text().replace('"max_length": 96', f'"max_length": {LENGTH}')
    (llm / "llm.json").write_text(card)
    return llm


def reference(base: Path, llm: Path, model: Model) -> Floats:
    """Transformers and peft in fp32, one prompt at a time, the whole vocabulary's logits."""
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    plain = PeftModel.from_pretrained(plain, str(llm / "adapter")).eval()
    found = []
    with torch.inference_mode():
        for part in prompts_of(model):
            ids = torch.from_numpy(np.concatenate(part)).long()[None]
            found.append(plain(input_ids=ids).logits[0, -1, model.labels[RELEVANCE.name]])
    return torch.stack(found).softmax(-1).numpy()


def rounded_merge(model: Model, folder: Path) -> None:
    """The fault: everything cast, rotary frequencies with it."""
    merge_adapter(model, folder)
    model.causal.to(torch.bfloat16).to(model.dtype)


def test_merging_leaves_the_rotary_frequencies_as_they_were(wide: Path, tmp_path: Path) -> None:
    llm = llm_of(wide, tmp_path / "llm")
    before, merged = load_base(str(wide)), load_base(str(wide))
    merge_adapter(merged, llm / "adapter")
    assert {p.dtype for p in merged.causal.parameters()} == {torch.bfloat16}
    buffers = dict(merged.causal.named_buffers())
    assert any("inv_freq" in name for name in buffers)
    for name, buffer in before.causal.named_buffers():
        assert torch.equal(buffers[name], buffer) and buffers[name].dtype == torch.float32
    merged.causal.save_pretrained(tmp_path / "merged")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.bfloat16)
    ids = torch.from_numpy(np.concatenate(prompts_of(merged)[-1])).long()[None]
    assert ids.shape[1] > 128
    merged.causal.set_attn_implementation("sdpa")
    with torch.inference_mode():
        assert torch.equal(merged.causal(ids).logits, again(ids).logits)


def test_the_export_keeps_to_the_fp32_reference_and_takes_fp32_where_bf16_does_not(
    wide: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    llm = llm_of(wide, tmp_path / "llm")
    model = load_base(str(wide))
    expected = reference(wide, llm, model)
    found = export_classifier(llm, *pairs(), tmp_path / "out")
    written = classify(tmp_path / "out" / "model", [np.concatenate(p) for p in prompts_of(model)])
    assert np.abs(written - expected).max() <= TOLERANCE == 1e-3
    assert found.max_delta <= TOLERANCE and found.precision == "fp32"
    assert "merged in bf16, a probability differs by" in caplog.text  # of bf16's arithmetic
    merge_adapter(model, llm / "adapter")
    cast(model.causal, torch.float32)  # what is left is the rounding of the merged weights
    merged = label_probabilities(model, prompts_of(model), RELEVANCE.name)
    assert np.sqrt(((merged - expected) ** 2).mean()) < 5e-3
    with pytest.raises(ArtifactError, match=r"in bf16, a probability differs .* export in fp32"):
        export_classifier(llm, *pairs(), tmp_path / "out", "bf16")


def test_the_export_sees_a_merge_that_rounded_the_frequencies(
    wide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its file is right: the frequencies are not in it. What scoring holds in memory is not."""
    llm = llm_of(wide, tmp_path / "llm")
    monkeypatch.setattr(export_module, "merge_adapter", rounded_merge)
    for precision in ("", "fp32", "bf16"):
        with pytest.raises(ArtifactError, match=r"merged model in memory differs by 0\.0"):
            export_classifier(llm, *pairs(), tmp_path / "out", precision)


@pytest.mark.parametrize("kind", ["modernbert", "xlm-roberta"])
def test_an_encoder_cast_for_inference_is_the_one_loaded_so(kind: str, tmp_path: Path) -> None:
    tokenizer = make_tokenizer(tmp_path)
    torch.manual_seed(0)
    same: dict[str, Any] = {
        "vocab_size": len(tokenizer), "hidden_size": NARROW, "intermediate_size": NARROW,
        "num_hidden_layers": 2, "num_attention_heads": 4, "pad_token_id": tokenizer.pad_token_id,
    }  # fmt: skip
    if kind == "modernbert":
        ModernBertModel(ModernBertConfig(**same)).save_pretrained(tmp_path)
    else:
        config = XLMRobertaConfig(**same, max_position_embeddings=300)
        XLMRobertaModel(config).save_pretrained(tmp_path)
    ours = BiEncoder.from_base(str(tmp_path), 16, LENGTH, 0).for_inference(torch.bfloat16)
    theirs = AutoModel.from_pretrained(tmp_path, dtype=torch.bfloat16).eval()
    table = ours.titles([" ".join(WORDS * 4)])
    ids, mask = table.batch(np.arange(1))
    with torch.inference_mode():
        found, expected = (
            m(input_ids=ids, attention_mask=mask).last_hidden_state for m in (ours.encoder, theirs)
        )
    assert ids.shape[1] > 64 and found.dtype == torch.bfloat16
    assert torch.equal(found, expected)
