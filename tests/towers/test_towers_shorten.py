"""A query tower of fewer layers: what is cut, and what it learns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from csrm_tasks.errors import ConfigError
from csrm_tasks.steps import run_step
from csrm_tasks.towers import measure, shorten
from csrm_tasks.towers.depth import truncate_layers
from csrm_tasks.towers.model import TwinTowers
from csrm_tasks.towers.serving.runtime import TowerRuntime
from csrm_tasks.towers.serving.tokens import TokenTable
from csrm_tasks.towers.train import TrainPlan
from csrm_tasks.training.checkpoints import Checkpoints
from tests.steps.test_steps_towers import World
from tests.towers_fixtures import COLOURS, TYPES, make_encoder, reader_of

pytestmark = pytest.mark.usefixtures("fingerprints_hold")

TEXTS = [f"{c} {t}" for c in COLOURS for t in TYPES]
PLAN = TrainPlan(30, 16, 1, 3e-3, 1e-4, seed=1)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> TwinTowers:
    base = make_encoder(tmp_path_factory.mktemp("encoder"), layers=5)
    return TwinTowers.from_base(str(base), dim=16, scale=8.0, learn_scale=True, seed=0).eval()


def test_evenly_chosen_layers_and_the_same_embeddings(model: TwinTowers) -> None:
    ids, mask = torch.tensor([[0, 7, 9, 2], [0, 5, 2, 1]]), torch.tensor([[1] * 4, [1] * 3 + [0]])
    short = truncate_layers(model.query, 3)
    with torch.inference_mode():
        found = short(ids, mask)
        hidden = model.query.encoder.embeddings(ids)  # the slow way: layers 0, 2, 4 by hand
        wall = torch.zeros(2, 1, 4, 4).masked_fill(mask[:, None, None] == 0, -1e9)
        for i in (0, 2, 4):
            hidden = model.query.encoder.encoder.layer[i](hidden, wall)
            hidden = hidden[0] if isinstance(hidden, tuple) else hidden
        real = mask.unsqueeze(-1)
        states = model.query.projection((hidden * real).sum(1) / real.sum(1))
    wanted = torch.nn.functional.normalize(states.view(2, 2, 16), dim=-1)
    torch.testing.assert_close(found, wanted)
    words = [t.encoder.get_input_embeddings().weight for t in (short, model.query)]
    assert words[0] is words[1]
    assert short.projection is not model.query.projection
    assert model.query.encoder.config.num_hidden_layers == 5


@pytest.mark.parametrize("layers", [0, 5, 6])
def test_no_fewer_layers_is_an_error(model: TwinTowers, layers: int) -> None:
    with pytest.raises(ConfigError, match=rf"query_layers is {layers}, .* 5 layers: give 1 to 4"):
        truncate_layers(model.query, layers)


@pytest.fixture(scope="module")
def queries(tmp_path_factory: pytest.TempPathFactory) -> TokenTable:
    base = make_encoder(tmp_path_factory.mktemp("tokenizer"))
    return reader_of(base, 16, 24).queries(TEXTS)


def test_learns_the_full_towers_vectors(
    model: TwinTowers, queries: TokenTable, tmp_path: Path
) -> None:
    wanted = measure.embed(model.query, queries)
    embeddings = model.query.encoder.get_input_embeddings().weight.clone()
    short = truncate_layers(model.query, 1)
    before = float((measure.embed(short, queries) * wanted).sum(-1).mean())
    shorten.distil(short, queries, wanted, PLAN, tmp_path / "c")
    after = float((measure.embed(short, queries) * wanted).sum(-1).mean())
    assert after > before + 0.5 * (1 - before)
    assert torch.equal(model.query.encoder.get_input_embeddings().weight, embeddings)
    np.testing.assert_array_equal(measure.embed(model.query, queries), wanted)


def test_killed_and_started_again_it_ends_the_same(
    model: TwinTowers, queries: TokenTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = measure.embed(model.query, queries)
    whole, killed, again = (truncate_layers(model.query, 2) for _ in range(3))
    done = shorten.distil(whole, queries, wanted, PLAN, tmp_path / "whole")
    monkeypatch.setattr(Checkpoints, "due", lambda _: True)
    save = Checkpoints.save

    def dying(self: Checkpoints, *state: Any) -> None:
        save(self, *state)
        if state[2]["step"] == 11:
            raise KeyboardInterrupt

    monkeypatch.setattr(Checkpoints, "save", dying)
    with pytest.raises(KeyboardInterrupt):
        shorten.distil(killed, queries, wanted, PLAN, tmp_path / "c")
    resumed = shorten.distil(again, queries, wanted, PLAN, tmp_path / "c")
    assert [tuple(point) for point in resumed.curve] == done.curve
    np.testing.assert_array_equal(measure.embed(again, queries), measure.embed(whole, queries))


def test_loss_is_the_mean_distance_of_text_and_head() -> None:
    torch.manual_seed(0)
    a, b = (torch.nn.functional.normalize(torch.randn(5, 2, 7), dim=-1) for _ in "ab")
    slow = [1 - float(a[n, h] @ b[n, h]) for n in range(5) for h in range(2)]
    assert float(shorten.cosine_loss(a, b)) == pytest.approx(sum(slow) / 10, abs=1e-6)
    assert float(shorten.cosine_loss(a, a)) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("separate", [False, True])
def test_saved_and_loaded_with_its_own_depth(
    separate: bool, queries: TokenTable, tmp_path: Path
) -> None:
    base = make_encoder(tmp_path / "base", layers=3)
    model = TwinTowers.from_base(
        str(base), dim=16, scale=8.0, learn_scale=True, seed=0, separate=separate
    )
    model.shorten_query(1)
    model.eval().save(tmp_path / "towers")
    again = TwinTowers.load(tmp_path / "towers", dim=16)
    for ours, theirs in ((again.query, model.query), (again.product, model.product)):
        np.testing.assert_array_equal(measure.embed(ours, queries), measure.embed(theirs, queries))
    assert (again.config.num_hidden_layers, model.config.num_hidden_layers) == (1, 1)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"), layers=2, query_layers=1)


@pytest.fixture(scope="module")
def full(world: World) -> Any:
    return world.run("train_towers", {"snapshot": world.snapshot()}, target="hard")


def test_thresholds_by_the_teacher_need_its_word(world: World, full: Any) -> None:
    told = {"thresholds": "teacher", "steps": 2}
    market = world.market.model_copy(update={"towers": world.market.towers.model_copy(update=told)})
    given = {"snapshot": "toy/snapshot/snapshot", "towers": full.ref}
    with pytest.raises(ConfigError, match="needs input 'scored'"):
        run_step("shorten_query_tower", market, given, {}, world.settings)


def test_short_tower_stands_in_for_the_full_one(world: World, full: Any) -> None:
    given = {"snapshot": "toy/snapshot/snapshot", "towers": full.ref}
    short = world.run("shorten_query_tower", given)
    assert short.facts["admitted"]
    assert short.facts["lost_f1"] <= shorten.MAX_LOSS
    held_out = world.tables["pairs"].filter(pl.col("split") != "train")["query_id"].n_unique()
    assert short.facts["queries"] == len(world.tables["queries"]) - held_out
    exports = [
        world.run("export_towers", given | {"towers": towers.ref}) for towers in (short, full)
    ]
    ours, theirs = (TowerRuntime(e.path, query="fp32") for e in exports)
    np.testing.assert_array_equal(ours.encode_products(TEXTS), theirs.encode_products(TEXTS))
    agreement = (ours.encode_queries(TEXTS) * theirs.encode_queries(TEXTS)).sum(-1)
    assert 0.9 < agreement.mean() < 1.0
    sizes = [(e.path / "query.onnx").stat().st_size for e in exports]
    assert sizes[0] < sizes[1]


def test_short_tower_that_loses_too_much_leaves_the_full_one(
    world: World, full: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shorten, "MAX_LOSS", -1.0)
    market = world.market.model_copy(update={"seed": 7})  # another artifact
    monkeypatch.setattr(world, "market", market)
    given = {"snapshot": "toy/snapshot/snapshot", "towers": full.ref}
    found = world.run("shorten_query_tower", given)
    assert not found.facts["admitted"]
    for name in ("towers.json", "dev_scores.parquet", "towers/model.safetensors"):
        assert found.file(name).read_bytes() == full.file(name).read_bytes()
