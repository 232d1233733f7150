"""What towers start from: lexical channel, centred states, fitted biases; and how that serves."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from csrm_tasks.ragged import Ragged
from csrm_tasks.sections import Towers
from csrm_tasks.towers import measure
from csrm_tasks.towers.examples import Examples
from csrm_tasks.towers.model import TwinTowers
from csrm_tasks.towers.serving.runtime import TowerRuntime
from csrm_tasks.towers.serving.tokens import TokenTable
from csrm_tasks.towers.start import start
from csrm_tasks.towers.tower import Tower, trunks_of
from csrm_tasks.towers.train import TrainPlan, encode_rows, pair_logits, train
from csrm_tasks.towers.words import LEAST_IDF, token_weights
from tests.steps.test_steps_towers import World
from tests.towers_fixtures import make_encoder, oracle_examples, reader_of, snapshot_tables

Tables = tuple[TokenTable, TokenTable]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def examples() -> Examples:
    return oracle_examples(snapshot_tables())


@pytest.fixture(scope="module")
def tables(base: Path, examples: Examples) -> Tables:
    reader = reader_of(base, 16, 16)
    return reader.queries(examples.queries), reader.products(examples.products)


def towers(base: Path, **given: Any) -> TwinTowers:
    settings: dict[str, Any] = {"dim": 16, "scale": 8.0, "learn_scale": True, "seed": 0}
    return TwinTowers.from_base(str(base), **(settings | given))


@torch.no_grad()
def logits(model: TwinTowers, examples: Examples, tables: Tables) -> torch.Tensor:
    return pair_logits(model.eval(), *tables, examples.query, examples.product)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.lists(st.integers(0, 6), max_size=6), max_size=8))
def test_rows_with_a_token(rows: list[list[int]]) -> None:
    found = Ragged(rows).rows_with(7)
    assert found.tolist() == [sum(i in row for row in rows) for i in range(7)]


def test_weights_fall_with_the_products_that_hold_a_token() -> None:
    weights = token_weights(np.array([0, 1, 5, 10]), 10)
    np.testing.assert_allclose(
        weights, [np.log(11), np.log(11 / 2), np.log(11 / 6), LEAST_IDF], rtol=1e-6
    )


def test_channel_is_the_weighted_sum_of_tokens_and_of_neighbours(
    base: Path, examples: Examples, tables: Tables
) -> None:
    """By hand, a token at a time; what is padded counts for nothing."""
    model = towers(base, lexical=True, dim=None)
    start(model, examples, *tables, 3, fitted=False)
    tower = model.product
    assert isinstance(tower, Tower) and tower.words is not None
    table = tower.encoder.get_input_embeddings().weight.detach()
    counts = np.zeros(len(table))
    for row in range(len(tables[1])):
        counts[np.unique(tables[1].batch(np.array([row]))[0])] += 1
    idf = np.maximum(np.log((len(tables[1]) + 1) / (counts + 1)), LEAST_IDF)
    mean = (torch.from_numpy(counts / counts.sum()).float()[:, None] * table).sum(0)
    ids, mask = map(torch.from_numpy, tables[1].batch(np.arange(5)))
    with torch.no_grad():
        found = tower.words(table[ids], ids, mask)
        alone = tower.words(table[ids[:, :1]], ids[:, :1], mask[:, :1])
    for row, keep, channel in zip(ids, mask, found, strict=True):
        tokens = row[keep == 1].tolist()
        each = [(table[t] - mean) / (table[t] - mean).norm() for t in tokens]
        u = by_weight(each, [idf[t] for t in tokens])
        bound = [32**0.5 * a * torch.cat([b[-1:], b[:-1]]) for a, b in pairwise(each)]
        pairs = pairwise(tokens)
        v = by_weight(bound, [(idf[a] * idf[b]) ** 0.5 for a, b in pairs])
        np.testing.assert_allclose(channel, torch.cat([u, v]), atol=1e-5)
    assert alone.isfinite().all() and (alone[:, 32:] == 0).all()  # one token has no neighbour


def by_weight(vectors: list[torch.Tensor], weights: list[float]) -> torch.Tensor:
    total = sum((w * v for w, v in zip(weights, vectors, strict=True)), torch.zeros(32))
    return total / sum(w * w for w in weights) ** 0.5


@pytest.mark.parametrize("separate", [False, True])
def test_lexical_start_is_the_same_map_on_both_sides(
    base: Path, examples: Examples, tables: Tables, separate: bool
) -> None:
    model = towers(base, lexical=True, separate=separate)
    plain = towers(base, separate=separate)
    np.testing.assert_array_equal(  # nothing is read of words before the start
        logits(model, examples, tables), logits(plain, examples, tables)
    )
    start(model, examples, *tables, 0, fitted=False)
    for query, product in zip(trunks_of(model.query), trunks_of(model.product), strict=True):
        words = [
            t.projection.weight.detach()[:, 32:].view(t.heads, 16, 64) for t in (query, product)
        ]
        for head in (*words[0], *words[1]):
            size = head[0, :32].norm()  # orthogonal rows of one length, that of the mean states
            for part in (head[:, :32], head[:, 32:]):
                np.testing.assert_allclose(part @ part.T, size**2 * np.eye(16), atol=1e-3)
            first = words[0][0] / words[0][0][0, :32].norm()
            np.testing.assert_allclose(head / size, first, atol=1e-4)
    assert (logits(model, examples, tables) - logits(plain, examples, tables)).abs().max() > 0.1


def test_fitted_start_centres_texts_and_meets_the_mean_target(
    base: Path, examples: Examples, tables: Tables
) -> None:
    model = towers(base, dim=None, scale=20.0)
    cone = towers(base, dim=None)
    start(model, examples, *tables, 0, fitted=True)
    assert model.training and model.bias.requires_grad
    found = torch.sigmoid(logits(model, examples, tables)).mean(0)
    target = [examples.exact.mean(), 1.0 - examples.irrelevant.mean()]
    assert len(examples) <= 1024  # all pairs were looked at, so it is met exactly
    np.testing.assert_allclose(found, target, atol=1e-4)
    for side in ("query", "product"):
        table = tables[side == "product"]
        rows = np.arange(len(table))
        with torch.no_grad():
            vectors = encode_rows(getattr(model.eval(), side), table, rows)[:, 0]
            before = encode_rows(getattr(cone.eval(), side), table, rows)[:, 0]
        assert abs(float((vectors @ vectors.T).mean())) < 0.1 < float((before @ before.T).mean())


def test_start_is_a_function_of_its_arguments_and_training_goes_on_from_it(
    base: Path, examples: Examples, tables: Tables, tmp_path: Path
) -> None:
    def trained(name: str) -> TwinTowers:
        model = towers(base, lexical=True, scale=14.0)
        start(model, examples, *tables, 5, fitted=True)
        plan = TrainPlan(8, 4, 6, 2e-3, 1e-5, seed=3, warmup=0.25)
        train(model, examples, *tables, plan, tmp_path / name)
        return model

    once, again = trained("a").state_dict(), trained("b").state_dict()
    assert "query.words.mean" in once and "product.words.weight.weight" in once
    for name, value in once.items():
        assert torch.equal(value, again[name]), name


def test_warm_up_rises_to_the_rate_and_falls_to_its_end() -> None:
    plan = TrainPlan(20, 4, 4, 1e-3, 1e-5, 0, warmup=0.25)
    rates = [plan.schedule.rate(step) for step in range(20)]
    np.testing.assert_allclose(rates[:5], np.array([1, 2, 3, 4, 5]) * 2e-4)
    np.testing.assert_allclose(rates[-1], 1e-5)
    assert max(rates) == pytest.approx(1e-3) and rates[5:] == sorted(rates[5:], reverse=True)
    flat = TrainPlan(20, 4, 4, 1e-3, 1e-5, 0).schedule
    assert (flat.rate(0), flat.rate(19)) == pytest.approx((1e-3, 1e-5))


def test_biases_that_stay_at_zero_are_not_fitted() -> None:
    with pytest.raises(ValueError, match="fitted_start fits b, which learn_scale"):
        Towers(encoder="x", fitted_start=True, learn_scale=False)


def test_lexical_towers_serve_what_was_trained(tmp_path: Path) -> None:
    """The whole way: training, a query tower of two layers, ONNX fp32 and int8, serving."""
    world = World(tmp_path, layers=3, query_layers=2)
    own = {"dim": None, "steps": 40, "scale": 14.0, "lexical": True, "fitted_start": True}
    towers_ = world.market.towers.model_copy(update=own)
    world.market = world.market.model_copy(update={"towers": towers_})
    snapshot = {"snapshot": world.snapshot()}
    ref = world.run("train_towers", snapshot, target="hard")
    short = world.run("shorten_query_tower", snapshot | {"towers": ref.ref})
    for made in (ref, short):
        export = world.run("export_towers", snapshot | {"towers": made.ref})
        model = TwinTowers.load(made.file("towers"), dim=32)
        assert isinstance(model.query, Tower) and model.query.words is not None
        runtime = TowerRuntime(export.path, query="fp32")
        texts = ["ACME 茶壺", "紅色 雨傘 XL"]
        reader = reader_of(world.base, towers_.query_tokens, towers_.title_tokens)
        for found, side, read in (
            (runtime.encode_queries(texts), model.query, reader.queries),
            (runtime.encode_products(texts), model.product, reader.products),
        ):
            np.testing.assert_allclose(found, measure.embed(side, read(texts)), atol=1e-5)
        # Its 160 dev pairs are too few to be admitted by: one decision is more than half a percent.
        assert export.facts["fp32_admitted"] and export.facts["int8_query_cosine"] > 0.999
