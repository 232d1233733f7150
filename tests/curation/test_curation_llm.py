"""The filter by short trainings of the LLM, and trainings that read its decisions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from csrm_tasks import tracking
from csrm_tasks.artifacts import Artifact
from csrm_tasks.curation import folds as folding
from csrm_tasks.errors import DataError
from csrm_tasks.llm.data import load_fields, load_pairs, relevance_rows, weighted
from csrm_tasks.llm.network.model import load_base
from csrm_tasks.llm.prompt.encoding import PromptEncoder
from csrm_tasks.llm.training.tasks import LabelTask
from csrm_tasks.records import DECISIONS, WEIGHTS, read_table, write_table
from csrm_tasks.sections import Filter
from csrm_tasks.settings import Settings
from tests.steps.test_steps_llm import Installation

pytestmark = pytest.mark.usefixtures("fingerprints_hold")


class Filtered(Installation):
    """A tiny market that filters by its LLM."""

    def __init__(self, settings: Settings, folder: Path, **rules: Any) -> None:
        super().__init__(settings, folder, steps=6, evaluate_every=3)
        chosen = Filter(**({"action": "down_weight", "threshold": 0.5, "steps": 4} | rules))
        self.market = self.market.model_copy(update={"filter": chosen})

    def fold(self, fold: int) -> Artifact:
        return self.run("filter_fold", {"snapshot": self.snapshot}, fold=fold)

    def decide(self) -> Artifact:
        folds = [self.fold(k).ref for k in range(2)]
        return self.run("filter_noise", {"snapshot": self.snapshot, "folds": folds})

    def decided(self, name: str, **weights: float) -> str:
        """Publish decisions by hand: ``weights`` of some train pairs, 1 of all others."""
        pairs = load_pairs(self.store.open(self.snapshot).path, "train")
        known = [weights.get(p, 1.0) for p in pairs["pair_id"]]
        rows = pairs.with_columns(pl.Series("weight", known, dtype=pl.Float32))
        write_table(rows, WEIGHTS, self.folder / name / "decisions.parquet")
        return self.publish(f"filter_noise_{name}", self.folder / name)


@pytest.fixture
def tiny(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Filtered:
    monkeypatch.setattr(tracking, "log_run", lambda *args, **more: "run")
    return Filtered(settings, tmp_path)


def test_no_model_learns_from_what_it_judges(
    tiny: Filtered, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a fold's training is given to learn holds no text of the fold, and no gold."""
    learnt: list[set[str]] = []

    def noted(pairs: pl.DataFrame, filtered: Path) -> tuple[pl.DataFrame, Any]:
        kept, weights = weighted(pairs, filtered)
        learnt.append(set(kept["query_id"]))
        return kept, weights

    monkeypatch.setattr("csrm_tasks.llm.training.inputs.weighted", noted)
    snapshot = tiny.store.open(tiny.snapshot).path
    queries = pl.read_parquet(snapshot / "queries.parquet")
    norm = dict(queries.select("query_id", "norm").iter_rows())
    train = {norm[q] for q in load_pairs(snapshot, "train")["query_id"]}
    for fold in range(2):
        judged = pl.read_parquet(tiny.fold(fold).file("scored.parquet"))
        own = {norm[q] for q in judged.filter(split="train")["query_id"]}
        texts = {norm[q] for q in learnt[fold]}
        assert own and not own & texts and own | texts == train
    decided = read_table(tiny.decide().file("decisions.parquet"), DECISIONS)
    assert decided["pair_id"].to_list() == sorted(load_pairs(snapshot, "train")["pair_id"])


def test_a_fold_killed_before_it_has_judged_ends_the_same(
    tiny: Filtered, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = tiny.store.open(tiny.snapshot).path
    whole = folding.held_out_scores(tiny.market, snapshot, 0, None, tmp_path / "whole")
    real, calls = folding.RelevanceScorer.load, 0

    def dies(path: Path) -> Any:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise KeyboardInterrupt
        return real(path)

    monkeypatch.setattr(folding.RelevanceScorer, "load", dies)
    with pytest.raises(KeyboardInterrupt):
        tiny.fold(0)
    scored = pl.read_parquet(tiny.fold(0).file("scored.parquet"))
    assert calls == 2
    assert scored.select("pair_id", "p0", "p1", "p2").equals(
        whole.select("pair_id", "p0", "p1", "p2")
    )


def test_a_training_learns_from_what_the_filter_has_left(tiny: Filtered) -> None:
    snapshot = tiny.store.open(tiny.snapshot).path
    pairs = load_pairs(snapshot, "train")
    plain = tiny.train()
    same = tiny.train(filtered=tiny.decided("all"))
    adapter = "adapter/adapter_model.safetensors"
    assert same.file(adapter).read_bytes() == plain.file(adapter).read_bytes()
    gone = pairs["pair_id"][:5].to_list()
    less = tiny.train(filtered=tiny.decided("less", **dict.fromkeys(gone, 0.0)))
    assert less.facts["train_pairs"] == plain.facts["train_pairs"] - 5
    assert less.facts["dev_micro_f1"] is not None
    light = tiny.train(filtered=tiny.decided("light", **dict.fromkeys(gone, 0.2)))
    assert light.facts["train_pairs"] == plain.facts["train_pairs"]
    assert light.file(adapter).read_bytes() != plain.file(adapter).read_bytes()


def test_a_weight_is_a_factor_of_a_samples_loss(tiny: Filtered) -> None:
    """Against each sample's own cross-entropy times its weight, averaged by hand."""
    snapshot = tiny.store.open(tiny.snapshot).path
    pairs = load_pairs(snapshot, "train").head(6)
    rows = relevance_rows(load_fields(snapshot), pairs)
    weights = np.array([1.0, 0.3, 0.0, 1.0, 0.5, 0.25], np.float32)
    model = load_base(tiny.market.llm.base)
    encoder = PromptEncoder(model.tokenizer, 96)

    def task(**more: Any) -> LabelTask:
        given: dict[str, Any] = {"rqa_dropout": 0.0, "siblings": 1, "seed": 0}
        return LabelTask(model, replace(rows, **more), encoder, **given)

    with torch.no_grad():
        one_by_one = []
        epoch = task(weights=None).start_epoch(0)
        for i in range(6):
            loss, _ = task(weights=None).loss(epoch, np.array([i]))
            one_by_one.append(float(loss) * float(weights[epoch.order[i]]))
        loss, _ = task(weights=weights).loss(epoch, np.arange(6))
    assert float(loss) == pytest.approx(np.mean(one_by_one), abs=1e-5)


def test_decisions_of_another_snapshot_are_refused_in_one_line(tiny: Filtered) -> None:
    pairs = load_pairs(tiny.store.open(tiny.snapshot).path, "train")
    few = pairs.tail(-2).with_columns(weight=pl.lit(1.0))
    write_table(few, WEIGHTS, tiny.folder / "o" / "decisions.parquet")
    other = tiny.publish("filter_noise_other", tiny.folder / "o")
    line = f"say nothing of 2 of {pairs.height} train pairs, first '{pairs['pair_id'][0]}'"
    with pytest.raises(DataError, match=line):
        tiny.train(filtered=other)
    everything = dict.fromkeys(pairs["pair_id"], 0.0)
    with pytest.raises(DataError, match="the filter has left no train pair"):
        tiny.train(filtered=tiny.decided("none", **everything))
