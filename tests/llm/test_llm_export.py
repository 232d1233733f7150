"""The exported classifier: loaded by plain transformers, it says what the adapter says (A14)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from csrm_tasks import tracking
from csrm_tasks.artifacts import Artifact
from csrm_tasks.errors import ArtifactError, ConfigError
from csrm_tasks.llm.data import load_fields, load_pairs
from csrm_tasks.llm.network.identity import LlmCard
from csrm_tasks.llm.network.model import Model, adapter_state, add_lora, load_base, save_adapter
from csrm_tasks.llm.prompt.encoding import PromptEncoder
from csrm_tasks.llm.prompt.prompts import RELEVANCE, ProductFields, QueryFields
from csrm_tasks.llm.scoring import export as export_module
from csrm_tasks.llm.scoring.export import export_classifier
from csrm_tasks.llm.scoring.predict import Floats, label_probabilities
from csrm_tasks.sections import Lora
from csrm_tasks.settings import Settings
from tests.llm_fixtures import make_base, make_tokenizer, save_random
from tests.steps.test_steps_llm import Installation

pytestmark = pytest.mark.usefixtures("fingerprints_hold")

Pairs = tuple[list[QueryFields], list[ProductFields]]


def make_qwen3(folder: Path) -> Path:
    tokenizer = make_tokenizer(folder)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(str(folder))
    config = Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, max_position_embeddings=512,
        tie_word_embeddings=False, eos_token_id=tokenizer.eos_token_id, pad_token_id=None,
    )  # fmt: skip
    return save_random(Qwen3ForCausalLM, config, folder)


@pytest.fixture(params=["llama", "qwen3"])
def base(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    make = {"llama": make_base, "qwen3": make_qwen3}[request.param]
    return make(tmp_path / "base")


def trained(base: Path, folder: Path, precision: str = "fp32") -> tuple[Path, Model]:
    """Write an adapter that moves the model well away from its base; return it live as well."""
    model = load_base(str(base))
    add_lora(model, Lora(r=4, alpha=8, dropout=0.0), seed=0)
    torch.manual_seed(1)
    for name, p in model.causal.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p, 0.0, 0.2)
    save_adapter(model, adapter_state(model), folder / "adapter")
    labels = {name: ids.tolist() for name, ids in model.labels.items()}
    LlmCard(str(base), model.base_digest, labels, 96, False, precision, "a", 0, 1.5).write(folder)
    model.causal.eval()
    return folder, model


def pairs() -> Pairs:
    words = ["milk", "拉麵", "soup 尿布", "保久 milk", "辣味", "우유 라면 순한맛"]
    queries = [QueryFields(words[i % 6]) for i in range(24)]
    products = [ProductFields(" ".join(words[: 1 + i % 5]), words[i % 3]) for i in range(24)]
    return queries, products


def by_adapter(model: Model) -> tuple[list[list[int]], Floats]:
    encoder = PromptEncoder(model.tokenizer, 96)
    parts = [encoder.parts(RELEVANCE, q, p) for q, p in zip(*pairs(), strict=True)]
    prompts = [np.concatenate(part).tolist() for part in parts]
    return prompts, label_probabilities(model, parts, RELEVANCE.name)


def test_plain_transformers_loads_it_and_pools_the_last_real_token_on_either_side(
    base: Path, tmp_path: Path
) -> None:
    llm, model = trained(base, tmp_path / "llm")
    prompts, expected = by_adapter(model)
    assert len({len(p) for p in prompts}) > 5  # so that batches really are padded
    (tmp_path / "out").mkdir()
    found = export_classifier(llm, *pairs(), tmp_path / "out")
    assert found.max_delta <= 1e-3
    assert found.probed == 24
    classifier = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out" / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out" / "model")
    assert type(classifier).__name__ == found.architecture
    assert classifier.config.id2label == {0: "irrelevant", 1: "substitute", 2: "exact"}
    assert tokenizer.pad_token_id == classifier.config.pad_token_id == found.pad_token_id
    rows = model.causal.get_output_embeddings().weight[model.labels["relevance"]]
    assert torch.equal(classifier.score.weight, rows)
    for side in ("left", "right"):
        tokenizer.padding_side = side
        for size in (1, 7, 24):
            for start in range(0, 24, size):
                own = prompts[start : start + size]
                batch = tokenizer.pad({"input_ids": own}, return_tensors="pt")
                with torch.no_grad():
                    p = classifier(**batch).logits.softmax(-1).numpy()
                assert np.abs(p - expected[start : start + size]).max() < 1e-4, (side, size)


def test_the_adapter_and_its_merged_model_are_not_the_base(base: Path, tmp_path: Path) -> None:
    """Else the test above could pass with an adapter that does nothing."""
    _, expected = by_adapter(trained(base, tmp_path / "llm")[1])
    _, plain = by_adapter(load_base(str(base)))
    assert np.abs(expected - plain).max() > 0.05


def test_bf16_halves_the_file_and_is_refused_where_it_moves_a_probability(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    llm, _ = trained(make_base(tmp_path / "base"), tmp_path / "llm")
    (tmp_path / "a").mkdir()
    with pytest.raises(ArtifactError, match=r"in bf16, a probability differs by .* export in fp32"):
        export_classifier(llm, *pairs(), tmp_path / "a", "bf16")
    monkeypatch.setattr(export_module, "TOLERANCE", 0.1)
    (tmp_path / "b").mkdir()
    found = export_classifier(llm, *pairs(), tmp_path / "b", "bf16")
    assert found.precision == "bf16"
    weights = load_file(tmp_path / "b" / "model" / "model.safetensors")
    assert {w.dtype for w in weights.values()} == {torch.bfloat16}
    with pytest.raises(ConfigError, match="fp32 or bf16, not 'int8'"):
        export_classifier(llm, *pairs(), tmp_path / "b", "int8")


def test_a_damaged_merge_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    llm, _ = trained(make_base(tmp_path / "base"), tmp_path / "llm")
    monkeypatch.setattr(export_module, "merge_adapter", lambda model, folder: None)
    (tmp_path / "out").mkdir()
    with pytest.raises(ArtifactError, match="differs by"):
        export_classifier(llm, *pairs(), tmp_path / "out")


def test_an_adapter_of_another_base_is_not_exported(tmp_path: Path) -> None:
    llm, _ = trained(make_base(tmp_path / "base"), tmp_path / "llm")
    make_base(tmp_path / "base", seed=9)
    with pytest.raises(ArtifactError, match="trained on another"):
        export_classifier(llm, *pairs(), tmp_path)


def test_the_step_records_what_a_registration_needs(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged = {}
    monkeypatch.setattr(tracking, "log_run", lambda *a, **more: logged.update(more))
    tiny = Installation(settings, tmp_path)
    llm = tiny.run(
        "select_llm", {"snapshot": tiny.snapshot, "llms": [tiny.train(rqa=tiny.rqa).ref]}
    )
    inputs: dict[str, object] = {"llm": llm.ref, "snapshot": tiny.snapshot, "rqa": tiny.rqa}
    found: Artifact = tiny.run("export_llm", inputs)
    card = json.loads(found.file("llm.json").read_text())
    assert found.facts["adapter"] == llm.ref
    assert found.facts["adapter_digest"] == llm.digest
    for name in ("base", "base_digest", "label_ids", "prompt_version", "temperature"):
        assert found.facts[name] == card[name] == json.loads(llm.file("llm.json").read_text())[name]
    fields = load_fields(tiny.folder / "snapshot", tiny.folder / "rqa")
    dev = load_pairs(tiny.folder / "snapshot", "dev")
    assert found.facts["probed"] == len(fields.of(dev)[0]) > 0
    assert logged["params"]["adapter_digest"] == llm.digest
    assert logged["metrics"]["max_delta"] <= 1e-3
