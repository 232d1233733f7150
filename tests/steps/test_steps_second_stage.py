"""The second stage through the steps: what dev keeps, how gold is scored, what is embedded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from csrm_tasks.errors import ConfigError
from csrm_tasks.sections import SecondStage as Section
from csrm_tasks.steps.running import run_step
from csrm_tasks.towers.serving.cross import CrossRuntime
from csrm_tasks.towers.serving.product_tokens import ProductTokens
from csrm_tasks.towers.serving.second_stage import SecondStage
from tests.steps.test_steps_towers import World

TOP = 10  # of some 13 judged products of a search

pytestmark = pytest.mark.usefixtures("fingerprints_hold")


class Installation(World):
    """The toy market; towers that know next to nothing, a cross-encoder that has learnt."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, layers=1)
        self.market = self.market.model_copy(
            update={"second_stage": Section(enabled=True, top=TOP)}
        )
        self.given = {"snapshot": self.snapshot("snapshot")}
        pairs = self.run("tower_pairs", self.retrieval(self.given["snapshot"]))
        self.scored = self.given | {"scored": self.teacher(pairs.ref)}
        # Two dimensions are an angle: it orders little. Nor are these towers to hide much.
        weak = self.with_towers(steps=2, dim=2, precision_floor=0.99)
        towers = weak.run("train_towers", self.scored, target="soft")
        self.export = self.run("export_towers", self.given | {"towers": towers.ref})
        able = self.with_towers(steps=90, dim=16, precision_floor=None)
        cross = able.run("train_cross_encoder", self.scored)
        self.made = self.given | {"export": self.export.ref}
        self.second = self.run("second_stage", self.made | {"cross": cross.ref})
        self.cross = cross

    def with_towers(self, **changed: Any) -> Installation:
        towers = self.market.towers.model_copy(update=changed)
        self.market = self.market.model_copy(update={"towers": towers})
        return self


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Installation:
    return Installation(tmp_path_factory.mktemp("world"))


def texts(world: Installation, pairs: pl.DataFrame) -> pl.DataFrame:
    known = world.tables["pairs"].select("pair_id", "query_id", "product_id", "grade", "split")
    return (
        pairs.select("pair_id")
        .join(known, on="pair_id", maintain_order="left")
        .join(world.tables["queries"].select("query_id", "norm"), on="query_id",
              maintain_order="left")
        .join(world.tables["products"].select("product_id", "title"), on="product_id",
              maintain_order="left")
    )  # fmt: skip


def test_dev_keeps_what_orders_better_and_says_so(world: Installation) -> None:
    facts = world.second.facts
    assert facts["kept"], facts["reason"]
    assert facts["weights"]["cross"] > 0
    dev = facts["dev"]
    first, second, gain = (dev["ordered"][k] for k in ("first", "second", "difference"))
    assert gain["value"] == pytest.approx(second["value"] - first["value"])
    assert gain["value"] > 0 and dev["em_at_1"]["difference"]["value"] >= 0
    assert f"{dev['em_at_1']['second']['value']:.3f}" in facts["reason"]
    assert "dev queries" in facts["reason"]
    folder = {path.name for path in world.second.path.iterdir()}
    variant = json.loads(world.cross.file("serving.json").read_text())["serve"]
    graph = {"fp32": "cross.onnx", "int8": "cross.int8.onnx"}[variant]
    assert folder == {"serving.json", "tokenizer.json", graph, "dev_scores.parquet"}
    assert SecondStage(world.second.path).top == TOP


def test_what_orders_no_better_is_told_and_kept_out(world: Installation) -> None:
    """Of a top of one, nothing can be re-ranked."""
    short = {"second_stage": Section(enabled=True, top=1)}
    given = world.made | {"cross": world.cross.ref}
    market = world.market.model_copy(update=short)
    found = world.store.open(run_step("second_stage", market, given, {}, world.settings))
    assert not found.facts["kept"]
    assert found.facts["dev"]["ordered"]["difference"]["value"] == 0.0
    assert [path.name for path in found.path.iterdir()] == ["dev_scores.parquet"]
    of = world.made | {"second_stage": found.ref}
    assert ProductTokens.load(world.run("embed_products", of).path) is None
    scores = world.run("score_towers", world.made)
    served = world.run("score_second_stage", of | {"scores": scores.ref})
    assert served.facts == {"pairs": scores.facts["pairs"], "served": True, "second_stage": False}
    slow = first_places(pl.read_parquet(scores.file("scored.parquet")))
    assert pl.read_parquet(served.file("scored.parquet"))["order"].to_list() == slow


def first_places(scored: pl.DataFrame) -> list[float]:
    """Place of each pair in its search by the towers alone, negative; found by sorting each."""
    place = {}
    for (query,), frame in scored.group_by("query_id"):
        rows = frame.rows(named=True)
        ranked = sorted(rows, key=lambda r: -(float(r["em"]) - 2.0 * r["defect_pred"]))
        place |= {(query, r["product_id"]): -float(k) for k, r in enumerate(ranked)}
    return [place[r["query_id"], r["product_id"]] for r in scored.rows(named=True)]


def test_gold_is_scored_in_the_order_that_a_slow_sort_gives(
    world: Installation,
) -> None:
    of = world.made | {"second_stage": world.second.ref}
    scores = world.run("score_towers", world.made)
    served = pl.read_parquet(
        world.run("score_second_stage", of | {"scores": scores.ref}).file("scored.parquet")
    )
    scored = pl.read_parquet(scores.file("scored.parquet"))
    assert served.drop("order").equals(scored)
    weights = world.second.facts["weights"]
    rows = texts(world, scored)
    cross = CrossRuntime(world.second.path)
    logits = cross.logit_texts(rows["norm"].to_list(), rows["title"].to_list())[:, 0]
    own = scored["em"].to_numpy().astype(float)
    stack = weights["first"] * np.log(own / (1 - own)) + weights["cross"] * logits.astype(float)
    first = first_places(scored)
    for query in scored["query_id"].unique():
        at = [i for i, q in enumerate(scored["query_id"]) if q == query]
        shown = sorted((i for i in at if not scored["defect_pred"][i]), key=lambda i: -first[i])
        again = sorted(shown[:TOP], key=lambda i: -stack[i]) + shown[TOP:]
        rest = sorted((i for i in at if scored["defect_pred"][i]), key=lambda i: -first[i])
        assert sorted(at, key=lambda i: -served["order"][i]) == again + rest


def test_scores_of_other_towers_are_refused(world: Installation) -> None:
    scores = world.run("score_towers", world.made)
    other = world.publish("export_towers", "snapshot", snapshot=world.given["snapshot"])
    given = world.given | {"export": other, "scores": scores.ref}
    with pytest.raises(ConfigError, match="are not the scores of toy/export_towers/snapshot"):
        world.run("score_second_stage", given)


def test_tokens_stand_beside_the_vectors(world: Installation) -> None:
    of = world.made | {"second_stage": world.second.ref}
    made = world.run("embed_products", of)
    tokens = ProductTokens.load(made.path)
    ids = pl.read_parquet(made.file("product_ids.parquet"))["product_id"].to_list()
    title = dict(world.tables["products"].select("product_id", "title").iter_rows())
    read = CrossRuntime(world.second.path).title_reader([title[i] for i in ids])
    assert tokens is not None and len(tokens) == len(ids)
    assert [tokens.of_row(i) for i in range(len(ids))] == [read.ids_of(i) for i in range(len(ids))]
    alone = world.run("embed_products", world.made)
    assert ProductTokens.load(alone.path) is None
    np.testing.assert_array_equal(
        np.load(made.file("embeddings.npy")), np.load(alone.file("embeddings.npy"))
    )
