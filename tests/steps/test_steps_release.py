"""From bundle to live release through the steps, with a real MLflow on SQLite: two generations."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from html import escape
from pathlib import Path
from typing import Any

import pytest

from csrm_tasks import tracking
from csrm_tasks.artifacts import Artifact
from csrm_tasks.cli.main import main
from csrm_tasks.errors import ConfigError, RefusedError
from csrm_tasks.evaluation.checks import GateCheck
from csrm_tasks.markets import MarketConfig
from csrm_tasks.release import judge, ledger, retention, routing
from csrm_tasks.sections import Gate
from csrm_tasks.settings import Settings
from csrm_tasks.steps import run_step
from csrm_tasks.steps.asked import Asked
from tests.release_fixtures import MARKET, market, parts, probed, scores, store_of


class Pipeline:
    """Runs the release steps of one installation."""

    def __init__(self, settings: Settings, config: MarketConfig) -> None:
        self.settings = settings
        self.config = config

    def run(self, step: str, inputs: dict[str, Any], **params: Any) -> Artifact:
        """Run a step and open what it made."""
        ref = run_step(step, self.config, inputs, params, self.settings)
        return store_of(self.settings).open(ref)

    def gated(
        self, part: dict[str, str], stage: int, evaluation: str | None = None, **more: str
    ) -> Any:
        """Bundle and judge; returns the three artifacts' references by input name."""
        bundle = self.run("bundle", part)
        champion = self.run("champion", {})
        given = {
            "bundle": bundle.ref, "champion": champion.ref, "evaluation": evaluation,
            "servability": probed(self.settings, bundle).ref,
        }  # fmt: skip
        return {"bundle": bundle.ref, "gate": self.run("gate", given, stage=stage, **more).ref}

    def released(self, made: dict[str, str]) -> Artifact:
        """Register and promote; returns promote's receipt."""
        registered = self.run("register", made)
        return self.run("promote", {**made, "register": registered.ref})

    def facts(self, ref: str) -> Any:
        """Return an artifact's facts."""
        return store_of(self.settings).open(ref).facts

    def evaluation(self, new: dict[str, str], old: dict[str, str], right: float) -> str:
        """Judge a candidate and the live release on the candidate's snapshot."""
        snapshot = new["snapshot"]
        llm, towers = scores(self.settings, "new", new, snapshot, right)
        old_llm, old_towers = scores(self.settings, "older", old, snapshot, 0.6)
        given = {
            "snapshot": snapshot,
            "baselines": self.run("baselines", {"snapshot": snapshot}).ref,
            "champion": self.run("champion", {}).ref,
            "llm_scores": [old_llm, llm],
            "tower_scores": [towers, old_towers],
        }
        names = "champion,final,towers,champion_towers"
        return self.run("evaluate", given, names=names).ref


@pytest.fixture
def pipeline(settings: Settings) -> Pipeline:
    return Pipeline(settings, market())


def assert_a_changed_run_is_said_everywhere(
    pipeline: Pipeline, made: dict[str, str], asked: str
) -> None:
    """In verdict, report, card, MLflow run and version, and the ledger."""
    store, api = store_of(pipeline.settings), tracking.client(pipeline.settings)
    gate = store.open(made["gate"])
    verdict = json.loads(gate.file("verdict.json").read_text())
    assert verdict["asked"] == gate.facts["asked"] == asked
    assert judge.replay(store, gate) == verdict
    assert escape(asked) in gate.file("report.html").read_text()
    assert asked in gate.file("model_card.md").read_text()
    row = ledger.verified(pipeline.settings, MARKET)[-2]
    assert (row.action, row.payload["asked"]) == ("registered", asked)
    for one in ledger.verified(pipeline.settings, MARKET)[-2:]:
        assert one.reason.endswith(
            f"this run is none of the market's normal ones: it was given {asked}"
        )
    assert "asked" not in ledger.verified(pipeline.settings, MARKET)[0].payload
    version = api.get_model_version_by_alias("csrm-tiny", "champion")
    assert version.tags["csrm.asked"] == asked
    experiment = api.get_experiment_by_name("csrm/tiny").experiment_id
    (run,) = api.search_runs([experiment], f"tags.`csrm.ref` = '{made['gate']}'")
    assert run.data.tags["csrm.asked"] == asked


@pytest.mark.slow
def test_two_generations_through_mlflow(pipeline: Pipeline) -> None:
    settings = pipeline.settings
    old = parts(settings, "a", 1)
    first = pipeline.gated(old, stage=1)
    receipt = pipeline.released(first)
    one = receipt.facts["release"]
    assert receipt.facts["previous"] is None

    new = parts(settings, "b", 2)
    evaluation = pipeline.evaluation(new, old, 0.9)
    asked = Asked(rounds=1, reason='a "quick" one').as_text()
    second = pipeline.gated(new, 2, evaluation, asked=asked)
    verdict = pipeline.facts(second["gate"])
    assert (verdict["verdict"], verdict["champion"]) == ("PASS", one)
    receipt = pipeline.released(second)
    two = receipt.facts["release"]
    assert pipeline.released(second).facts == receipt.facts  # again: nothing new

    rows = ledger.verified(settings, MARKET)
    assert [(e.action, e.release_id) for e in rows] == [
        ("registered", one), ("promoted", one), ("registered", two), ("promoted", two),
    ]  # fmt: skip
    api = tracking.client(settings)
    aliases = {a: str(v) for a, v in api.get_registered_model("csrm-tiny").aliases.items()}
    assert aliases == {"champion": "2", "previous": "1"}
    version = api.get_model_version_by_alias("csrm-tiny", "champion")
    assert version.tags["csrm.release"] == two
    assert version.tags["csrm.evaluation"] == evaluation
    assert version.tags["csrm.gate"] == second["gate"]
    assert len(api.search_model_versions("name='csrm-tiny'")) == 2
    doc = routing.read(settings, MARKET)
    assert doc is not None and doc["stable"] == two
    champion = pipeline.run("champion", {}).facts
    assert champion["release"] == two
    assert {k: champion[k] for k in ("llm", "ebr", "rqa", "export")} == {
        k: new[k] for k in ("llm", "ebr", "rqa", "export")
    }
    assert champion["towers"] == f"{MARKET}/train_towers/b"
    assert_it_can_be_retrained_whatever_its_age(pipeline, champion)
    assert_a_changed_run_is_said_everywhere(pipeline, second, asked)
    page = store_of(settings).open(second["gate"]).file("report.html").read_text()
    assert "Gate: PASS." in page
    card = store_of(settings).open(second["gate"]).file("model_card.md").read_text()
    assert card.startswith(f"# {two}\n") and version.description == card
    assert {f.path for f in api.list_artifacts(version.run_id)} >= {"report.html", "model_card.md"}
    summary = json.loads(store_of(settings).open(evaluation).file("metrics.json").read_text())
    assert summary["rivals"] == [["final", "champion"], ["towers", "champion_towers"]]
    assert_mlflow_holds_the_figures(pipeline, evaluation)
    assert_the_version_shows_them(pipeline, evaluation, summary["gold"]["digest"])


def assert_it_can_be_retrained_whatever_its_age(pipeline: Pipeline, champion: Any) -> None:
    later = datetime.now(UTC) + timedelta(days=400)
    keep = retention.plan(pipeline.settings, market(), later).keep
    named = {ref for name, ref in champion.items() if ref and name not in ("release", "towers")}
    assert named <= set(keep) and champion["bundle"] in named
    tree = pipeline.settings.artifacts
    assert not (Path(tree) / champion["towers"]).exists()  # else it would be kept too


def assert_mlflow_holds_the_figures(pipeline: Pipeline, evaluation: str) -> None:
    """What the summary of a run is read back from."""
    api = tracking.client(pipeline.settings)
    experiment = api.get_experiment_by_name("csrm/tiny").experiment_id
    (run,) = api.search_runs([experiment], f"tags.`csrm.ref` = '{evaluation}'")
    wanted = pipeline.facts(evaluation)["metrics"]
    spent = {"step_wall_seconds", "step_cpu_seconds"}
    assert spent <= run.data.metrics.keys()
    found = {name: value for name, value in run.data.metrics.items() if name not in spent}
    assert found == pytest.approx(wanted)
    assert {f.path for f in api.list_artifacts(run.info.run_id)} == {"metrics.json", "report.html"}


def assert_the_version_shows_them(pipeline: Pipeline, evaluation: str, gold: str) -> None:
    api = tracking.client(pipeline.settings)
    version = api.get_model_version_by_alias("csrm-tiny", "champion")
    experiment = api.get_experiment_by_name("csrm/tiny").experiment_id
    both = api.search_logged_models([experiment])
    (made,) = [m for m in both if m.artifact_location == version.source]
    wanted = pipeline.facts(evaluation)["metrics"]
    assert {m.key: m.value for m in made.metrics} == pytest.approx(wanted)  # each once
    assert {(m.dataset_name, m.dataset_digest) for m in made.metrics} == {("gold", gold[:36])}
    (of,) = api.get_run(version.run_id).inputs.dataset_inputs
    assert (of.dataset.name, of.dataset.digest) == ("gold", gold[:36])
    assert evaluation in of.dataset.source
    assert len(both) == 2 and {str(m.status) for m in both} == {"READY"}
    (run,) = api.search_runs([experiment], f"tags.`csrm.ref` = '{evaluation}'")
    (read,) = run.inputs.dataset_inputs
    assert read.dataset.name == "snapshot"


def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "log_run", lambda *args, **given: "run")


def promoted_by_hand(pipeline: Pipeline, bundle: str, release: str = "tiny-live") -> None:
    """Write the ledger row of a live release, without MLflow."""
    made = store_of(pipeline.settings).open(bundle)
    payload = {"bundle": made.ref, "digest": made.digest, "embeddings": made.inputs["embeddings"]}
    ledger.append(
        pipeline.settings, MARKET, "promoted", release, actor="t", reason="", payload=payload
    )


def test_a_worse_candidate_fails_with_reasons(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    quiet(monkeypatch)
    old, new = parts(pipeline.settings, "a", 1), parts(pipeline.settings, "b", 2)
    promoted_by_hand(pipeline, pipeline.run("bundle", old).ref)
    evaluation = pipeline.evaluation(new, old, 0.3)
    verdict = pipeline.facts(pipeline.gated(new, 2, evaluation)["gate"])
    assert verdict["verdict"] == "FAIL"
    assert any(r.startswith("micro_f1: not") for r in verdict["reasons"])


def test_any_verdict_replays_from_its_stored_inputs(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:  # A46
    quiet(monkeypatch)
    settings = pipeline.settings
    monkeypatch.setenv("CSRM_HOME", str(settings.home))
    old, new = parts(settings, "a", 1), parts(settings, "b", 2)
    cold = pipeline.gated(old, 1)
    promoted_by_hand(pipeline, cold["bundle"])
    evaluation = pipeline.evaluation(new, old, 0.9)
    late = pipeline.gated(new, 2, evaluation)
    promoted_by_hand(
        pipeline, late["bundle"], "tiny-later"
    )  # the past is not judged by the present
    for made in (cold, late):
        gate = store_of(settings).open(made["gate"])
        stored = json.loads(gate.file("verdict.json").read_text())
        assert judge.replay(store_of(settings), gate) == stored
        assert main(["gate", "replay", gate.ref]) == 0
        assert f"PASS again for {stored['release']}: {stored['digest']}" in capsys.readouterr().out


def test_a_verdict_that_does_not_replay_says_what_differs(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    quiet(monkeypatch)
    made = pipeline.gated(parts(pipeline.settings, "a", 1), 1)
    store = store_of(pipeline.settings)
    gate = store.open(made["gate"])
    monkeypatch.setattr(
        "csrm_tasks.evaluation.gate.floor_value", lambda *_: GateCheck("x", "FAIL", "")
    )
    with pytest.raises(RefusedError, match="does not replay: outcome was PASS, now FAIL"):
        judge.replay(store, gate)
    other = parts(pipeline.settings, "b", 1)
    swapped = replace(gate, inputs={**gate.inputs, "bundle": pipeline.run("bundle", other).ref})
    with pytest.raises(RefusedError, match="its bundle is no longer what was judged"):
        judge.replay(store, swapped)


def test_a_champion_that_was_not_scored_again_is_inconclusive(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    quiet(monkeypatch)
    old, new = parts(pipeline.settings, "a", 1), parts(pipeline.settings, "b", 2)
    promoted_by_hand(pipeline, pipeline.run("bundle", old).ref)
    stranger = parts(pipeline.settings, "c", 1)  # scored under the champion's name, but is not it
    evaluation = pipeline.evaluation(new, stranger, 0.9)
    verdict = pipeline.facts(pipeline.gated(new, 2, evaluation)["gate"])
    assert verdict["verdict"] == "INCONCLUSIVE"
    assert "micro_f1: the champion was not measured" in verdict["reasons"]


def test_an_evaluation_on_another_snapshot_is_refused(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    quiet(monkeypatch)
    old, new = parts(pipeline.settings, "a", 1), parts(pipeline.settings, "b", 2)
    evaluation = pipeline.evaluation(old, new, 0.9)
    with pytest.raises(ConfigError, match="judged another snapshot"):
        pipeline.gated(new, 2, evaluation)


def test_cold_start_verdicts(pipeline: Pipeline) -> None:
    verdicts = [
        pipeline.facts(pipeline.gated(parts(pipeline.settings, key, 1, dev), 1)["gate"])
        for key, dev in (("a", 0.7), ("b", 0.2))
    ]
    assert [v["verdict"] for v in verdicts] == ["PASS", "FAIL"]
    assert "0.200 is below 0.400" in verdicts[1]["reasons"][0]


def test_the_policy_is_part_of_the_gates_identity(settings: Settings) -> None:
    part = parts(settings, "a", 1, 0.5)
    lax = Pipeline(settings, market()).gated(part, 1)
    strict = Pipeline(settings, market(Gate(cold_start_floor=0.6))).gated(part, 1)
    store = store_of(settings)
    assert store.open(lax["gate"]).facts["verdict"] == "PASS"
    assert store.open(strict["gate"]).facts["verdict"] == "FAIL"
    body = json.loads(store.open(strict["gate"]).file("verdict.json").read_text())
    assert body["policy"]["cold_start_floor"] == 0.6


def test_no_policy_no_verdict(settings: Settings) -> None:
    bare = Pipeline(settings, market().model_copy(update={"gate": None}))
    with pytest.raises(RefusedError, match="no gate policy"):
        bare.gated(parts(settings, "a", 1), 1)


def test_stage_two_needs_an_evaluation_and_stages_are_two(pipeline: Pipeline) -> None:
    part = parts(pipeline.settings, "a", 2)
    with pytest.raises(ConfigError, match="needs input 'evaluation'"):
        pipeline.gated(part, 2)
    with pytest.raises(ConfigError, match="stage is 1 or 2"):
        pipeline.gated(part, 3)
