"""Towers in their encoder's own width, reading what it was pretrained to read before a text."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from csrm_tasks.artifacts import Artifact
from csrm_tasks.errors import ArtifactError, ConfigError
from csrm_tasks.steps import run_step
from csrm_tasks.text import normalise
from csrm_tasks.towers import measure
from csrm_tasks.towers.model import TwinTowers
from csrm_tasks.towers.serving.cross import CrossRuntime
from csrm_tasks.towers.serving.runtime import TowerRuntime
from csrm_tasks.towers.serving.texts import PREFIXED, TEXT_VERSION
from csrm_tasks.towers.tower import Tower
from tests.steps.test_steps_towers import World
from tests.towers_fixtures import COLOURS, TYPES, make_encoder, reader_of

pytestmark = pytest.mark.usefixtures("fingerprints_hold")

TEXTS = [f"{c} {t}" for c in COLOURS[:2] for t in TYPES] + ["ＡＣＭＥ  茶壺"]
PREFIXES = {"query_prefix": "query: ", "title_prefix": "passage: "}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_encoder(tmp_path_factory.mktemp("encoder"))


def test_the_first_vectors_are_the_encoders_own_means(base: Path) -> None:
    encoder = AutoModel.from_pretrained(base, add_pooling_layer=False).eval()
    model = TwinTowers.from_base(str(base), dim=None, scale=8.0, learn_scale=True, seed=0).eval()
    tokenizer = AutoTokenizer.from_pretrained(base)
    table = reader_of(base, 16, 24).queries(TEXTS)
    for side in (model.query, model.product):
        found = measure.embed(side, table)
        assert found.shape == (len(TEXTS), 2, 32)
        for text, vectors in zip(TEXTS, found, strict=True):
            tokens = torch.tensor([tokenizer(normalise(text))["input_ids"]])
            with torch.no_grad():
                mean = encoder(tokens).last_hidden_state[0].mean(0)
            for head in vectors:
                np.testing.assert_allclose(head, (mean / mean.norm()).numpy(), atol=1e-5)
    assert model.query.projection.weight is not model.product.projection.weight  # type: ignore[union-attr]


class Trained:
    """The whole way of towers in own width with prefixes: training, two layers of three, export."""

    def __init__(self, folder: Path) -> None:
        self.world = World(folder, layers=3, query_layers=2)
        own = self.world.market.towers.model_copy(update={"dim": None, "steps": 40, **PREFIXES})
        self.world.market = self.world.market.model_copy(update={"towers": own})
        snapshot = {"snapshot": self.world.snapshot()}
        self.towers = self.world.run("train_towers", snapshot, target="hard")
        self.short = self.world.run("shorten_query_tower", snapshot | {"towers": self.towers.ref})
        self.export = self.world.run("export_towers", snapshot | {"towers": self.towers.ref})
        given = snapshot | {"export": self.export.ref}
        self.embeddings = self.world.run("embed_products", given)
        self.scores = self.world.run("score_towers", given, split="gold")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return Trained(tmp_path_factory.mktemp("trained"))


def model_of(towers: Artifact) -> TwinTowers:
    return TwinTowers.load(towers.file("towers"), dim=32)


def by_hand(side: Tower, base: Path, prefix: str, text: str) -> Any:
    """Return the vectors (2, dim) of one text by transformers' tokenizer and the trained tower."""
    ids = torch.tensor([AutoTokenizer.from_pretrained(base)(prefix + normalise(text))["input_ids"]])
    with torch.no_grad():
        return side(ids, torch.ones_like(ids))[0].numpy()


def test_serving_reads_after_the_prefixes_that_training_read_after(trained: Trained) -> None:
    model, base = model_of(trained.towers), trained.world.base
    runtime = TowerRuntime(trained.export.path, query="fp32")
    assert runtime.dim == 32
    for text in TEXTS:
        query, product = runtime.encode_queries([text])[0], runtime.encode_products([text])[0]
        for found, side, prefix in (
            (query, model.query, "query: "), (product, model.product, "passage: ")
        ):  # fmt: skip
            assert isinstance(side, Tower)
            np.testing.assert_allclose(found, by_hand(side, base, prefix, text), atol=1e-5)
        bare = by_hand(model.query, base, "", text)  # type: ignore[arg-type]
        assert np.abs(query - bare).max() > 1e-3
    stored = np.load(trained.embeddings.file("embeddings.npy"))
    titles = trained.world.tables["products"].sort("product_id")["title"].to_list()
    assert stored.shape == (len(titles), 2, 32)
    np.testing.assert_allclose(stored, runtime.encode_products(titles), atol=1e-5)


def test_a_short_query_tower_reads_after_them_too(trained: Trained) -> None:
    assert trained.short.facts["admitted"]
    short = model_of(trained.short)
    assert short.config.num_hidden_layers == 2
    about = json.loads(trained.short.file("towers.json").read_text())
    assert {name: about[name] for name in PREFIXES} == PREFIXES and about["dim"] == 32


def test_a_server_of_earlier_code_refuses_what_it_would_misread(
    trained: Trained, tmp_path: Path
) -> None:
    """Such a server knows one version of texts; another is refused by it, as by this one."""
    about = json.loads((trained.export.path / "serving.json").read_text())
    assert about["text_version"] == PREFIXED != TEXT_VERSION
    shutil.copytree(trained.export.path, tmp_path / "x")
    (tmp_path / "x" / "serving.json").write_text(json.dumps(about | {"text_version": "3"}))
    with pytest.raises(ArtifactError, match="text version 3, this code reads 1 and 2"):
        TowerRuntime(tmp_path / "x")


def test_lengths_are_of_the_text_alone(base: Path) -> None:
    """A text of just so many tokens is whole behind a prefix; a longer one is cut at its end."""
    bare, told = reader_of(base, 6, 6), reader_of(base, 6, 6, **PREFIXES)
    every = np.arange(1)
    for text in ("茶壺", "紅色 茶壺", "紅色 茶壺 藍色 雨傘 綠色 背包 白色 拖鞋"):
        for plain, ours in ((bare.queries, told.queries), (bare.products, told.products)):
            ids, found = (read([text]).batch(every)[0][0].tolist() for read in (plain, ours))
            end = ids[1:]  # all but the start token, before which nothing stands
            assert found[-len(end) :] == end and len(found) > len(ids)
    assert told.query_reader().tokens > bare.query_reader().tokens == 6


def test_more_than_the_encoder_reads_is_refused_at_the_start(trained: Trained) -> None:
    own = trained.world.market.towers.model_copy(update={"query_tokens": 64})
    market = trained.world.market.model_copy(update={"towers": own})
    with pytest.raises(ConfigError, match=r"query_prefix is 70, but .* reads 64"):
        run_step(
            "train_towers", market, {"snapshot": "toy/snapshot/snapshot"}, {"target": "hard"},
            trained.world.settings,
        )  # fmt: skip


def test_a_cross_encoder_reads_both_prefixes(trained: Trained) -> None:
    scored = trained.world.teacher(
        trained.world.run("tower_pairs", trained.world.retrieval("toy/snapshot/snapshot")).ref
    )
    given = {"snapshot": "toy/snapshot/snapshot", "scored": scored}
    own = trained.world.market.towers.model_copy(update={"steps": 2})
    market = trained.world.market.model_copy(update={"towers": own})
    cross = trained.world.store.open(
        run_step("train_cross_encoder", market, given, {}, trained.world.settings)
    )
    about = json.loads(cross.file("serving.json").read_text())
    assert {name: about[name] for name in PREFIXES} == PREFIXES
    runtime = CrossRuntime(cross.path, variant="fp32")
    bare = json.dumps(about | dict.fromkeys(PREFIXES, ""))
    before = runtime.score_texts(TEXTS[:3], TEXTS[:3])
    copy = trained.world.folder / "bare"
    shutil.copytree(cross.path, copy)
    (copy / "serving.json").write_text(bare)
    after = CrossRuntime(copy, variant="fp32").score_texts(TEXTS[:3], TEXTS[:3])
    assert np.abs(before.em - after.em).max() > 1e-6
