"""DAGs of markets with tasks besides relevance, and without relevance."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.dags.test_dags_integrity import RETRAIN, load_changed

pytestmark = pytest.mark.airflow


def test_tasks_beside_relevance_are_judged_before_the_gate(tmp_path: Path) -> None:
    found = load_changed(tmp_path, "seed: 0\n", "seed: 0\ntasks: [relevance, qc]\n")["dags"]
    retrain = found["csrm_retrain__mini"]
    assert set(retrain["tasks"]) == {*RETRAIN, "evaluate_tasks"}
    assert "evaluate_tasks" in retrain["ancestors"]
    assert set(retrain["tasks"]["evaluate_tasks"]["inputs"]) == {"snapshot", "llm", "champion_llm"}
    assert retrain["tasks"]["evaluate_tasks"]["after"] == ["judge"]
    assert "task_evaluation" in retrain["tasks"]["judge"]["inputs"]
    assert not any("task" in name for name in found["csrm_cold_start__mini"]["tasks"])


def test_a_market_without_relevance_trains_and_judges_and_serves_nothing(tmp_path: Path) -> None:
    found = load_changed(tmp_path, "seed: 0\n", "seed: 0\ntasks: [qc, qi]\n")["dags"]
    assert sorted(found) == [f"{n}__mini" for n in ("csrm_ingest", "csrm_replay", "csrm_retrain")]
    tasks = found["csrm_retrain__mini"]["tasks"]
    assert {name: task["step"] for name, task in tasks.items()} == {
        "find_champion": "passed_llm", "snapshot": "snapshot", "train_llm": "train_llm",
        "evaluate_tasks": "evaluate_tasks", "judge": "gate_tasks",
    }  # fmt: skip
    assert tasks["evaluate_tasks"]["after"] == ["judge"]
    # A PASS is what the next week is compared with and starts from: not one of a backfill.
    assert {n for n, t in tasks.items() if t["withheld"]} == {"judge"}
    assert set(tasks["find_champion"]["after"]) >= {"evaluate_tasks"}


def test_without_relevance_what_a_market_adds_stands_before_its_training(tmp_path: Path) -> None:
    more = (
        "tasks: [qc, qi]\nablation: {enabled: true}\nfilter: {action: remove, scorer: linear}\n"
        "llm:\n  negatives: {per_query: 2}\n  augmentation: {translator: table}\n"
    )
    found = load_changed(tmp_path, "llm:\n", more)["dags"]
    tasks = found["csrm_retrain__mini"]["tasks"]
    added = {"negatives": "mine_task_negatives", "filtered": "filter_noise",
             "translated": "translate_queries", "ablation": "ablate"}  # fmt: skip
    assert set(tasks["train_llm"]["inputs"]) == {"snapshot", *added}
    for step in added.values():
        assert tasks[step]["step"] == step and "train_llm" in tasks[step]["after"]
    assert set(tasks["mine_task_negatives"]["inputs"]) == {"snapshot", "llm"}
    assert tasks["ablation_runs"]["shards"] == 8  # two seeds, everything and without each of three
    assert set(tasks["ablation_runs"]["inputs"]) == {
        "snapshot", "negatives", "filtered", "translated"
    }  # fmt: skip
