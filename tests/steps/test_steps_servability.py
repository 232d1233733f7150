"""A48: the real bundle in a fresh process, its scores, its latency and memory; and the gate."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from csrm_tasks.artifacts import Artifact
from csrm_tasks.errors import ConfigError
from csrm_tasks.lexical.terms import ProductTerms
from csrm_tasks.records import BEHAVIOUR
from csrm_tasks.release.bundle import probe, servability
from csrm_tasks.sections import Serving
from csrm_tasks.settings import Settings
from csrm_tasks.steps import run_step
from csrm_tasks.towers.serving.runtime import TowerRuntime
from tests.evaluation_fixtures import LOCALE
from tests.release_fixtures import market, parts, probed, publish, store_of, write_embeddings

pytestmark = pytest.mark.usefixtures("fingerprints_hold")


class World:
    """A bundle whose towers' training wrote down what they say of the dev pairs."""

    def __init__(self, settings: Settings, spoilt: float = 0.0, *, evidence: bool = False) -> None:
        self.settings = settings
        store = store_of(settings)
        self.part = parts(settings, "a", stage=1, evidence=evidence)
        snapshot = store.open(self.part["snapshot"]).path
        pairs = pl.read_parquet(snapshot / "pairs.parquet").head(40)
        queries = pl.read_parquet(snapshot / "queries.parquet")
        products = pl.read_parquet(snapshot / "products.parquet")
        rows = pairs.join(queries.select("query_id", "norm"), on="query_id").join(
            products.select("product_id", "title"), on="product_id"
        )
        export = store.open(self.part["export"]).path
        towers = TowerRuntime(export)
        scores = towers.score_texts(rows["norm"].to_list(), rows["title"].to_list())
        written = rows.select("pair_id", "grade").with_columns(
            em=pl.Series(np.abs(scores.em - spoilt)), defect=pl.Series(scores.defect)
        )

        def trained(folder: Path) -> None:
            written.write_parquet(folder / "dev_scores.parquet")

        self.towers = publish(settings, "train_towers", "a", trained).ref
        catalogue = products.filter(pl.col("locale") == LOCALE).sort("product_id")

        def vectors(folder: Path) -> None:
            write_embeddings(folder)
            np.save(folder / "embeddings.npy", towers.encode_products(catalogue["title"].to_list()))
            catalogue.select("product_id").write_parquet(folder / "product_ids.parquet")
            if towers.brands is not None:
                ProductTerms.of(catalogue["title"].to_list(), towers.brands).save(folder)

        def logged(folder: Path) -> None:
            for table in snapshot.iterdir():
                (folder / table.name).write_bytes(table.read_bytes())
            seen = pairs.filter(pl.col("locale") == LOCALE).select(
                "query_id", "product_id", "locale", impressions=pl.lit(3, pl.Int64)
            )
            empty = pl.DataFrame(schema=BEHAVIOUR)
            pl.concat([seen, empty], how="diagonal").write_parquet(folder / "behaviour.parquet")

        of = {"snapshot": self.part["snapshot"], "export": self.part["export"]}
        self.part["embeddings"] = publish(settings, "embed_products", "v", vectors, inputs=of).ref
        self.logged = publish(settings, "snapshot", "logged", logged, stage=2).ref
        self.bundle = run_step("bundle", market(), self.part, {}, settings)

    def probe(self, bundle: str | None = None, **serving: Any) -> Artifact:
        """Run the step."""
        given = {"bundle": bundle or self.bundle, "snapshot": self.logged, "towers": self.towers}
        config = market().model_copy(update={"serving": Serving(**serving)})
        return store_of(self.settings).open(
            run_step("servability", config, given, {}, self.settings)
        )


@pytest.mark.parametrize("evidence", [False, True])
def test_a_bundle_that_says_what_training_said_within_budget_passes(
    settings: Settings, evidence: bool
) -> None:
    found = World(settings, evidence=evidence).probe()
    facts = found.facts
    assert facts["outcome"] == "PASS", facts
    assert facts["pairs"] == 40 and facts["mean_error"] < 1e-6 and facts["flips"] == 0
    assert 0 < facts["p50_ms"] <= facts["p99_ms"] and 10 < facts["memory_mb"] < 2_000
    requests = pl.read_parquet(found.file("requests.parquet"))
    assert facts["searches"] == requests.height > 0
    assert 0 < facts["logged"] <= requests.height
    assert requests["products"].list.unique().list.len().max() <= servability.PAGE


def test_the_budget_is_the_markets(settings: Settings) -> None:
    world = World(settings)
    slow = world.probe(p99_ms=1e-6).facts
    assert slow["outcome"] == "FAIL" and "budget 1e-06" in slow["reasons"][0]
    large = world.probe(memory_mb=1).facts
    assert large["outcome"] == "FAIL" and large["reasons"][0].startswith("memory")


def test_the_memory_of_the_process_that_asks_is_not_counted() -> None:
    """Linux hands a process's peak on to the programs that it starts."""
    asked = f"from {probe.__name__} import peak_memory; print(peak_memory())"

    def seen(script: str) -> int:
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
        return int(done.stdout)

    before = seen(asked)
    held = np.ones(2**25)  # 256 MiB, resident
    assert seen(asked) < before + held.nbytes / 4
    assert seen(f"held = b'x' * 2**27; del held; {asked}") > before + 2**27 / 2  # its own peak


def test_scores_unlike_those_of_training_fail(settings: Settings) -> None:
    facts = World(settings, spoilt=0.1).probe().facts
    assert facts["outcome"] == "FAIL"
    assert "differ from training" in facts["reasons"][0]


def test_a_bundle_that_does_not_load_is_a_verdict_not_an_accident(settings: Settings) -> None:
    world = World(settings)
    store = store_of(settings)
    bundle = store.open(world.bundle)

    def broken(folder: Path) -> None:
        for source in bundle.path.rglob("*"):
            if source.is_file():
                target = folder / source.relative_to(bundle.path)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(source.read_bytes())
        (folder / "embeddings.npy").write_bytes(b"nothing")

    inputs = dict(bundle.inputs)
    made = publish(settings, "bundle", "broken", broken, dict(bundle.facts), inputs)
    facts = world.probe(made.ref).facts
    assert facts["outcome"] == "FAIL"
    assert "embeddings.npy was changed" in facts["reasons"][0]


def test_towers_of_another_training_are_refused(settings: Settings) -> None:
    world = World(settings)
    other = publish(settings, "train_towers", "b", lambda f: (f / "x").write_text("")).ref
    world.towers = other
    with pytest.raises(ConfigError, match="does not serve tiny/train_towers/b"):
        world.probe()


PAIR = {"pair_id": "x", "locale": "zh-TW", "query": "q", "product_id": "p", "title": "t"}
SEEN = {"p50_ms": 1.0, "p99_ms": 2.0, "load_seconds": 0.1, "memory_bytes": 2**20}


@pytest.mark.parametrize(("flips", "outcome"), [(0, "PASS"), (11, "PASS"), (12, "FAIL")])
def test_half_a_percent_of_decisions_may_flip_and_luck_adds_a_little(
    flips: int, outcome: str
) -> None:
    n = 1000
    em = np.where(np.arange(n) < flips, 0.499, 0.501)
    pairs = pl.DataFrame({"em": np.full(n, 0.501), "defect": np.zeros(n)})
    seen = {**SEEN, "em": em.tolist(), "defect": [0.0] * n}
    verdict, figures = servability.check_probe(pairs, seen, (0.5, 0.5), Serving())
    assert (verdict.outcome, figures["flips"]) == (outcome, flips)


def test_nothing_to_compare_is_inconclusive_and_nan_is_no_pass() -> None:
    none = pl.DataFrame({"em": [], "defect": []}, schema={"em": pl.Float32, "defect": pl.Float32})
    verdict, _ = servability.check_probe(
        none, {**SEEN, "em": [], "defect": []}, (0.5, 0.5), Serving()
    )
    assert verdict.outcome == "INCONCLUSIVE"
    one = pl.DataFrame({"em": [0.5], "defect": [0.5]})
    for broken in ({"em": [float("nan")]}, {"p99_ms": float("nan")}):
        seen = {**SEEN, "em": [0.5], "defect": [0.5], **broken}
        assert servability.check_probe(one, seen, (0.5, 0.5), Serving())[0].outcome == "FAIL"


def test_pairs_of_another_locale_are_asked_for_by_title() -> None:
    both = pl.DataFrame([PAIR, {**PAIR, "pair_id": "y", "locale": "ko-KR"}])
    found = servability.judged_pairs(both, "zh-TW")
    assert found.select("product_id", "title").rows() == [("p", None), (None, "t")]


@pytest.mark.parametrize("outcome", ["FAIL", "INCONCLUSIVE"])
def test_nothing_passes_the_gate_without_it(settings: Settings, outcome: str) -> None:
    store = store_of(settings)
    bundle = store.open(run_step("bundle", market(), parts(settings, "a", 1), {}, settings))
    champion = run_step("champion", market(), {}, {}, settings)
    given = {"bundle": bundle.ref, "champion": champion}
    with pytest.raises(ConfigError, match="needs input 'servability'"):
        run_step("gate", market(), given, {"stage": 1}, settings)
    given["servability"] = probed(settings, bundle, outcome).ref
    gate = store.open(run_step("gate", market(), given, {"stage": 1}, settings))
    assert gate.facts["verdict"] == outcome
    sealed = json.loads(gate.file("verdict.json").read_text())
    assert sealed["servability_digest"] == store.open(given["servability"]).digest
    other = store.open(run_step("bundle", market(), parts(settings, "b", 1), {}, settings))
    given["servability"] = probed(settings, other).ref
    with pytest.raises(ConfigError, match="another bundle"):
        run_step("gate", market(), given, {"stage": 1}, settings)
