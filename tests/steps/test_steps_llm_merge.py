"""The step that merges the week's adapters: one more candidate, which dev chooses or not (A55)."""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file

from csrm_tasks import tracking
from csrm_tasks.artifacts import Artifact
from csrm_tasks.errors import ArtifactError, ConfigError
from csrm_tasks.llm import data
from csrm_tasks.llm.data import load_fields, load_pairs, relevance_rows
from csrm_tasks.llm.network.identity import read_card
from csrm_tasks.llm.network.merging import merge_adapters
from csrm_tasks.llm.network.model import load_base
from csrm_tasks.llm.prompt.encoding import PromptEncoder
from csrm_tasks.llm.prompt.prompts import RELEVANCE
from csrm_tasks.llm.scoring.calibration import log_loss
from csrm_tasks.llm.scoring.predict import predict
from csrm_tasks.llm.training import merge as merging
from csrm_tasks.settings import Settings
from tests.steps.test_steps_llm import Installation

pytestmark = pytest.mark.usefixtures("fingerprints_hold")

WEIGHTS = "adapter/adapter_model.safetensors"


class Week(Installation):
    """A week with two rounds, which differ by what they have read, and a live model."""

    def __init__(self, settings: Settings, folder: Path, **llm: object) -> None:
        super().__init__(settings, folder, steps=6, evaluate_every=3, **llm)
        self.given: dict[str, str] = {}

    def rounds(self) -> tuple[Artifact, Artifact]:
        return self.train(rqa=self.rqa, **self.given), self.train(**self.given)

    def merge(self, llms: list[Artifact], method: str = "linear", **more: str) -> Artifact:
        inputs = {"snapshot": self.snapshot, "rqa": self.rqa, "llms": [a.ref for a in llms]}
        return self.run("merge_llms", inputs | more, method=method)

    def live(self, name: str, of: Artifact, **changed: Any) -> str:
        """Publish ``of`` as last week's model, with another card."""
        folder = self.folder / name
        shutil.copytree(of.file("adapter"), folder / "adapter")
        replace(read_card(of.path), **changed).write(folder)
        return self.publish(f"select_llm_{name}", folder)


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    monkeypatch.setattr(
        tracking, "log_run", lambda settings, market, ref, **more: found.setdefault(ref, more)
    )
    return found


@pytest.fixture
def week(settings: Settings, tmp_path: Path, logged: dict[str, dict[str, Any]]) -> Week:
    return Week(settings, tmp_path)


def by_hand(week: Week, model: Artifact, stage0: Path | None = None) -> np.ndarray:
    """Add the adapter's products to the base's weights and score dev, without peft."""
    config = LoraConfig.from_pretrained(str(model.file("adapter")))
    state = load_file(model.file(WEIGHTS))
    base = load_base(week.market.llm.base, pretraining=stage0)
    with torch.no_grad():
        for name, weight in base.causal.named_parameters():
            layer = f"base_model.model.{name.removesuffix('.weight')}"
            if f"{layer}.lora_A.weight" in state:
                b, a = (state[f"{layer}.lora_{part}.weight"] for part in "BA")
                weight += config.lora_alpha / config.r * b @ a
    snapshot = week.folder / "snapshot"
    dev = load_pairs(snapshot, "dev").filter(pl.col("locale") == "zh-TW")
    rows = relevance_rows(load_fields(snapshot, week.folder / "rqa"), dev)
    encoder = PromptEncoder(base.tokenizer, week.market.llm.max_length)
    return predict(base, encoder, RELEVANCE, rows.queries, rows.products)


def dev_scores(model: Artifact) -> pl.DataFrame:
    return pl.read_parquet(model.file("dev_scores.parquet"))


def test_the_merged_model_is_a_candidate_like_a_trained_one(
    week: Week, logged: dict[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = week.rounds()
    read: list[str] = []

    def noted(snapshot: Path, split: str) -> pl.DataFrame:
        read.append(split)
        return load_pairs(snapshot, split)

    monkeypatch.setattr(data, "load_pairs", noted)
    merged = week.merge([one, two])
    assert set(read) == {"dev"}  # never gold
    assert {p.name for p in merged.path.iterdir()} >= {p.name for p in one.path.iterdir()}
    assert merged.facts["merged"] == [one.ref, two.ref] and merged.facts["left_out"] == {}
    assert 0 < merged.facts["truncation_error"] <= merged.facts["truncation_worst"] < 1
    assert logged[merged.ref]["params"]["merged_1"] == two.ref
    assert logged[merged.ref]["metrics"]["dev_micro_f1"] == merged.facts["dev_micro_f1"]

    expected, table = by_hand(week, merged), dev_scores(merged)
    assert np.abs(table.select("p0", "p1", "p2").to_numpy() - expected).max() < 1e-5
    assert table.select("pair_id", "grade").equals(dev_scores(one).select("pair_id", "grade"))
    grades = table["grade"].to_numpy().astype(np.int64)
    assert merged.facts["dev_micro_f1"] == (expected.argmax(axis=1) == grades).mean()
    loss = log_loss(expected.astype(np.float64), grades)
    assert merged.facts["dev_log_loss"] == pytest.approx(loss, abs=1e-5)
    same = {"dev_locale", "source_dev_micro_f1"}
    assert {k: type(merged.facts[k]) for k in same} == {k: type(one.facts[k]) for k in same}

    best = week.publish_with("merge_llms/best", merged, dev_micro_f1=1.01)
    llms = [one.ref, two.ref, best.ref]
    chosen = week.run("select_llm", {"snapshot": week.snapshot, "llms": llms})
    assert chosen.facts["chosen_ref"] == best.ref
    assert chosen.file(WEIGHTS).read_bytes() == merged.file(WEIGHTS).read_bytes()
    assert json.loads(chosen.file("llm.json").read_text())["arm"] == "merged_linear"
    gold = {"snapshot": week.snapshot, "rqa": week.rqa, "llm": chosen.ref}
    assert week.run("score_pairs", gold, split="gold").facts["pairs"] > 0
    # next week's trainings can start from it, for it has their rank
    warm = {"snapshot": week.snapshot, "warm": chosen.ref}
    assert week.run("train_llm", warm, arm="next").facts["steps"] > 0


def test_a_live_model_of_the_same_kind_is_merged_and_another_left_out(
    week: Week, caplog: pytest.LogCaptureFixture
) -> None:
    one, two = week.rounds()
    live = week.live("last", two, arm="stage1", temperature=1.7)
    merged = week.merge([one], live=live)
    assert merged.facts["merged"] == [one.ref, live]
    assert read_card(merged.path).temperature == 1.0
    assert merged.file(WEIGHTS).read_bytes() == week.merge([one, two]).file(WEIGHTS).read_bytes()

    changes: dict[str, Any] = {"pretraining": "x", "category_levels": 1}
    for name, changed in changes.items():
        other = week.live(name, two, **{name: changed})
        found = week.merge([one, two], live=other)
        assert found.facts["merged"] == [one.ref, two.ref]
        (reason,) = found.facts["left_out"].values()
        assert reason.startswith("it has another ") and f"{other} is left out" in caplog.text
        with pytest.raises(ConfigError, match=r"cannot be merged: it has another") as caught:
            week.merge([one, week.store.open(other)])
        assert "\n" not in str(caught.value)
        alone = week.merge([one], live=other)
        assert alone.facts["passed_on"] == one.ref


def test_the_same_weights_twice_count_once(week: Week, caplog: pytest.LogCaptureFixture) -> None:
    one, two = week.rounds()
    stopped = week.publish_with("train_llm/stopped", two, stopped="no better", passed_on=two.ref)
    merged = week.merge([one, two, stopped])
    assert merged.facts["merged"] == [one.ref, two.ref]
    assert merged.facts["left_out"] == {stopped.ref: f"it has the weights of {two.ref}"}
    with caplog.at_level(logging.WARNING, "csrm"):
        alone = week.merge([two, stopped], method="ties")
    assert f"nothing to merge {two.ref} with" in caplog.text
    assert alone.facts["passed_on"] == two.ref
    for name in (WEIGHTS, "llm.json", "dev_scores.parquet", "curves.json"):
        assert alone.file(name).read_bytes() == two.file(name).read_bytes()
    chosen = week.run(
        "select_llm", {"snapshot": week.snapshot, "llms": [one.ref, two.ref, alone.ref]}
    )
    assert chosen.facts["chosen_ref"] != alone.ref  # no better than itself


def test_killed_and_run_again_it_is_the_same(week: Week, monkeypatch: pytest.MonkeyPatch) -> None:
    models = [*week.rounds()]

    def killed(*args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(merging, "write_dev_scores", killed)
        week.merge(models, "dare")
    torch.rand(3)  # another process would not stand where this one stands
    merged = week.merge(models, "dare")
    adapters = [a.file("adapter") for a in models]
    merge_adapters(adapters, "dare", week.market.seed, week.folder / "whole")
    whole = (week.folder / "whole" / Path(WEIGHTS).name).read_bytes()
    assert merged.file(WEIGHTS).read_bytes() == whole
    week.market = week.market.model_copy(update={"seed": week.market.seed + 1})
    assert week.merge(models, "dare").file(WEIGHTS).read_bytes() != whole


def test_on_a_stage_0_the_merged_model_stands_on_it_too(
    settings: Settings, tmp_path: Path, logged: dict[str, dict[str, Any]]
) -> None:
    week = Week(settings, tmp_path, pretraining={"steps": 4, "tokens": 512, "lr": 2e-2})
    stage0 = week.run("pretrain_llm", {"snapshot": week.snapshot})
    week.given = {"pretrained": stage0.ref}
    merged = week.merge([*week.rounds()], method="ties")
    folder = stage0.file("pretraining")
    expected = by_hand(week, merged, folder)
    found = dev_scores(merged).select("p0", "p1", "p2").to_numpy()
    assert np.abs(found - expected).max() < 1e-5
    assert np.abs(by_hand(week, merged) - expected).max() > 1e-3
    assert read_card(merged.path).pretraining and merged.file("pretraining").is_dir()


def test_what_is_asked_wrongly_is_told(week: Week) -> None:
    with pytest.raises(ConfigError, match="no method 'mean'; known: linear, ties, dare"):
        week.merge([], "mean")
    with pytest.raises(ConfigError, match="at least one model"):
        week.merge([])
    with pytest.raises(ArtifactError, match="snapshot/0 has no file 'adapter'"):
        week.merge([week.store.open(week.snapshot)])
