"""The tasks through the steps: scored, judged on gold, passed by the gate, and beaten."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from csrm_tasks import tracking
from csrm_tasks.artifacts import Artifact, ArtifactStore
from csrm_tasks.errors import ConfigError, DataError
from csrm_tasks.evaluation.tasks import figures, summarise_tasks
from csrm_tasks.release import judge, verdicts
from csrm_tasks.sections import Gate
from csrm_tasks.settings import Settings
from csrm_tasks.steps import run_step
from tests.evaluation.test_evaluation_tasks import said
from tests.llm_fixtures import make_base, make_market, make_snapshot
from tests.release_fixtures import market, parts, probed, publish, store_of
from tests.steps.test_steps_release import Pipeline
from tests.task_fixtures import make_task_snapshot, task_frame

pytestmark = pytest.mark.usefixtures("fingerprints_hold")
POLICY = Gate(slice_min=10, margin=0.2, task_floors={"qc": 0.1, "qi": 0.1})


class Tasks:
    """A tiny market that learns qc and qi, with or without relevance."""

    def __init__(self, settings: Settings, folder: Path, *relevance: str) -> None:
        self.settings = settings
        self.store = ArtifactStore(settings.artifacts, settings.cache)
        market = make_market(make_base(folder / "base"))
        self.market = market.model_copy(
            update={"tasks": (*relevance, "qc", "qi"), "gate": POLICY, "generated": True}
        )
        own = make_task_snapshot(folder / "snapshot", relevance=bool(relevance))
        self.snapshot = self.publish("snapshot", own)

    def publish(self, name: str, folder: Path) -> str:
        ref = f"tiny/{name}/0"
        return self.store.publish(ref, folder, facts={}, inputs={}, about={}).ref

    def run(self, step: str, inputs: dict[str, Any], **params: object) -> Artifact:
        ref = run_step(step, self.market, inputs, params, self.settings)
        return self.store.open(ref)

    def train(self, seed: int = 0) -> Artifact:
        self.market = self.market.model_copy(update={"seed": seed})
        return self.run("train_llm", {"snapshot": self.snapshot}, arm="tasks")


@pytest.fixture
def alone(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tasks:
    monkeypatch.setattr(tracking, "log_run", lambda *args, **more: "run")
    return Tasks(settings, tmp_path)


def test_without_relevance_an_llm_passes_by_floors_and_the_next_is_compared(alone: Tasks) -> None:
    assert alone.run("passed_llm", {}).facts == {"gate": None, "llm": None}
    first = alone.train()
    given: dict[str, Any] = {"snapshot": alone.snapshot, "llm": first.ref}
    judged = alone.run("evaluate_tasks", given | {"champion_llm": None})
    assert judged.facts["tasks"] == ["qc", "qi"]
    gate = alone.run("gate_tasks", {"evaluation": judged.ref})
    assert gate.facts["verdict"] == "PASS", gate.facts["reasons"]
    assert [r.split(":")[0] for r in gate.facts["reasons"]] == ["floor qc F1", "floor qi F1"]
    assert verdicts.read(gate)["llm"] == first.ref
    assert "floor qc F1" in gate.file("report.html").read_text()
    assert f"# {first.ref}" in gate.file("model_card.md").read_text()

    passed = alone.run("passed_llm", {})
    assert passed.facts == {"gate": gate.ref, "llm": first.ref}
    second = alone.train(seed=1)
    given = {"snapshot": alone.snapshot, "llm": second.ref}
    judged = alone.run("evaluate_tasks", given | {"champion_llm": f"{passed.ref}#llm"})
    names = {c["name"] for c in verdicts.read(
        alone.run("gate_tasks", {"evaluation": judged.ref}))["checks"]}  # fmt: skip
    assert names >= {"qc F1", "qi F1", "floor qc F1", "floor qi F1"}
    assert set(judged.facts["mean_f1"]) == {"candidate", "champion"}


def test_what_is_judged_is_what_score_pairs_says_at_the_models_own_thresholds(
    alone: Tasks,
) -> None:
    llm = alone.train()
    thresholds = json.loads(llm.file("tasks.json").read_text())
    judged = alone.run("evaluate_tasks", {"snapshot": alone.snapshot, "llm": llm.ref})
    said = pl.read_parquet(judged.file("tasks.parquet"))
    read = {"snapshot": alone.snapshot, "llm": llm.ref}
    for space in ("qc", "qi"):
        whole = alone.run("score_pairs", read, space=space, split="gold")
        shards = [
            alone.run("score_shard", read, shard=k, of=2, space=space, split="gold").ref
            for k in (0, 1)
        ]
        joined = alone.run("join_shards", read | {"shards": shards}, space=space, split="gold")
        scored = pl.read_parquet(whole.file("scored.parquet"))
        again = pl.read_parquet(joined.file("scored.parquet"))
        assert np.allclose(scored["p1"], again["p1"], atol=1e-5)
        own = said.filter(task=space)
        gold = task_frame().filter((pl.col("task") == space) & (pl.col("split") == "gold"))
        assert set(own["pair_id"]) == set(gold["pair_id"]) == set(scored["pair_id"])
        both = own.join(scored.select("pair_id", "p1"), on="pair_id")
        assert np.allclose(both["p"], both["p1"], atol=1e-6)
        cut = thresholds[space]["threshold"]
        assert own["said"].to_list() == [int(p >= cut) for p in own["p"].to_list()]
        hits = int(((own["said"] == 1) & (own["grade"] == 1)).sum())
        f1 = 2 * hits / int((own["said"] == 1).sum() + (own["grade"] == 1).sum())
        assert judged.facts["f1"][space] == pytest.approx(f1)


def test_a_champion_from_before_the_tasks_is_not_judged_in_them(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "log_run", lambda *args, **more: "run")
    both = Tasks(settings, tmp_path, "relevance")
    bare = both.publish("snapshot_before", make_snapshot(tmp_path / "bare", target_labels=True))
    before = both.run("train_llm", {"snapshot": bare}, arm="stage2")
    now = both.train()
    chosen = both.run("select_llm", {"snapshot": both.snapshot, "llms": [now.ref]})
    assert chosen.file("tasks.json").read_bytes() == now.file("tasks.json").read_bytes()
    merged = both.run(
        "merge_llms", {"snapshot": both.snapshot, "llms": [now.ref, both.train(1).ref]},
        method="linear",
    )  # fmt: skip
    assert {"qc", "qi"} <= set(json.loads(merged.file("tasks.json").read_text()))
    given = {"snapshot": both.snapshot, "llm": chosen.ref, "champion_llm": before.ref}
    judged = both.run("evaluate_tasks", given)
    assert set(pl.read_parquet(judged.file("tasks.parquet"))["model"]) == {"candidate"}
    with pytest.raises(ConfigError, match="gate_tasks judges markets without relevance"):
        both.run("gate_tasks", {"evaluation": judged.ref})


@pytest.mark.parametrize(
    ("step", "more", "params", "expected"),
    [
        ("score_pairs", {}, {"space": "qc"}, "space qc: give a split"),
        ("score_pairs", {}, {"space": "qx", "split": "gold"}, "there is no label space 'qx'"),
    ],
)
def test_what_cannot_be_scored_is_one_line(
    alone: Tasks, step: str, more: dict[str, Any], params: dict[str, str], expected: str
) -> None:
    given = {"snapshot": alone.snapshot, "llm": alone.train().ref} | more
    with pytest.raises((ConfigError, DataError), match=expected):
        alone.run(step, given, **params)


def test_a_snapshot_without_tasks_is_not_judged_in_them(alone: Tasks, tmp_path: Path) -> None:
    bare = alone.publish("bare", make_snapshot(tmp_path / "bare"))
    with pytest.raises(DataError, match="holds no pairs of qc or qi; name them in"):
        alone.run("evaluate_tasks", {"snapshot": bare, "llm": alone.train().ref})


def test_the_gate_reads_the_tasks_and_replays(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "log_run", lambda *args, **more: "run")
    gate = Gate(slice_min=10, floors={"micro_f1": 0.1}, task_floors={"qc": 0.9})
    config = market().model_copy(update={"tasks": ("relevance", "qc"), "gate": gate})
    pipeline = Pipeline(settings, config)
    new, other = parts(settings, "b", 2), parts(settings, "c", 2)

    def judged(of: dict[str, str], right: float, key: str) -> str:
        rows = [(f"q{i}", "zh-TW", i % 2, i % 2 if i < 100 * right else 1 - i % 2)
                for i in range(100)]  # fmt: skip
        frame = said(rows)

        def write(folder: Path) -> None:
            frame.write_parquet(folder / "tasks.parquet")
            dev = {"threshold": 0.5, "reported": figures(frame), "languages": {}}
            summary = {
                "market": "tiny",
                "snapshot": "s",
                "generated": True,
                "dev": {"candidate": {"qc": dev}},
                **summarise_tasks(frame, ["qc"]),
            }
            (folder / "metrics.json").write_text(json.dumps(summary))  # fmt: skip

        given = {"snapshot": of["snapshot"], "llm": of["llm"]}
        return publish(settings, "evaluate_tasks", key, write, {"tasks": ["qc"]}, given).ref

    evaluation = pipeline.evaluation(new, other, 0.9)
    bundle = pipeline.run("bundle", new)
    given = {"bundle": bundle.ref, "champion": pipeline.run("champion", {}).ref,
             "evaluation": evaluation, "servability": probed(settings, bundle).ref}  # fmt: skip
    with pytest.raises(ConfigError, match="the market learns qc, so it needs input 'task_eval"):
        pipeline.run("gate", given, stage=2)
    for right, outcome in ((1.0, "PASS"), (0.5, "FAIL")):
        of = given | {"task_evaluation": judged(new, right, f"r{right}")}
        verdict = pipeline.run("gate", of, stage=2)
        assert verdict.facts["verdict"] == outcome, verdict.facts
        sealed = verdicts.read(verdict)
        assert any(c["name"] == "floor qc F1" for c in sealed["checks"])
        assert judge.replay(store_of(settings), verdict) == sealed
        assert "Query-category" in verdict.file("report.html").read_text()
        assert "| qc | candidate | 100 |" in verdict.file("model_card.md").read_text()
    with pytest.raises(ConfigError, match="judged other models than bundle and champion"):
        pipeline.run("gate", given | {"task_evaluation": judged(other, 0.9, "x")}, stage=2)


def test_a_market_without_relevance_has_nothing_to_bundle(settings: Settings) -> None:
    config = market().model_copy(update={"tasks": ("qc",)})
    with pytest.raises(ConfigError, match="learns qc and no relevance: there is nothing to serve"):
        Pipeline(settings, config).run("bundle", parts(settings, "b", 2))
