"""A second stage as part of a release: bundled, loaded, probed, judged and retained with it."""

from __future__ import annotations

import json
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from csrm_tasks.artifacts import Artifact
from csrm_tasks.errors import ArtifactError
from csrm_tasks.release import judge, retention
from csrm_tasks.release.bundle.scorer import ReleaseScorer
from csrm_tasks.release.bundle.served import ServedOrder
from csrm_tasks.sections import SecondStage as Section
from csrm_tasks.settings import Settings
from csrm_tasks.steps import run_step
from csrm_tasks.towers.serving.cross import CrossRuntime
from csrm_tasks.towers.serving.product_tokens import write_tokens
from csrm_tasks.towers.serving.second_stage import write_second_stage
from tests.evaluation_fixtures import gold
from tests.release_fixtures import MARKET, market, parts, publish, scores, store_of
from tests.second_stage_fixtures import IDS, TITLES, Cross, make_cross, second_parts
from tests.steps.test_steps_release import Pipeline
from tests.steps.test_steps_servability import World

pytestmark = pytest.mark.usefixtures("fingerprints_hold")


@pytest.fixture(scope="module")
def cross(tmp_path_factory: pytest.TempPathFactory) -> Cross:
    return make_cross(tmp_path_factory.mktemp("cross"))


def bundled(settings: Settings, part: dict[str, str]) -> Artifact:
    return store_of(settings).open(run_step("bundle", market(), part, {}, settings))


def test_what_dev_kept_is_in_the_bundle_and_its_format_is_its_own(
    settings: Settings, cross: Cross
) -> None:
    found = bundled(settings, second_parts(settings, cross))
    manifest = json.loads(found.file("release.json").read_text())
    assert (manifest["format"], manifest["second_stage"]) == (4, {"top": 6})
    assert found.facts["second_stage"] == {"top": 6}
    scorer = ReleaseScorer(found.path)
    assert scorer.second is not None and scorer.second.top == 6
    graph = found.path / "second_stage" / "cross.onnx"
    graph.write_bytes(graph.read_bytes()[:-1])
    with pytest.raises(ArtifactError, match=r"second_stage/cross\.onnx was changed"):
        ReleaseScorer(found.path)


def test_what_dev_did_not_keep_is_named_and_left_out(settings: Settings, cross: Cross) -> None:
    part = second_parts(settings, cross, kept=False)
    found = bundled(settings, part)
    manifest = json.loads(found.file("release.json").read_text())
    assert manifest["format"] == 2 and "second_stage" not in found.facts
    assert manifest["parts"]["second_stage"]["ref"] == part["second_stage"]
    assert not (found.path / "second_stage").exists()
    assert ReleaseScorer(found.path).second is None


def test_parts_of_another_second_stage_are_refused(settings: Settings, cross: Cross) -> None:
    part, other = (second_parts(settings, cross, key) for key in "st")
    with pytest.raises(ArtifactError, match="was made from export"):
        bundled(settings, part | {"second_stage": other["second_stage"]})
    again = second_parts(settings, cross, "s", top=7)
    with pytest.raises(ArtifactError, match="was made from second_stage"):
        bundled(settings, part | {"second_stage": again["second_stage"]})


class Probed(World):
    """The bundle of the servability tests, with a second stage."""

    def __init__(self, settings: Settings, cross: Cross, spoilt: float = 0.0) -> None:
        super().__init__(settings)
        store = store_of(settings)
        snapshot = store.open(self.part["snapshot"]).path
        queries, products = (
            pl.read_parquet(snapshot / f"{name}.parquet") for name in ("queries", "products")
        )
        rows = (
            pl.read_parquet(snapshot / "pairs.parquet").head(40)
            .join(queries.select("query_id", "norm"), on="query_id")
            .join(products.select("product_id", "title"), on="product_id")
        )  # fmt: skip
        said = CrossRuntime(cross.folder).score_texts(
            *(rows[c].to_list() for c in ("norm", "title"))
        )
        of = {"snapshot": self.part["snapshot"], "export": self.part["export"]}

        def stage(folder: Path) -> None:
            write_second_stage(cross.folder, folder, 6, {"first": 1.0, "cross": 1.0})
            written = np.abs(said.em - np.float32(spoilt))
            rows.select("pair_id").with_columns(cross=pl.Series(written)).write_parquet(
                folder / "dev_scores.parquet"
            )

        made = publish(settings, "second_stage", "a", stage, {"kept": True, "top": 6}, of)
        before = store.open(self.part["embeddings"])

        def vectors(folder: Path) -> None:
            for name in ("embeddings.npy", "product_ids.parquet"):
                shutil.copyfile(before.file(name), folder / name)
            ids = pl.read_parquet(folder / "product_ids.parquet")["product_id"]
            title = dict(products.select("product_id", "title").iter_rows())
            reader = CrossRuntime(cross.folder).title_reader
            write_tokens(folder, [title[i] for i in ids], reader)

        of |= {"second_stage": made.ref}
        self.part["embeddings"] = publish(settings, "embed_products", "w", vectors, inputs=of).ref
        self.part["second_stage"] = made.ref
        self.bundle = run_step("bundle", market(), self.part, {}, settings)

    def within(self, budget_ms: float) -> Any:
        """Run the step with this budget of the second stage."""
        section = Section(enabled=True, budget_ms=budget_ms)
        config = market().model_copy(update={"second_stage": section})
        given = {"bundle": self.bundle, "snapshot": self.logged, "towers": self.towers}
        ref = run_step("servability", config, given, {}, self.settings)
        return store_of(self.settings).open(ref).facts


def test_its_scores_and_the_time_of_a_whole_search_are_probed(
    settings: Settings, cross: Cross
) -> None:
    world = Probed(settings, cross)
    facts = world.within(1e6)
    assert facts["outcome"] == "PASS", facts
    assert facts["second_stage_mean_error"] < 1e-5
    assert facts["second_stage_p50_ms"] > facts["p50_ms"] > 0
    slow = world.within(1e-6)
    assert slow["outcome"] == "FAIL"
    (reason,) = slow["reasons"]
    assert reason.endswith("ms for a search with the second stage, budget 1e-06")


def test_scores_unlike_those_that_dev_was_told_fail(settings: Settings, cross: Cross) -> None:
    facts = Probed(settings, cross, spoilt=0.2).within(1e6)
    assert facts["outcome"] == "FAIL"
    assert "the second stage's scores differ from those on dev" in facts["reasons"][0]


def test_it_is_judged_on_gold_told_and_retained_with_its_release(
    settings: Settings, cross: Cross
) -> None:
    pipeline = Pipeline(settings, market())
    old = second_parts(settings, cross, "a")
    first = pipeline.gated(old, stage=1)
    pipeline.released(first)
    new = second_parts(settings, cross, "b")
    snapshot = new["snapshot"]
    llm, towers = scores(settings, "new", new, snapshot, 0.9)
    old_llm, old_towers = scores(settings, "older", old, snapshot, 0.6)
    judged = gold(80)

    def served(key: str, part: dict[str, str], of: str, order: Any) -> str:
        scored = pl.read_parquet(store_of(settings).open(of).file("scored.parquet"))
        frame = scored.with_columns(order=pl.Series(order))
        inputs = {k: part[k] for k in ("export", "second_stage")}
        inputs |= {"snapshot": snapshot, "scores": of}
        write = lambda f: frame.write_parquet(f / "scored.parquet")  # noqa: E731
        return publish(settings, "score_second_stage", key, write, {"served": True}, inputs).ref

    champion = pipeline.run("champion", {})
    assert champion.facts["second_stage"] == old["second_stage"]
    given = {
        "snapshot": snapshot, "baselines": pipeline.run("baselines", {"snapshot": snapshot}).ref,
        "champion": champion.ref, "llm_scores": [old_llm, llm],
    }  # fmt: skip
    perfect, wrong = judged.grade.astype(float), -judged.grade.astype(float)
    names = "champion,final,champion_towers,towers,champion_served,served"
    of = [
        old_towers, towers, served("older", old, old_towers, wrong),
        served("new", new, towers, perfect),
    ]  # fmt: skip
    evaluation = pipeline.run("evaluate", given | {"tower_scores": of}, names=names)
    made = pipeline.gated(new, 2, evaluation.ref)
    gate = store_of(settings).open(made["gate"])
    assert gate.facts["verdict"] == "PASS", gate.facts["reasons"]
    sealed = json.loads(gate.file("verdict.json").read_text())
    checks = {c["name"]: c["outcome"] for c in sealed["checks"] if "as served" in c["name"]}
    assert len(checks) == 2 and {*checks.values()} == {"PASS"}
    assert judge.replay(store_of(settings), gate)["digest"] == sealed["digest"]
    summary = json.loads(evaluation.file("metrics.json").read_text())["second_stage"]
    assert [one["name"] for one in summary["gold"]] == ["champion_served", "served"]
    assert summary["dev"]["served"]["top"] == 6
    card = gate.file("model_card.md").read_text(encoding="utf-8")
    assert "served: re-ranks the first 6 products: EM@1 0.500 → 0.600" in card
    assert "Second stage: the order" in gate.file("report.html").read_text(encoding="utf-8")

    later = datetime.now(UTC) + timedelta(days=400)
    kept = retention.plan(settings, market(), later).keep
    assert {old["second_stage"], old["embeddings"]} <= kept.keys()
    assert all(ref.startswith(MARKET) for ref in kept)


def test_audits_see_the_order_that_is_answered(settings: Settings, cross: Cross) -> None:
    scorer = ReleaseScorer(bundled(settings, second_parts(settings, cross)).path)
    queries = ["紅色 雨傘", "茶壺"]
    asked = [q for q in queries for _ in IDS]
    given = (asked, IDS * 2, TITLES * 2)
    found, plain = ServedOrder(scorer).score(*given), scorer.score(*given)
    np.testing.assert_array_equal(found.em, plain.em)
    for k, query in enumerate(queries):
        at = range(k * 16, k * 16 + 16)
        shown = sorted((i for i in at if not plain.is_defect[i]), key=lambda i: -plain.em[i])
        torch = cross.logits(query, [TITLES[i % 16] for i in shown])
        em = [float(plain.em[i]) for i in shown]
        stack = [0.5 * np.log(p / (1 - p)) + z for p, z in zip(em, torch, strict=True)]
        want = sorted(range(6), key=lambda n: -stack[n])
        order = [i for i in np.argsort(-found.rank_score, kind="stable") if i in at]
        assert order[: len(shown)] == [shown[n] for n in want] + shown[6:]
        assert all(found.rank_score[i] == 0 for i in at if plain.is_defect[i])
    old = ReleaseScorer(bundled(settings, parts(settings, "z", stage=1)).path)
    one = (["紅色"], ["p0"], [None])
    assert ServedOrder(old).score(*one).rank_score == old.score(*one).rank_score
