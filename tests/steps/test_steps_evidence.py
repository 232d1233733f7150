"""Lexical evidence through the steps (A50): what is trained, exported, judged and served agrees."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from csrm_tasks import records
from csrm_tasks.lexical.evidence import FILE
from csrm_tasks.lexical.terms import ProductTerms
from csrm_tasks.release.bundle.scorer import ReleaseScorer
from csrm_tasks.steps.running import run_step
from csrm_tasks.towers.serving.embed import Known, embed_catalogue
from csrm_tasks.towers.serving.runtime import TowerRuntime
from tests.steps.test_steps_towers import World
from tests.towers_fixtures import TARGET

pytestmark = pytest.mark.usefixtures("fingerprints_hold")
ON = {"evidence": True, "thresholds": "teacher", "steps": 12}


class Installation(World):
    """The toy market, its towers barely trained, with lexical evidence."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, layers=2)
        towers = self.market.towers.model_copy(update=ON)
        self.market = self.market.model_copy(update={"towers": towers})
        kinds = pl.DataFrame([], records.TRANSLATIONS, orient="row")
        self.given = {"snapshot": self.snapshot(translations=kinds)}
        pairs = self.run("tower_pairs", self.retrieval(self.given["snapshot"]))
        self.scored = self.teacher(pairs.ref)

    def served(self, towers: str) -> dict[str, Any]:
        """Export, embed, score gold; returns what was made."""
        made = {"export": self.run("export_towers", self.given | {"towers": towers})}
        of = self.given | {"export": made["export"].ref}
        made["embeddings"] = self.run("embed_products", of)
        made["gold"] = self.run("score_towers", of, split="gold")
        return made


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Installation:
    return Installation(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def towers(world: Installation) -> Any:
    return world.run("train_towers", world.given | {"scored": world.scored}, target="soft")


@pytest.fixture(scope="module")
def made(world: Installation, towers: Any) -> dict[str, Any]:
    return world.served(towers.ref)


def test_evidence_is_kept_and_helps_towers_that_know_little(
    world: Installation, towers: Any
) -> None:
    assert towers.facts["evidence_em_kept"] and towers.facts["evidence_defect_kept"]
    assert towers.facts["evidence_em_dev_gain"] > 0
    off = world.market.towers.model_copy(update={"evidence": False})
    plain = world.market.model_copy(update={"towers": off})
    of = world.given | {"scored": world.scored}
    without = world.store.open(run_step("train_towers", plain, of, {}, world.settings))
    assert "evidence" not in json.loads(without.file("towers.json").read_text())
    assert not (without.path / FILE).exists()
    assert towers.facts["dev_em_f1"] > without.facts["dev_em_f1"]


def test_dev_scores_are_what_the_export_says(world: Installation, towers: Any, made: Any) -> None:
    dev = pl.read_parquet(towers.file("dev_scores.parquet"))
    runtime = TowerRuntime(made["export"].path, query="fp32", product="fp32")
    assert runtime.evidence is not None
    rows = texts(world, dev)
    scores = runtime.score_texts(rows["norm"].to_list(), rows["title"].to_list())
    np.testing.assert_allclose(scores.em, dev["em"], atol=1e-3)
    np.testing.assert_allclose(scores.defect, dev["defect"], atol=1e-3)


def texts(world: Installation, pairs: pl.DataFrame) -> pl.DataFrame:
    """Return ``pairs`` with their texts."""
    known = world.tables["pairs"].select("pair_id", "query_id", "product_id")
    return (
        pairs.select("pair_id")
        .join(known, on="pair_id", maintain_order="left")
        .join(world.tables["queries"], on="query_id", maintain_order="left")
        .join(world.tables["products"], on="product_id", maintain_order="left")
    )


def test_gold_scores_are_what_the_bundle_serves(
    world: Installation, made: Any, tmp_path: Path
) -> None:
    from csrm_tasks.release.bundle.manifest import assemble

    parts = {name: made[name] for name in ("export", "embeddings")}
    parts["snapshot"] = world.store.open(world.given["snapshot"])
    for name, of in (("llm", []), ("ebr", ["snapshot"]), ("index", ["snapshot", "ebr"]),
                     ("rqa", ["snapshot"])):  # fmt: skip
        folder = tmp_path / name
        folder.mkdir()
        (folder / "note").write_text(name)
        inputs = {n: parts[n].ref for n in of}
        ref = f"toy/{name}/for-bundle"
        parts[name] = world.store.publish(ref, folder, facts={}, inputs=inputs, about={
            "inputs": {n: parts[n].digest for n in of}})  # fmt: skip
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    assemble(parts, bundle, {"market": "toy", "locale": TARGET})
    scorer = ReleaseScorer(bundle)
    gold = pl.read_parquet(made["gold"].file("scored.parquet"))
    rows = texts(world, gold)
    none: list[None] = [None] * len(gold)
    by_id = scorer.score(rows["norm"].to_list(), rows["product_id"].to_list(), none)
    by_title = scorer.score(rows["norm"].to_list(), none, rows["title"].to_list())
    for served in (by_id, by_title):  # int8 varies with the batch
        np.testing.assert_allclose(served.em, gold["em"], atol=0.02)
        np.testing.assert_allclose(served.defect, gold["defect"], atol=0.02)
    (bundle / "terms.bin").unlink()
    with pytest.raises(Exception, match=r"terms\.bin"):
        ReleaseScorer(bundle)


def test_a_refresh_copies_the_terms_that_it_knows(made: Any, tmp_path: Path) -> None:
    runtime = TowerRuntime(made["export"].path)
    brands = runtime.brands
    assert brands is not None
    titles = ["紅色 茶壺", "新品 雨傘 500g", "紅色 茶壺"]
    products = pl.DataFrame({"product_id": ["a", "b", "c"], "title": titles})
    folders = [tmp_path / name for name in ("first", "second", "alone")]
    for folder in folders:
        folder.mkdir()
    encode, dim = runtime.encode_products, runtime.dim
    embed_catalogue(products[:1], encode, dim, folders[0], brands=brands)
    known = Known.load(folders[0])
    assert known.terms is not None
    marked = ProductTerms(known.terms.values + 2, known.terms.ends)  # to tell a copy
    embed_catalogue(
        products, encode, dim, folders[1], Known(known.vectors, known.row, marked), brands
    )
    embed_catalogue(products, encode, dim, folders[2], brands=brands)
    second, alone = (ProductTerms.load(folder) for folder in folders[1:])
    assert second is not None and alone is not None
    np.testing.assert_array_equal(second.ends, alone.ends)
    for row, copied in enumerate([True, False, True]):
        np.testing.assert_array_equal(second.of_row(row), alone.of_row(row) + 2 * copied)


def test_a_cut_has_the_greatest_f1_that_the_served_probability_expects(
    world: Installation, towers: Any, made: Any
) -> None:
    scored = world.store.open(world.scored)
    drawn = pl.read_parquet(world.store.open(scored.inputs["pairs"]).file("pairs.parquet"))
    keys = drawn.filter(pl.col("source") != "random").select("query_id", "product_id")
    rows = keys.join(world.tables["queries"], on="query_id").join(
        world.tables["products"], on="product_id"
    )
    runtime = TowerRuntime(made["export"].path, query="fp32", product="fp32")
    p = runtime.score_texts(rows["norm"].to_list(), rows["title"].to_list()).em

    def expected(cut: float) -> float:
        said = p >= cut
        return float(2 * p[said].sum() / (said.sum() + p.sum()))

    chosen = runtime.about["heads"]["em"]["threshold"]
    assert expected(chosen) == pytest.approx(max(map(expected, np.unique(p))), abs=2e-3)


def test_towers_of_grades_are_fitted_on_dev(world: Installation) -> None:
    hard = world.run("train_towers", world.given, target="hard")
    assert "evidence_teacher_pairs" not in hard.facts
    assert hard.facts["evidence_dev_pairs"] == hard.facts["dev_pairs"]


def test_a_shorter_query_tower_has_evidence_of_its_own(world: Installation, towers: Any) -> None:
    config = world.market.towers.model_copy(update={"query_layers": 1})
    market = world.market.model_copy(update={"towers": config})
    given = world.given | {"scored": world.scored, "towers": towers.ref}
    made = world.store.open(run_step("shorten_query_tower", market, given, {}, world.settings))
    about = json.loads(made.file("towers.json").read_text())
    assert len(about["evidence"]["features"]) > 9
    assert world.served(made.ref)["gold"].facts["pairs"] > 0
