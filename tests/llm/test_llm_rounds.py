"""Rounds of self-distillation: cross-fitted soft labels, where rounds end, what they change."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import polars as pl
import pytest
import torch

from csrm_tasks import tracking
from csrm_tasks.artifacts import Artifact
from csrm_tasks.llm.data import in_fold, load_fields, load_pairs
from csrm_tasks.llm.network import model
from csrm_tasks.llm.prompt.prompts import RELEVANCE
from csrm_tasks.llm.scoring.scoring import RelevanceScorer
from csrm_tasks.llm.training import launch, rounds
from csrm_tasks.llm.training.finetune import finetune
from csrm_tasks.llm.training.inputs import FinetuneInputs
from csrm_tasks.settings import Settings
from tests.llm_fixtures import make_base, make_market, make_rqa, make_snapshot
from tests.steps.test_steps_llm import Installation


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "log_run", lambda *args, **more: "run")


def relabel(tiny: Installation, teacher: Artifact) -> Artifact:
    inputs: dict[str, object] = {"snapshot": tiny.snapshot, "llm": teacher.ref, "rqa": tiny.rqa}
    return tiny.run("score_pairs", inputs, split="train")


def test_folds_cut_queries_not_pairs(tmp_path: Path) -> None:
    pairs = load_pairs(make_snapshot(tmp_path, target_labels=True), "train")
    halves = [in_fold(pairs, k) for k in (0, 1)]
    assert sorted(pl.concat(halves)["pair_id"]) == sorted(pairs["pair_id"])
    assert not set(halves[0]["query_id"]) & set(halves[1]["query_id"])
    shuffled = in_fold(pairs.sample(fraction=1.0, shuffle=True, seed=1), 0)
    assert set(shuffled["pair_id"]) == set(halves[0]["pair_id"])


def test_cross_fitted_labels_are_those_of_the_model_that_did_not_see_the_query(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slow reference: train each half by hand, score each pair alone, all in fp32."""
    monkeypatch.setattr(model, "choose_dtype", lambda device, width: torch.float32)
    market = make_market(make_base(tmp_path / "base"))
    snapshot = make_snapshot(tmp_path / "snapshot", target_labels=True)
    rqa = make_rqa(tmp_path / "rqa", snapshot)
    given = FinetuneInputs(snapshot, rqa, None, "fold", 0)
    scored, facts = rounds.cross_fit(market, given, tmp_path / "work")
    pairs, fields = load_pairs(snapshot, "train"), load_fields(snapshot, rqa)
    assert scored["pair_id"].to_list() == pairs["pair_id"].to_list()

    half = market.model_copy(update={"llm": market.llm.model_copy(update={"steps": 6})})
    for fold in (0, 1):
        out, work = tmp_path / f"out{fold}", tmp_path / f"work{fold}"
        out.mkdir()
        own = FinetuneInputs(snapshot, rqa, None, "fold", 0, fold)
        trained = finetune(half, own, out, work)
        assert facts[f"fold{fold}_dev_micro_f1"] == trained.facts["dev_micro_f1"]
        assert trained.facts["train_pairs"] == len(in_fold(pairs, fold)) < len(pairs)
        scorer = RelevanceScorer.load(out)
        for row in in_fold(pairs, 1 - fold).iter_slices(1):
            alone = scorer.score(RELEVANCE, fields, row, calibrated=False)
            found = scored.filter(pl.col("pair_id") == row["pair_id"][0])
            for p in ("p0", "p1", "p2"):
                assert found[p][0] == pytest.approx(alone[p][0], abs=1e-5)


def test_a_finished_fold_is_not_trained_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    market = make_market(make_base(tmp_path / "base"))
    given = FinetuneInputs(make_snapshot(tmp_path / "snapshot"), None, None, "fold", 0)
    trained: list[int | None] = []

    def killed_in_the_second(*args: object) -> object:
        fold = args[1].fold  # type: ignore[attr-defined]
        if fold == 1 and not trained.count(1):
            trained.append(1)
            raise KeyboardInterrupt
        trained.append(fold)
        return finetune(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(launch, "run_training", killed_in_the_second)
    with pytest.raises(KeyboardInterrupt):
        rounds.cross_fit(market, given, tmp_path / "work")
    left = tmp_path / "work" / "fold1" / "model" / "pretraining"  # as one killed while it wrote
    left.mkdir(parents=True)
    resumed, _ = rounds.cross_fit(market, given, tmp_path / "work")
    assert trained == [0, 1, 1] and not left.exists()
    whole, _ = rounds.cross_fit(market, given, tmp_path / "other")
    assert resumed.equals(whole)


@pytest.mark.usefixtures("quiet")
def test_a_teacher_that_memorised_is_cross_fitted_and_the_log_says_why(
    settings: Settings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tiny = Installation(settings, tmp_path, distillation={"memorised": 0.05})
    teacher = tiny.train(rqa=tiny.rqa)
    with caplog.at_level(logging.INFO, "csrm"):
        soft = relabel(tiny, teacher)
    assert soft.facts["memorised"] is soft.facts["cross_fitted"] is True
    assert "memorised, so two halves label each other" in caplog.text
    assert soft.facts["train_fit"] >= 0.05
    scored = pl.read_parquet(soft.file("scored.parquet"))
    own = RelevanceScorer.load(teacher.path).score(
        RELEVANCE,
        load_fields(tiny.folder / "snapshot", tiny.folder / "rqa"),
        load_pairs(tiny.folder / "snapshot", "train"), calibrated=False,
    )  # fmt: skip
    assert scored["pair_id"].to_list() == own["pair_id"].to_list()
    assert (scored["p2"] - own["p2"]).abs().max() > 1e-3  # type: ignore[operator]
    student = tiny.train(rqa=tiny.rqa, soft=soft.ref)
    assert student.facts["dev_log_loss"] != teacher.facts["dev_log_loss"]


@pytest.mark.usefixtures("quiet")
def test_rounds_end_where_dev_stops_improving(settings: Settings, tmp_path: Path) -> None:
    tiny = Installation(settings, tmp_path)
    stage2 = tiny.train(rqa=tiny.rqa)
    round1 = tiny.train(rqa=tiny.rqa, soft=relabel(tiny, stage2).ref)
    better = tiny.publish_with("train_llm/better", round1, dev_micro_f1=1.01)
    assert "stopped" not in relabel(tiny, better).facts

    worse = tiny.publish_with("train_llm/worse", round1, dev_micro_f1=0.0)
    soft = relabel(tiny, worse)
    assert soft.facts["pairs"] == 0
    assert soft.facts["stopped"].startswith("dev micro-F1 0.0000 after a round")
    round2 = tiny.train(rqa=tiny.rqa, soft=soft.ref)
    assert round2.facts["passed_on"] == worse.ref
    assert round2.facts["stopped"] == soft.facts["stopped"]
    for name in ("adapter/adapter_model.safetensors", "llm.json", "dev_scores.parquet"):
        assert round2.file(name).read_bytes() == worse.file(name).read_bytes()
    assert relabel(tiny, round2).facts["stopped"] == soft.facts["stopped"]  # round 3 ends too
    chosen = tiny.run(
        "select_llm", {"snapshot": tiny.snapshot, "llms": [stage2.ref, worse.ref, round2.ref]}
    )
    assert chosen.facts["chosen_ref"] == stage2.ref


def test_changes_count_flips_and_show_the_surest(tmp_path: Path) -> None:
    """Slow reference: go through the pairs one by one."""
    snapshot = make_snapshot(tmp_path, target_labels=True)
    pairs = load_pairs(snapshot, "train")
    p = [[0.7, 0.2, 0.1], [0.1, 0.15, 0.75], [0.2, 0.5, 0.3]]
    rows = [p[i % 3] for i in range(len(pairs))]
    wrong = pairs["grade"].to_list().index(0)
    rows[wrong] = [0.01, 0.01, 0.98]
    scored = pairs.with_columns(pl.Series(f"p{k}", [r[k] for r in rows]) for k in range(3))
    found = rounds.changes(scored, load_fields(snapshot))

    expected: dict[str, list[list[int]]] = {}
    disagree = 0
    for locale, human, row in zip(pairs["locale"], pairs["grade"], rows, strict=True):
        soft = row.index(max(row))
        expected.setdefault(locale, [[0] * 3 for _ in range(3)])[human][soft] += 1
        disagree += soft != human
    assert found["flips"] == expected
    assert sum(c["flips"] for c in found["categories"]) == disagree > 0
    assert sum(c["pairs"] for c in found["categories"]) == len(pairs)
    assert {c["category"] for c in found["categories"]} == {"soup"}
    first = found["examples"][0]
    assert first["p"] == [0.01, 0.01, 0.98] and first["human"] == 0
    sure = [max(e["p"]) for e in found["examples"] if e["locale"] == first["locale"]]
    assert sure == sorted(sure, reverse=True) and len(sure) <= rounds.EXAMPLES
    json.dumps(found, allow_nan=False)
