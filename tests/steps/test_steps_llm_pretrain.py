"""Stage 0 through the steps: trained on, scored with, exported, passed on to the next week."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from csrm_tasks import tracking
from csrm_tasks.artifacts import Artifact
from csrm_tasks.errors import ArtifactError, ConfigError
from csrm_tasks.file_state import folder_digest
from csrm_tasks.llm.data import load_fields, load_pairs, relevance_rows
from csrm_tasks.llm.network.model import add_lora, load_base, set_adapter_state
from csrm_tasks.llm.prompt.encoding import PromptEncoder
from csrm_tasks.llm.prompt.prompts import RELEVANCE
from csrm_tasks.llm.scoring.predict import predict
from csrm_tasks.llm.scoring.scoring import RelevanceScorer
from csrm_tasks.llm.training import launch
from csrm_tasks.sections import Distillation
from csrm_tasks.settings import Settings
from tests.llm_fixtures import make_base
from tests.steps.test_steps_llm import Installation

pytestmark = pytest.mark.usefixtures("fingerprints_hold")

STAGE0 = {"steps": 6, "tokens": 512, "lr": 2e-2}


class Stage0(Installation):
    """A market with a stage 0."""

    logged: dict[str, dict[str, Any]]

    def pretrain(self, **inputs: str) -> Artifact:
        return self.run("pretrain_llm", {"snapshot": self.snapshot} | inputs)

    def change(self, **llm: Any) -> None:
        own = self.market.llm.model_copy(update=llm)
        self.market = self.market.model_copy(update={"llm": own})


@pytest.fixture
def tiny(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage0:
    made = Stage0(settings, tmp_path, pretraining=STAGE0, steps=4)
    made.logged = {}

    def log_run(settings: Settings, market: str, ref: str, **more: Any) -> str:
        made.logged[ref] = more
        return "run"

    monkeypatch.setattr(tracking, "log_run", log_run)
    return made


def card(model: Artifact) -> Mapping[str, Any]:
    found: dict[str, Any] = json.loads(model.file("llm.json").read_text())
    return found


def scores(folder: Path, tiny: Stage0) -> np.ndarray:
    snapshot = tiny.folder / "snapshot"
    pairs = load_pairs(snapshot, "dev")
    scored = RelevanceScorer.load(folder).score(RELEVANCE, load_fields(snapshot), pairs)
    return scored.select("p0", "p1", "p2").to_numpy()


def test_a_training_on_stage_0_is_scored_and_exported_as_it_is_in_memory(tiny: Stage0) -> None:
    stage0 = tiny.pretrain()
    digest = folder_digest(stage0.path / "pretraining")
    shown = tiny.logged[stage0.ref]
    assert {"loss_text", "loss_translation", "perplexity_zh-TW"} <= set(shown["curves"])
    assert {"perplexity_before_ko-KR", "perplexity_ko-KR", "tokens"} <= set(shown["metrics"])
    assert (shown["params"]["snapshot"], shown["params"]["steps"]) == (tiny.snapshot, 6)
    trained = tiny.train(pretrained=stage0.ref)
    assert card(trained)["pretraining"] == digest
    assert folder_digest(trained.path / "pretraining") == digest
    assert tiny.logged[trained.ref]["params"]["pretrained"] == stage0.ref
    chosen = tiny.run("select_llm", {"snapshot": tiny.snapshot, "llms": [trained.ref]})
    assert card(chosen)["pretraining"] == digest

    base = tiny.market.llm.base
    model = load_base(base, pretraining=stage0.path / "pretraining")
    plain = load_base(base)
    moved = [
        name
        for (name, a), b in zip(
            model.causal.named_parameters(), plain.causal.parameters(), strict=True
        )
        if not torch.equal(a, b)
    ]
    targets = tiny.market.llm.lora.targets
    assert moved and all(any(f".{t}." in name for t in targets) for name in moved)
    add_lora(model, tiny.market.llm.lora, seed=0)
    set_adapter_state(model, load_file(trained.file("adapter") / "adapter_model.safetensors"))
    snapshot = tiny.folder / "snapshot"
    rows = relevance_rows(load_fields(snapshot), load_pairs(snapshot, "dev"))
    encoder = PromptEncoder(model.tokenizer, tiny.market.llm.max_length)
    expected = predict(model, encoder, RELEVANCE, rows.queries, rows.products)
    assert np.abs(scores(chosen.path, tiny) - expected).max() <= 1e-3  # A14
    exported = tiny.run("export_llm", {"snapshot": tiny.snapshot, "llm": chosen.ref})
    assert exported.facts["max_delta"] <= 1e-3
    assert exported.facts["pretraining"] == digest


def test_it_is_another_model_than_without_and_off_leaves_nothing_behind(tiny: Stage0) -> None:
    on, off = tiny.train(pretrained=tiny.pretrain().ref), tiny.train()
    assert card(off)["pretraining"] == "" and not (off.path / "pretraining").exists()
    assert np.abs(scores(on.path, tiny) - scores(off.path, tiny)).max() > 1e-3
    tiny.change(pretraining=tiny.market.llm.pretraining.model_copy(update={"steps": 0}))
    with pytest.raises(ConfigError, match=r"llm.pretraining.steps is 0: this market has no stage"):
        tiny.pretrain()


def test_another_base_or_another_stage_0_is_refused_in_one_line(tiny: Stage0) -> None:
    stage0 = tiny.pretrain()
    trained = tiny.train(pretrained=stage0.ref)
    weights = trained.file("pretraining") / "adapter_model.safetensors"
    before = weights.read_bytes()
    weights.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    with pytest.raises(ArtifactError, match="not the stage 0 that the model was trained on"):
        RelevanceScorer.load(trained.path)
    weights.write_bytes(before)
    make_base(tiny.folder / "base", seed=9)
    with pytest.raises(ArtifactError, match=r"stage 0 was done on another base") as caught:
        tiny.train(pretrained=stage0.ref)
    assert "\n" not in str(caught.value) and "run pretrain_llm again" in str(caught.value)
    with pytest.raises(ArtifactError, match="on another base"):
        RelevanceScorer.load(trained.path)


def test_the_next_week_goes_on_with_it_until_base_or_settings_change(tiny: Stage0) -> None:
    def weights(stage0: Artifact) -> str:
        return folder_digest(stage0.path / "pretraining")

    first = tiny.pretrain()
    live = tiny.train(pretrained=first.ref)
    again = tiny.pretrain(previous=live.ref)
    assert weights(again) == weights(first)
    assert again.facts["passed_on"] == live.ref and again.ref not in tiny.logged
    assert again.facts["perplexity_zh-TW"] == first.facts["perplexity_zh-TW"]
    assert card(tiny.train(pretrained=again.ref))["pretraining"] == card(live)["pretraining"]
    plain = tiny.train()  # a live LLM from before there was a stage 0
    assert "passed_on" not in tiny.pretrain(previous=plain.ref).facts
    tiny.change(lr=5e-3, distillation=Distillation(rounds=1))  # none of stage 0's business
    assert tiny.pretrain().ref == first.ref
    assert tiny.pretrain(previous=live.ref).ref == again.ref
    tiny.change(pretraining=tiny.market.llm.pretraining.model_copy(update={"steps": 7}))
    assert weights(tiny.pretrain(previous=live.ref)) != weights(first)
    tiny.change(pretraining=tiny.market.llm.pretraining.model_copy(update={"steps": 6}))
    make_base(tiny.folder / "base", seed=9)
    other = tiny.pretrain(previous=live.ref)
    assert weights(other) != weights(first) and "passed_on" not in other.facts
    tiny.train(pretrained=other.ref)


def test_halves_that_label_each_other_start_from_the_teachers_stage_0(
    tiny: Stage0, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.change(distillation=Distillation(memorised=0.0))
    stage0 = tiny.pretrain()
    teacher = tiny.train(pretrained=stage0.ref)
    given, real = [], launch.run_training

    def run_training(*args: Any) -> Any:
        given.append(args[1].pretraining)
        return real(*args)

    monkeypatch.setattr(launch, "run_training", run_training)
    soft = tiny.run("score_pairs", {"snapshot": tiny.snapshot, "llm": teacher.ref}, split="train")
    assert soft.facts["cross_fitted"]
    assert given == [teacher.path / "pretraining"] * 2
