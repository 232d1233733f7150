"""The cross-encoder: its rows of two texts, its start, gradient, resumption and export."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from csrm_tasks.errors import ArtifactError, ConfigError, RefusedError
from csrm_tasks.towers import train as training
from csrm_tasks.towers.cross import export as cross_export
from csrm_tasks.towers.cross.export import ScoredPairs, export_cross
from csrm_tasks.towers.cross.model import CrossEncoder, cross_logits, cross_probabilities
from csrm_tasks.towers.examples import Examples
from csrm_tasks.towers.losses import towers_loss
from csrm_tasks.towers.serving.cross import CrossRuntime
from csrm_tasks.towers.serving.texts import TEXT_VERSION
from csrm_tasks.towers.serving.tokens import TowerTokenizer
from csrm_tasks.towers.tower import HEADS
from csrm_tasks.towers.train import TrainPlan, train
from tests.towers_fixtures import make_encoder, oracle_examples, reader_of, snapshot_tables

TABLES = snapshot_tables()
PLAN = TrainPlan(steps=6, batch_queries=6, batch_products=8, lr=5e-3, lr_end=1e-4, seed=3)
QUERIES = ["茶壺", "紅色 雨傘", "", "品牌 " * 30]
TITLES = ["紅色 茶壺 品牌0", "雨傘", "白色 毛巾 品牌1", "x"]
ABOUT = {
    "text_version": TEXT_VERSION, "query_tokens": 16, "title_tokens": 24, "pad_id": 1,
    "product_fields": [], "heads": {name: {"threshold": 0.5} for name in HEADS},
}  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def reader(base: Path) -> TowerTokenizer:
    return reader_of(base, 16, 24)


@pytest.fixture(scope="module")
def examples() -> Examples:
    return oracle_examples(TABLES)


@pytest.fixture
def model(base: Path) -> CrossEncoder:
    return cross(base)


def cross(base: Path, tokens: int = 40) -> CrossEncoder:
    return CrossEncoder.from_base(
        str(base), dim=16, scale=8.0, learn_scale=True, tokens=tokens, seed=0
    ).eval()


def run(model: CrossEncoder, examples: Examples, reader: TowerTokenizer, path: Path) -> list[float]:
    tables = reader.queries(examples.queries), reader.products(examples.products)
    done = train(model, examples, *tables, PLAN, path, logits_of=cross_logits)
    return [loss for _, loss in done.curve]


def test_a_row_is_both_texts_and_says_whose_each_token_is(reader: TowerTokenizer) -> None:
    queries, titles = reader.queries(QUERIES), reader.products(TITLES)
    rows, others = np.array([0, 3, 1]), np.array([2, 0, 0])
    ids, texts = queries.joined(titles, rows, others)
    for i, (row, other) in enumerate(zip(rows, others, strict=True)):
        parts = [
            table.batch(np.array([at]))[0][0].tolist()
            for table, at in ((queries, row), (titles, other))
        ]
        whole = [*parts[0], *parts[1]]
        assert ids[i].tolist() == whole + [1] * (ids.shape[1] - len(whole))
        said = [1] * len(parts[0]) + [2] * len(parts[1])
        assert texts[i].tolist() == said + [0] * (ids.shape[1] - len(whole))


def test_logits_and_gradient_are_those_of_pairs_one_by_one(
    model: CrossEncoder, examples: Examples, reader: TowerTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "MIN_TOKENS", 64)  # several chunks
    tables = reader.queries(examples.queries), reader.products(examples.products)
    rows = np.arange(0, len(examples), 7)[:14]
    query, product = examples.query[rows], examples.product[rows]
    exact, irrelevant = (torch.from_numpy(x[rows]) for x in (examples.exact, examples.irrelevant))
    found = cross_logits(model, *tables, query, product)
    alone = [
        model(*map(torch.from_numpy, tables[0].joined(tables[1], query[[i]], product[[i]])))
        for i in range(len(rows))
    ]
    torch.testing.assert_close(found, torch.cat(alone))
    parameters = list(model.parameters())
    gradients = [
        torch.autograd.grad(towers_loss(logits, exact, irrelevant), parameters)
        for logits in (found, torch.cat(alone))
    ]
    for ours, slow in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, slow, atol=1e-5, rtol=1e-4)


def test_a_titles_tokens_see_the_query(model: CrossEncoder, reader: TowerTokenizer) -> None:
    """Of one title, the vector depends on the query: twin towers cannot do that."""
    seen = []
    model.product.register_forward_hook(lambda _m, _i, out: seen.append(out.detach()))
    queries, titles = reader.queries(QUERIES), reader.products(TITLES)
    for row in (0, 1):
        cross_logits(model, queries, titles, np.array([row]), np.array([0]))
    assert (seen[0] - seen[1]).abs().max() > 1e-3


def test_it_learns_and_a_killed_run_ends_the_same(
    base: Path,
    examples: Examples,
    reader: TowerTokenizer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole, killed, again = (cross(base) for _ in range(3))
    curve = run(whole, examples, reader, tmp_path / "whole")
    assert curve[-1] < curve[0]
    monkeypatch.setattr(training.Checkpoints, "due", lambda self: True)
    step, calls = training._step, []

    def die(*args: object) -> None:
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        step(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(training, "_step", die)
    with pytest.raises(KeyboardInterrupt):
        run(killed, examples, reader, tmp_path / "killed")
    assert run(again, examples, reader, tmp_path / "killed") == curve
    for name, value in whole.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


def judged(model: CrossEncoder, reader: TowerTokenizer) -> ScoredPairs:
    pairs = [(q, t) for q in QUERIES for t in TITLES]
    queries, titles = ([p[i] for p in pairs] for i in (0, 1))
    rows = np.arange(len(pairs))
    tables = reader.queries(queries), reader.products(titles)
    return ScoredPairs(queries, titles, cross_probabilities(model, *tables, rows, rows))


def test_export_equals_the_trained_model(
    model: CrossEncoder, reader: TowerTokenizer, tmp_path: Path
) -> None:
    wanted = judged(model, reader)
    (tmp_path / "tokenizer.json").write_text(reader.definition, encoding="utf-8")
    found = export_cross(model, tmp_path, ABOUT, wanted)
    assert found["fp32"].admitted
    runtime = CrossRuntime(tmp_path, variant="fp32")
    scores = runtime.score_texts(wanted.queries, wanted.titles)
    np.testing.assert_allclose(np.stack(scores, 1), wanted.scores, atol=1e-5)
    decided = runtime.decide(scores)
    np.testing.assert_array_equal(decided.em, scores.em >= 0.5)
    np.testing.assert_array_equal(decided.defect, scores.defect >= 0.5)
    assert (tmp_path / "cross.int8.onnx").exists() == found["int8"].admitted
    served = CrossRuntime(tmp_path).about["serve"]
    assert served == ("int8" if found["int8"].admitted else "fp32")


def test_scores_that_differ_are_refused(
    model: CrossEncoder, reader: TowerTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tokenizer.json").write_text(reader.definition, encoding="utf-8")
    true = judged(model, reader)
    monkeypatch.setitem(cross_export.MAX_DELTA, "int8", 0.0)
    assert not export_cross(model, tmp_path, ABOUT, true)["int8"].admitted
    with pytest.raises(ArtifactError, match=r"cross\.int8\.onnx: it was refused"):
        CrossRuntime(tmp_path, variant="int8")
    moved = ScoredPairs(true.queries, true.titles, true.scores + np.float32(0.01))
    with pytest.raises(RefusedError, match=r"a probability differs by 0\.0100"):
        export_cross(model, tmp_path, ABOUT, moved)


def test_texts_longer_than_the_encoder_reads_are_refused_at_the_start(base: Path) -> None:
    cross(base, tokens=64)  # 66 positions, of which RoBERTa leaves two out
    with pytest.raises(ConfigError, match=r"are 65 together, but .* reads 64 at once"):
        cross(base, tokens=65)
