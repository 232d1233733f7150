"""A pair of trunks for each head (A29): start, independence, files, resumption, export."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from csrm_tasks.towers import measure
from csrm_tasks.towers.examples import Examples, with_texts
from csrm_tasks.towers.export import export_towers
from csrm_tasks.towers.losses import kd_loss
from csrm_tasks.towers.model import TwinTowers
from csrm_tasks.towers.serving.runtime import TowerRuntime
from csrm_tasks.towers.serving.tokens import TowerTokenizer
from csrm_tasks.towers.thresholds import Threshold
from csrm_tasks.towers.tower import HEADS, trunks_of
from csrm_tasks.towers.train import TrainPlan, pair_logits, train
from csrm_tasks.training.checkpoints import Checkpoints
from tests.towers_fixtures import make_encoder, oracle_examples, reader_of, snapshot_tables

TABLES = snapshot_tables()
PLAN = TrainPlan(steps=6, batch_queries=4, batch_products=6, lr=2e-3, lr_end=1e-5, seed=3)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_encoder(tmp_path_factory.mktemp("encoder"), layers=1)


@pytest.fixture(scope="module")
def reader(base: Path) -> TowerTokenizer:
    return reader_of(base, 16, 16)


@pytest.fixture(scope="module")
def examples() -> Examples:
    return oracle_examples(TABLES)


@pytest.fixture
def model(base: Path) -> TwinTowers:
    return towers(base)


def towers(base: Path, separate: bool = True) -> TwinTowers:
    return TwinTowers.from_base(
        str(base), dim=16, scale=8.0, learn_scale=True, seed=0, separate=separate
    ).eval()


def run(model: TwinTowers, examples: Examples, reader: TowerTokenizer, path: Path) -> list[float]:
    tables = reader.queries(examples.queries), reader.products(examples.products)
    return [loss for _, loss in train(model, examples, *tables, PLAN, path).curve]


def test_first_vectors_are_those_of_one_trunk_pair(base: Path, reader: TowerTokenizer) -> None:
    table = reader.queries(["紅色 茶壺", "雨傘"])
    np.testing.assert_allclose(
        measure.embed(towers(base).query, table),
        measure.embed(towers(base, separate=False).query, table), atol=1e-6,
    )  # fmt: skip


def test_a_head_moves_its_own_trunks_only(
    model: TwinTowers, examples: Examples, reader: TowerTokenizer
) -> None:
    rows = np.arange(12)
    tables = reader.queries(examples.queries), reader.products(examples.products)
    logits = pair_logits(model, *tables, examples.query[rows], examples.product[rows])
    torch.autograd.backward(kd_loss(logits[:, 0], torch.from_numpy(examples.exact[rows])))
    for side in (model.query, model.product):
        em, defect = trunks_of(side)
        assert all(p.grad is None or not p.grad.any() for p in defect.parameters())
        assert any(p.grad is not None and p.grad.any() for p in em.encoder.parameters())
    for query, product in zip(trunks_of(model.query), trunks_of(model.product), strict=True):
        assert query.encoder.embeddings is product.encoder.embeddings  # A27, within a head


def test_save_and_load(
    model: TwinTowers, examples: Examples, reader: TowerTokenizer, tmp_path: Path
) -> None:
    run(model, examples, reader, tmp_path / "checkpoint")
    model.save(tmp_path / "saved")
    again = TwinTowers.load(tmp_path / "saved", dim=16)
    assert len(trunks_of(again.query)) == len(HEADS)
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


def test_resumed_ends_in_the_same_weights(
    base: Path,
    examples: Examples,
    reader: TowerTokenizer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole, killed, again = (towers(base) for _ in range(3))
    curve = run(whole, examples, reader, tmp_path / "whole")
    monkeypatch.setattr(Checkpoints, "due", lambda self: True)
    save, saved = Checkpoints.save, []

    def die(*args: object) -> None:
        save(*args)  # type: ignore[arg-type]
        saved.append(1)
        if len(saved) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(Checkpoints, "save", die)
    with pytest.raises(KeyboardInterrupt):
        run(killed, examples, reader, tmp_path / "killed")
    assert run(again, examples, reader, tmp_path / "killed") == curve
    for name, value in whole.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


def test_one_graph_per_side_gives_both_heads(
    model: TwinTowers, examples: Examples, reader: TowerTokenizer, tmp_path: Path
) -> None:
    run(model, examples, reader, tmp_path / "checkpoint")
    frame = with_texts(TABLES["pairs"], TABLES["queries"], TABLES["products"])
    found = measure.reference(model, reader, frame)
    out = tmp_path / "export"
    out.mkdir()
    (out / "tokenizer.json").write_text(reader.definition, encoding="utf-8")
    thresholds = {name: Threshold(0.5, 1.0, 1.0, 1.0) for name in HEADS}
    judged = export_towers(model, out, measure.describe(model, reader, thresholds), found)
    assert judged["fp32"].admitted
    runtime = TowerRuntime(out, query="fp32", product="fp32")
    np.testing.assert_allclose(
        runtime.encode_queries(found.queries), found.query_vectors, atol=1e-5
    )
    np.testing.assert_allclose(
        runtime.encode_products(found.products), found.product_vectors, atol=1e-5
    )
    scores = runtime.score(found.query_vectors[found.query], found.product_vectors[found.product])
    wanted = measure.probabilities(model, found)
    np.testing.assert_allclose(np.stack(scores, 1), wanted, atol=1e-5)
