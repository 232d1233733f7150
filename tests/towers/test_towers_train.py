"""Model, batches and training: sharing, encode-once, exact resumption."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from csrm_tasks.errors import ConfigError
from csrm_tasks.towers import train as training
from csrm_tasks.towers.examples import (
    Examples,
    batches,
    hard_examples,
    query_groups,
    soft_examples,
    with_texts,
)
from csrm_tasks.towers.losses import towers_loss
from csrm_tasks.towers.model import TwinTowers
from csrm_tasks.towers.serving.tokens import TowerTokenizer
from csrm_tasks.towers.train import TrainPlan, encode_rows, pair_logits, train
from csrm_tasks.training import optimizer
from csrm_tasks.training.checkpoints import Checkpoints
from tests.towers_fixtures import TARGET, make_encoder, oracle_examples, reader_of, snapshot_tables

PLAN = TrainPlan(steps=12, batch_queries=4, batch_products=6, lr=2e-3, lr_end=1e-5, seed=3)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture
def model(base: Path) -> TwinTowers:
    return towers(base)


def towers(base: Path, learn_scale: bool = True) -> TwinTowers:
    return TwinTowers.from_base(str(base), dim=16, scale=8.0, learn_scale=learn_scale, seed=0)


@pytest.fixture(scope="module")
def examples() -> Examples:
    t = snapshot_tables()
    return oracle_examples(t)


@pytest.fixture
def reader(base: Path) -> TowerTokenizer:
    return reader_of(base, 16, 16)


def run(
    model: TwinTowers, examples: Examples, reader: TowerTokenizer, path: Path
) -> training.TowerProgress:
    q, p = reader.queries(examples.queries), reader.products(examples.products)
    return train(model, examples, q, p, PLAN, path)


def stream(examples: Examples, queries: int, products: int, seed: int) -> Iterator[np.ndarray]:
    return batches(examples.query, examples.product, queries, products, seed)


def test_towers_share_embeddings_and_nothing_else(model: TwinTowers) -> None:
    shared = model.query.encoder.embeddings
    assert model.product.encoder.embeddings is shared
    own = {id(p) for p in model.query.parameters()} & {id(p) for p in model.product.parameters()}
    assert own == {id(p) for p in shared.parameters()}


def test_padding_does_not_matter(model: TwinTowers, reader: TowerTokenizer) -> None:
    table = reader.products(["紅色 茶壺", "藍色 雨傘 品牌 紅色 茶壺 白色", "毛巾"])
    model.eval()
    together = encode_rows(model.product, table, np.arange(3))
    for row in range(3):
        ids, mask = (torch.from_numpy(x) for x in table.batch(np.array([row])))
        torch.testing.assert_close(model.product(ids, mask)[0], together[row])
    torch.testing.assert_close(together.norm(dim=-1), torch.ones(3, 2))


def test_save_and_load(model: TwinTowers, reader: TowerTokenizer, tmp_path: Path) -> None:
    model.eval().save(tmp_path)
    again = TwinTowers.load(tmp_path, dim=16)
    assert again.product.encoder.embeddings is again.query.encoder.embeddings
    for name, value in model.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], value)


def test_start_is_the_seed_alone(base: Path, tmp_path: Path) -> None:
    files = []
    for name in "ab":
        torch.manual_seed(len(files))  # what ran before must not matter
        towers(base).save(tmp_path / name)
        files.append((tmp_path / name / "model.safetensors").read_bytes())
    assert files[0] == files[1]


def test_unknown_encoder_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"towers\.encoder .* cannot be loaded"):
        towers(tmp_path / "empty")


def test_visits_are_an_epoch_in_groups_of_one_query(examples: Examples) -> None:
    groups = query_groups(examples.query, examples.product, 5, np.random.default_rng(0))
    assert Counter(np.concatenate(groups).tolist()) == Counter(range(len(examples)))
    assert all(len(np.unique(examples.query[g])) == 1 and len(g) <= 5 for g in groups)


def test_batches_share_products(examples: Examples) -> None:
    def titles(groups: list[np.ndarray]) -> float:
        cut = [np.concatenate(groups[i : i + 12]) for i in range(0, len(groups) - 11, 12)]
        return float(np.mean([len(np.unique(examples.product[b])) / len(b) for b in cut]))

    groups = query_groups(examples.query, examples.product, 3, np.random.default_rng(0))
    mixed = [groups[i] for i in np.random.default_rng(1).permutation(len(groups))]
    assert titles(groups) < 0.7 * titles(mixed)


def test_batches_depend_on_the_seed_alone(examples: Examples) -> None:
    def take(seed: int) -> list[list[int]]:
        return [b.tolist() for b in islice(stream(examples, 4, 6, seed), 40)]

    assert take(1) == take(1)
    assert take(1) != take(2)


def test_each_distinct_text_of_a_batch_is_encoded_once(
    model: TwinTowers, examples: Examples, reader: TowerTokenizer
) -> None:
    rows = next(stream(examples, 16, 12, 0))
    encoded: Counter[str] = Counter()
    for name in ("query", "product"):
        tower = getattr(model, name)
        tower.register_forward_hook(
            lambda _m, args, _o, name=name: encoded.update({name: len(args[0])})
        )
    tables = reader.queries(examples.queries), reader.products(examples.products)
    model.eval()
    found = pair_logits(model, *tables, examples.query[rows], examples.product[rows])
    distinct = {k: len(np.unique(getattr(examples, k)[rows])) for k in ("query", "product")}
    assert encoded == distinct
    assert sum(distinct.values()) < len(rows)
    for at in (0, len(rows) // 2, len(rows) - 1):  # pair by pair, anew
        q, p = (getattr(examples, k)[rows[at]] for k in ("query", "product"))
        one = pair_logits(model, *tables, np.array([q]), np.array([p]))
        torch.testing.assert_close(one[0], found[at])


def pair_by_pair(
    model: TwinTowers, examples: Examples, reader: TowerTokenizer, rows: np.ndarray
) -> torch.Tensor:
    """The loss the slow way: both texts of every pair anew, alone, unpadded."""
    losses = []
    for row in rows:
        vectors = []
        for tower, table in (
            (model.query, reader.queries([examples.queries[examples.query[row]]])),
            (model.product, reader.products([examples.products[examples.product[row]]])),
        ):
            vectors.append(tower(*map(torch.from_numpy, table.batch(np.array([0])))))
        logits = model.scale * (vectors[0] * vectors[1]).sum(-1) + model.bias  # (1, 2)
        exact, irrelevant = (
            torch.tensor([float(x[row])]) for x in (examples.exact, examples.irrelevant)
        )
        losses.append(towers_loss(logits, exact, irrelevant))
    return torch.stack(losses).mean()


def fast(
    model: TwinTowers, examples: Examples, reader: TowerTokenizer, rows: np.ndarray
) -> torch.Tensor:
    """The loss as training takes it."""
    tables = reader.queries(examples.queries), reader.products(examples.products)
    logits = pair_logits(model, *tables, examples.query[rows], examples.product[rows])
    exact, irrelevant = (torch.from_numpy(x[rows]) for x in (examples.exact, examples.irrelevant))
    return towers_loss(logits, exact, irrelevant)


def test_loss_and_gradient_are_those_of_every_pair_encoded_anew(
    model: TwinTowers, examples: Examples, reader: TowerTokenizer
) -> None:
    model.eval()
    rows = next(stream(examples, 8, 6, 0))
    found, wanted = (f(model, examples, reader, rows) for f in (fast, pair_by_pair))
    torch.testing.assert_close(found, wanted)
    parameters = [p for _, p in model.named_parameters()]
    for ours, slow in zip(
        torch.autograd.grad(found, parameters), torch.autograd.grad(wanted, parameters), strict=True
    ):
        torch.testing.assert_close(ours, slow, atol=1e-5, rtol=1e-4)


def test_bf16_multiplies_only(
    base: Path, examples: Examples, reader: TowerTokenizer, tmp_path: Path
) -> None:
    model = towers(base)
    seen: set[torch.dtype] = set()
    model.query.encoder.encoder.layer[0].intermediate.dense.register_forward_hook(
        lambda _m, _i, out: seen.add(out.dtype)
    )
    vectors: list[torch.Tensor] = []
    model.query.register_forward_hook(lambda _m, _i, out: vectors.append(out))
    q, p = reader.queries(examples.queries), reader.products(examples.products)
    found = train(model, examples, q, p, PLAN, tmp_path / "cast", torch.bfloat16)
    exact = train(towers(base), examples, q, p, PLAN, tmp_path / "exact")
    assert seen == {torch.bfloat16}
    assert {v.dtype for v in vectors} == {torch.float32}
    assert {x.dtype for x in model.parameters()} == {torch.float32}
    assert found.curve[-1][1] == pytest.approx(exact.curve[-1][1], abs=0.02)


def test_learning_rate_is_linear_to_its_end() -> None:
    rates = [PLAN.schedule.rate(s) for s in range(PLAN.steps)]
    np.testing.assert_allclose(rates, np.linspace(PLAN.lr, PLAN.lr_end, PLAN.steps))


@pytest.mark.parametrize("lazy_from", [1, optimizer.LAZY_FROM])
def test_killed_and_resumed_ends_in_the_same_weights(
    base: Path, examples: Examples, reader: TowerTokenizer, tmp_path: Path, monkeypatch: Any,
    lazy_from: int,
) -> None:  # fmt: skip
    monkeypatch.setattr(optimizer, "LAZY_FROM", lazy_from)
    whole = towers(base)
    curve = run(whole, examples, reader, tmp_path / "whole.safetensors").curve

    monkeypatch.setattr(Checkpoints, "due", lambda self: True)
    step = training._step
    calls = []

    def die(*args: Any) -> None:
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        step(*args)

    monkeypatch.setattr(training, "_step", die)
    with pytest.raises(KeyboardInterrupt):
        run(towers(base), examples, reader, tmp_path / "killed.safetensors")
    again = towers(base)
    progress = run(again, examples, reader, tmp_path / "killed.safetensors")
    assert len(calls) == 6 + PLAN.steps - 5
    assert [tuple(point) for point in progress.curve] == curve
    for name, value in whole.named_parameters():
        assert torch.equal(dict(again.named_parameters())[name], value), name


def test_a_large_vocabulary_learns_the_same(
    base: Path, examples: Examples, reader: TowerTokenizer, tmp_path: Path, monkeypatch: Any
) -> None:
    """Both towers read it, in several chunks a step."""
    runs = {}
    for lazy_from in (1, optimizer.LAZY_FROM):
        monkeypatch.setattr(optimizer, "LAZY_FROM", lazy_from)
        runs[lazy_from] = towers(base)
        curve = run(runs[lazy_from], examples, reader, tmp_path / f"{lazy_from}").curve
        runs[lazy_from].losses = torch.tensor([loss for _, loss in curve])
    lazy, dense = runs.values()
    torch.testing.assert_close(lazy.losses, dense.losses, rtol=1e-3, atol=1e-4)
    words = [m.query.encoder.get_input_embeddings().weight.detach() for m in (lazy, dense)]
    assert ((words[0] - words[1]).abs() > 1e-4).float().mean() < 0.01  # rounding, by AdamW
    assert not lazy.query.encoder.get_input_embeddings().sparse


def test_several_threads_sum_gradients_in_the_same_order_every_time() -> None:
    rng = np.random.default_rng(0)
    rows, weight = rng.integers(0, 200, 4000), torch.randn(4000, 2, 64)
    values = torch.randn(200, 2, 64)

    def gradient() -> torch.Tensor:
        leaf = values.clone().requires_grad_()
        (training._pick(leaf, rows) * weight).sum().backward()
        assert leaf.grad is not None
        return leaf.grad

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        first = gradient()
        assert all(torch.equal(first, gradient()) for _ in range(30))  # of plain indexing, ten are
    finally:
        torch.set_num_threads(before)


def test_frozen_scale_stays(
    base: Path, examples: Examples, reader: TowerTokenizer, tmp_path: Path
) -> None:
    frozen, learnt = towers(base, learn_scale=False), towers(base)
    for one in (frozen, learnt):
        run(one, examples, reader, tmp_path / f"{id(one)}.safetensors")
    assert frozen.scale.tolist() == [8.0, 8.0]
    assert frozen.bias.tolist() == [0.0, 0.0]
    assert learnt.bias.abs().min() > 0


def learnt(found: Examples) -> set[tuple[str, str]]:
    """Return the pairs of texts."""
    rows = zip(found.query.tolist(), found.product.tolist(), strict=True)
    return {(found.queries[q], found.products[p]) for q, p in rows}


def test_no_dev_query_and_nothing_of_gold_is_learnt() -> None:
    t = snapshot_tables()
    texts = {
        split: set(with_texts(t["pairs"].filter(split=split), t["queries"], t["products"])
                   .select("query", "title").rows())
        for split in ("train", "dev", "gold")
    }  # fmt: skip
    # A copy of every product under another identifier, scored for every query.
    copies = t["products"].with_columns(product_id="copy-" + pl.col("product_id"))
    goods = pl.concat([t["products"], copies])
    given = t["queries"].select("query_id").join(goods.select("product_id"), how="cross")
    scored = given.with_columns(locale=pl.lit(TARGET), p0=pl.lit(0.1), p1=pl.lit(0.2),
                                p2=pl.lit(0.7))  # fmt: skip
    dev, gold = ({q for q, _ in texts[split]} for split in ("dev", "gold"))
    assert dev
    for seen in (False, True):  # the control learns gold queries, by other products of theirs
        soft = learnt(soft_examples(scored, t["queries"], goods, t["pairs"], seen))
        queries = {q for q, _ in soft}
        assert texts["train"] < soft
        assert not soft & texts["gold"]
        assert not dev & queries
        assert gold & queries == (gold if seen else set())
    hard = hard_examples(t["pairs"], t["queries"], t["products"])
    assert learnt(hard) == texts["train"]
    assert set(hard.exact.tolist()) == {0.0, 1.0}
