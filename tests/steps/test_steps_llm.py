"""The three steps of the LLM, end to end on a tiny market: train, relabel, train again, choose."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest

from csrm_tasks import tracking
from csrm_tasks.artifacts import Artifact, ArtifactStore
from csrm_tasks.dataset import opinions
from csrm_tasks.errors import ArtifactError, ConfigError, DataError
from csrm_tasks.llm.data import load_fields, load_pairs, relevance_rows
from csrm_tasks.llm.network.model import add_lora, load_base, set_adapter_state
from csrm_tasks.llm.prompt.encoding import PromptEncoder
from csrm_tasks.llm.prompt.prompts import RELEVANCE
from csrm_tasks.llm.scoring import calibration
from csrm_tasks.llm.scoring.predict import predict
from csrm_tasks.llm.scoring.scoring import RelevanceScorer
from csrm_tasks.markets import MarketConfig
from csrm_tasks.records import PAIRS, SCORED, read_table
from csrm_tasks.sections import Lora
from csrm_tasks.settings import Settings
from csrm_tasks.steps import run_step
from tests.llm_fixtures import make_base, make_market, make_rqa, make_snapshot

pytestmark = pytest.mark.usefixtures("fingerprints_hold")


class Installation:
    """A tiny market with a snapshot and retrieved titles already published."""

    def __init__(self, settings: Settings, folder: Path, **llm: object) -> None:
        self.settings, self.folder = settings, folder
        self.store = ArtifactStore(settings.artifacts, settings.cache)
        self.market: MarketConfig = make_market(make_base(folder / "base"), **llm)
        snapshot = make_snapshot(folder / "snapshot", target_labels=True, raters=2)
        self.snapshot = self.publish("snapshot", snapshot)
        self.rqa = self.publish("build_rqa", make_rqa(folder / "rqa", snapshot))

    def publish(self, step: str, folder: Path) -> str:
        ref = f"tiny/{step}/0"
        return self.store.publish(ref, folder, facts={}, inputs={}, about={}).ref

    def publish_with(self, name: str, model: Artifact, **facts: object) -> Artifact:
        """Publish ``model`` again with other facts."""
        about, inputs = {"name": name}, dict(model.inputs)
        changed = dict(model.facts) | facts
        return self.store.publish(
            f"tiny/{name}", model.path, facts=changed, inputs=inputs, about=about
        )

    def run(self, step: str, inputs: dict[str, object], **params: object) -> Artifact:
        ref = run_step(step, self.market, inputs, params, self.settings)  # type: ignore[arg-type]
        return self.store.open(ref)

    def train(self, **inputs: str) -> Artifact:
        return self.run("train_llm", {"snapshot": self.snapshot} | inputs, arm="plain")


def needs_little(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a handful of pairs with two raters be enough to calibrate by."""
    for module in (opinions, calibration):
        monkeypatch.setattr(module, "MIN_RATED", 10)
    monkeypatch.setattr(calibration, "MIN_AGREED", 4)


@pytest.fixture
def tracked(settings: Settings, tmp_path: Path) -> Installation:
    """With a real MLflow store, which takes seconds to make."""
    return Installation(settings, tmp_path)


@pytest.fixture
def tiny(tracked: Installation, monkeypatch: pytest.MonkeyPatch) -> Installation:
    monkeypatch.setattr(tracking, "log_run", lambda *args, **more: "run")
    return tracked


def test_a_round_of_self_distillation_from_snapshot_to_gold(tiny: Installation) -> None:
    teacher = tiny.train(rqa=tiny.rqa)
    assert teacher.facts["dev_locale"] == "zh-TW"
    soft = tiny.run(
        "score_pairs",
        {"snapshot": tiny.snapshot, "llm": teacher.ref, "rqa": tiny.rqa}, split="train",
    )  # fmt: skip
    train = load_pairs(tiny.folder / "snapshot", "train")
    scored = pl.read_parquet(soft.file("scored.parquet"))
    assert scored["pair_id"].to_list() == train["pair_id"].to_list()
    assert soft.facts["train_fit"] == soft.facts["agreement"]
    predicted = scored.select(pl.concat_list("p0", "p1", "p2").list.arg_max()).to_series()
    assert soft.facts["train_fit"] == pytest.approx((predicted == train["grade"]).mean())
    assert soft.facts["memorised"] == (soft.facts["train_fit"] >= 0.9)
    student = tiny.run(
        "train_llm",
        {"snapshot": tiny.snapshot, "rqa": tiny.rqa, "soft": soft.ref}, arm="plain", round=1,
    )  # fmt: skip
    assert student.facts["dev_log_loss"] != teacher.facts["dev_log_loss"]
    chosen = tiny.run("select_llm", {"snapshot": tiny.snapshot, "llms": [teacher.ref, student.ref]})
    best = max((teacher, student), key=lambda a: a.facts["dev_micro_f1"])
    assert chosen.facts["chosen_ref"] == best.ref
    assert chosen.facts["calibration"].startswith("the raters' confusion is not known: 44 pairs")
    card = json.loads(chosen.file("llm.json").read_text())
    assert card["temperature"] == chosen.facts["temperature"] == 1.0
    assert card["rqa"] is True
    gold = tiny.run(
        "score_pairs",
        {"snapshot": tiny.snapshot, "llm": chosen.ref, "rqa": tiny.rqa}, split="gold",
    )  # fmt: skip
    table = read_table(
        gold.file("scored.parquet"), {k: PAIRS[k] for k in ("pair_id", "grade")} | SCORED
    )
    assert len(table) == len(load_pairs(tiny.folder / "snapshot", "gold")) > 0
    assert np.allclose(table.select("p0", "p1", "p2").sum_horizontal(), 1.0, atol=1e-5)


def test_temperature_is_applied_to_gold_but_not_to_soft_labels(
    tiny: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs_little(monkeypatch)
    monkeypatch.setattr(calibration, "fit_temperature", lambda p, likelihood: 1.5)
    monkeypatch.setattr(calibration, "expected_calibration_error", lambda p, _: float(p.std()))
    monkeypatch.setattr(calibration, "log_loss", lambda p, _: 0.0)
    chosen = tiny.run("select_llm", {"snapshot": tiny.snapshot, "llms": [tiny.train().ref]})
    assert chosen.facts["temperature"] == 1.5  # a flatter one is told to be better
    scorer = RelevanceScorer.load(chosen.path)
    fields = load_fields(tiny.folder / "snapshot")
    temperature = chosen.facts["temperature"]
    for split, exponent in (("train", 1.0), ("gold", 1.0 / temperature)):
        pairs = load_pairs(tiny.folder / "snapshot", split)
        raw = scorer.score(RELEVANCE, fields, pairs, calibrated=False)
        powered = raw.select("p0", "p1", "p2").to_numpy().astype(float) ** exponent
        expected = powered / powered.sum(1, keepdims=True)
        inputs: dict[str, object] = {"snapshot": tiny.snapshot, "llm": chosen.ref}
        found = tiny.run("score_pairs", inputs, split=split)
        columns = pl.read_parquet(found.file("scored.parquet")).select("p0", "p1", "p2")
        assert np.abs(columns.to_numpy() - expected).max() < 1e-5


def test_given_pairs_are_scored_in_the_conversion_space(tiny: Installation) -> None:
    pairs = pl.read_parquet(tiny.folder / "snapshot" / "pairs.parquet")
    (tiny.folder / "pairs").mkdir()
    asked = pairs.select("query_id", "product_id", "locale", rank=pl.lit(1))
    asked.write_parquet(tiny.folder / "pairs" / "pairs.parquet")
    ref = tiny.publish("pseudo_pairs", tiny.folder / "pairs")
    inputs: dict[str, object] = {"snapshot": tiny.snapshot, "llm": tiny.train().ref, "pairs": ref}
    found = tiny.run("score_pairs", inputs, space="cvr")
    table = read_table(found.file("scored.parquet"), SCORED)
    assert table.select("query_id", "product_id").equals(asked.select("query_id", "product_id"))
    assert (table["p2"] == 0).all()
    assert np.allclose(table["p0"] + table["p1"], 1.0, atol=1e-6)
    with pytest.raises(ConfigError, match="not both"):
        tiny.run("score_pairs", inputs, space="cvr", split="gold")
    with pytest.raises(DataError, match="no label space 'price'"):
        tiny.run("score_pairs", inputs, space="price")


def test_the_merged_model_scores_as_the_adapter_does(tiny: Installation) -> None:
    trained = tiny.train()
    fields = load_fields(tiny.folder / "snapshot")
    pairs = load_pairs(tiny.folder / "snapshot", "train")
    rows = relevance_rows(fields, pairs)
    merged = RelevanceScorer.load(trained.path)
    found = merged.score(RELEVANCE, fields, pairs).select("p0", "p1", "p2").to_numpy()
    from safetensors.torch import load_file

    model = load_base(tiny.market.llm.base)
    encoder = PromptEncoder(model.tokenizer, 96)
    plain = predict(model, encoder, RELEVANCE, rows.queries, rows.products)
    add_lora(model, Lora.model_validate(tiny.market.llm.lora), seed=0)
    weights = load_file(trained.file("adapter") / "adapter_model.safetensors")
    set_adapter_state(model, weights)
    expected = predict(model, encoder, RELEVANCE, rows.queries, rows.products)
    assert np.abs(found - expected).max() <= 1e-3  # A14
    assert np.abs(plain - expected).max() > 1e-2  # the adapter does something


def test_an_adapter_for_another_base_is_refused(tiny: Installation) -> None:
    trained = tiny.train()
    make_base(tiny.folder / "base", seed=9)
    with pytest.raises(ArtifactError, match="trained on another"):
        RelevanceScorer.load(trained.path)


def test_another_base_under_the_same_name_is_another_training(tiny: Installation) -> None:
    first = tiny.train()
    assert tiny.train().ref == first.ref
    make_base(tiny.folder / "base", seed=9)
    assert tiny.train().ref != first.ref


def test_training_is_one_mlflow_run_with_parameters_metrics_and_curves(
    tracked: Installation,
) -> None:
    trained = tracked.train()
    api = tracking.client(tracked.settings)
    experiment = tracking.experiment_id(api, "tiny", tracked.settings)
    (run,) = api.search_runs([experiment])
    assert run.data.tags["csrm.ref"] == trained.ref
    assert run.data.params["lora.r"] == "4"
    assert run.data.params["snapshot"] == tracked.snapshot
    assert (
        run.data.params["base_digest"]
        == json.loads(trained.file("llm.json").read_text())["base_digest"][:16]
    )
    assert run.data.tags["csrm.version"]
    assert {"samples_per_second", "tokens_per_second"} <= set(run.data.metrics)
    assert run.data.metrics["dev_micro_f1"] == trained.facts["dev_micro_f1"]
    history = api.get_metric_history(run.info.run_id, "loss_mt")
    assert [m.step for m in history] == [4, 8, 12]


def test_a_round_names_its_teacher_and_a_choice_shows_its_reliability(
    tracked: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged: dict[str, dict[str, Any]] = {}
    monkeypatch.setattr(
        tracking, "log_run", lambda settings, market, ref, **more: logged.setdefault(ref, more)
    )
    teacher = tracked.train()
    inputs: dict[str, object] = {"snapshot": tracked.snapshot, "llm": teacher.ref}
    soft = tracked.run("score_pairs", inputs, split="train")
    student = tracked.train(soft=soft.ref)
    params = logged[student.ref]["params"]
    assert (params["soft"], params["teacher"]) == (soft.ref, teacher.ref)
    assert params["snapshot"] == tracked.snapshot
    assert params["snapshot_digest"] == tracked.store.open(tracked.snapshot).digest
    assert {"samples_per_second", "tokens_per_second", "seconds", "train_fit"} <= set(
        logged[student.ref]["metrics"]
    )
    assert {"gradient_norm", "learning_rate", "loss_mt"} <= set(logged[student.ref]["curves"])
    assert "teacher" not in logged[teacher.ref]["params"]
    needs_little(monkeypatch)
    chosen = tracked.run(
        "select_llm", {"snapshot": tracked.snapshot, "llms": [teacher.ref, student.ref]}
    )
    (figure,) = [f for f in logged[chosen.ref]["files"] if f.suffix == ".svg"]
    drawn = chosen.file(figure.name).read_text()
    assert (
        'aria-label="Reliability on dev pairs with a consensus; after: ' in drawn
        and "<style>" in drawn
    )


def test_the_commit_is_a_tag_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def git(command: list[str], **more: object) -> SimpleNamespace:
        return SimpleNamespace(stdout={"rev-parse": "abc\n", "status": " M a.py\n"}[command[3]])

    tracking.code_tags.cache_clear()
    monkeypatch.setattr(tracking.subprocess, "run", git)
    found = tracking.code_tags()
    assert (found["mlflow.source.git.commit"], found["csrm.changed"]) == ("abc", "true")

    def no_git(command: list[str], **more: object) -> None:
        raise FileNotFoundError("git")

    tracking.code_tags.cache_clear()
    monkeypatch.setattr(tracking.subprocess, "run", no_git)
    assert set(tracking.code_tags()) == {"csrm.version"}
    tracking.code_tags.cache_clear()


def test_a_pair_outside_the_snapshot_is_named(tiny: Installation) -> None:
    fields = load_fields(tiny.folder / "snapshot")
    pairs = pl.DataFrame({"query_id": ["nobody"], "product_id": ["p1"], "locale": ["zh-TW"]})
    with pytest.raises(DataError, match="'nobody'"):
        fields.of(pairs)


def test_select_needs_a_model(tiny: Installation) -> None:
    with pytest.raises(ConfigError, match="at least one model"):
        tiny.run("select_llm", {"snapshot": tiny.snapshot})
