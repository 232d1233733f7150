"""The steps that judge: baselines, champion, evaluate, on artifacts of a made-up market."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest

from csrm_tasks import tracking
from csrm_tasks.errors import ConfigError
from csrm_tasks.settings import Settings
from csrm_tasks.steps import run_step
from tests.evaluation_fixtures import gold
from tests.release_fixtures import market, parts, scores, store_of


@pytest.fixture(autouse=True)
def logged(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, object]]:
    """Keep what would go to MLflow; the release steps' test logs for real."""
    runs: list[dict[str, object]] = []

    def log_run(settings: Settings, market: str, ref: str, **given: object) -> str:
        runs.append({"ref": ref, **given})
        return "run"

    monkeypatch.setattr(tracking, "log_run", log_run)
    return runs


def test_baselines_score_every_gold_pair(settings: Settings) -> None:
    snapshot = parts(settings, "a", 2)["snapshot"]
    made = store_of(settings).open(
        run_step("baselines", market(), {"snapshot": snapshot}, {}, settings)
    )
    for name in ("majority", "tfidf"):
        frame = pl.read_parquet(made.file(f"{name}.parquet"))
        assert set(frame["pair_id"]) == set(gold(80).frame["pair_id"])
        assert frame.select(s=pl.sum_horizontal("p0", "p1", "p2"))["s"].is_close(1.0).all()
    assert made.facts["gold_pairs"] == gold(80).pairs


def test_champion_of_an_empty_ledger_is_all_null(settings: Settings) -> None:
    made = store_of(settings).open(run_step("champion", market(), {}, {}, settings))
    names = (
        "release",
        "bundle",
        "llm",
        "ebr",
        "index",
        "rqa",
        "export",
        "snapshot",
        "towers",
        "bm25",
        "second_stage",
    )
    assert dict(made.facts) == dict.fromkeys(names)


def evaluate(settings: Settings, names: str = "final,towers", **more: str) -> str:
    part = parts(settings, "a", 2)
    snapshot = part["snapshot"]
    llm, towers = scores(settings, "a", part, snapshot, 0.9)
    given = {
        "snapshot": snapshot,
        "baselines": run_step("baselines", market(), {"snapshot": snapshot}, {}, settings),
        "champion": run_step("champion", market(), {}, {}, settings),
        "llm_scores": [llm],
        "tower_scores": [towers],
    } | more
    return run_step("evaluate", market(), given, {"names": names}, settings)


def test_evaluate_judges_all_models_and_tells_mlflow(
    settings: Settings, logged: list[dict[str, object]]
) -> None:
    made = store_of(settings).open(evaluate(settings))
    summary = json.loads(made.file("metrics.json").read_text())
    assert [m["name"] for m in summary["models"]] == ["majority", "tfidf", "final", "towers"]
    assert made.facts["micro_f1"]["final vs majority"]["verdict"] == "better"
    assert made.facts["metrics"]["final.micro_f1"] > 0.8
    assert made.facts["gold_pairs"] == gold(80).pairs
    assert summary["rqa"] == {"tiny/build_rqa/a": {"rqa_accuracy": 0.8}}
    assert "<!doctype html>" in made.file("report.html").read_text()
    assert logged[0]["ref"] == made.ref
    assert logged[0]["metrics"] == made.facts["metrics"]


def test_the_report_shows_what_the_runs_ablation_kept(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    facts = {
        "options": [{"option": "filter", "delta": {"value": -0.02, "lo": -0.03, "hi": -0.01},
                     "hard": None, "by_seed": [-0.02], "kept": False,
                     "reason": "dev is worse with it"}],
        "gain": 0.005, "margin": 0.01, "noise": 0.01, "seeds": 2, "steps": 4,
        "tasks": ["relevance"], "dev_queries": 40, "dev_locale": "zh-TW",
    }  # fmt: skip
    decided = store_of(settings).publish(
        "tiny/ablate/a", tmp_path / "made", facts=facts, inputs={}, about={}
    )
    made = store_of(settings).open(evaluate(settings, ablation=decided.ref))
    assert json.loads(made.file("metrics.json").read_text())["ablation"] == facts
    assert "dev is worse with it" in made.file("report.html").read_text()


def test_a_left_out_language_is_told_by_the_evaluation(settings: Settings) -> None:
    snapshot = parts(settings, "a", 2)["snapshot"]
    control = run_step("leave_out", market(), {"snapshot": snapshot}, {}, settings)
    found = json.loads(store_of(settings).open(control).file("leave_out.json").read_text())
    assert [one["locale"] for one in found] == ["ko-KR"]
    made = store_of(settings).open(evaluate(settings, leave_out=control))
    assert json.loads(made.file("metrics.json").read_text())["leave_out"] == found
    assert "The linear baseline without a source language" in made.file("report.html").read_text()


@pytest.mark.parametrize("names", ["final", "final,final", "final,tfidf", "final,"])
def test_names_must_fit_the_scores(settings: Settings, names: str) -> None:
    with pytest.raises(ConfigError, match="2 score artifacts need 2 different names"):
        evaluate(settings, names)
