"""Training pairs, batches, and a trainer that learns, is seeded, and survives being killed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from torch import Tensor

from csrm_tasks.errors import DataError
from csrm_tasks.records import SCORED
from csrm_tasks.retrieval import ebr
from csrm_tasks.retrieval.batches import draw
from csrm_tasks.retrieval.ebr import EbrTrainer
from csrm_tasks.retrieval.encoder import BiEncoder
from csrm_tasks.retrieval.losses import (
    contrastive_loss,
    false_negatives,
    margin_mse_loss,
    mse_loss,
    within_query_kl,
)
from csrm_tasks.retrieval.pairs import TrainingPairs, training_pairs
from csrm_tasks.sections import Ebr, Rates
from csrm_tasks.training import optimizer
from csrm_tasks.training.checkpoints import Checkpoints
from tests.retrieval_fixtures import KINDS, behaviour, products, queries, scored, tiny_encoder


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    texts = [*products()["title"], *queries()["norm"]]
    return tiny_encoder(tmp_path_factory.mktemp("base"), texts)


def _config(steps: int, **more: Any) -> Ebr:
    return Ebr(encoder="-", dim=16, steps=steps, batch=24, pool=12, lr=3e-3, **more)


def _data(local: bool = False) -> TrainingPairs:
    return training_pairs(queries(), products(), scored(), behaviour() if local else None)


def _trainer(base: Path, work: Path, steps: int, **more: Any) -> EbrTrainer:
    model = BiEncoder.from_base(str(base), 16, 24, seed=0)
    return EbrTrainer(model, _data(), _config(steps, **more), 7, work)


def test_pairs_are_by_text_so_that_copies_are_one() -> None:
    goods = products()
    copy = goods.head(1).with_columns(
        product_id=pl.lit("copy"), title=pl.col("title").str.to_uppercase()
    )
    extra = scored().head(1).with_columns(product_id=pl.lit("copy"), p1=pl.lit(0.97, pl.Float32))
    first = scored().head(1)["product_id"][0]
    assert first == goods["product_id"][0]
    data = training_pairs(queries(), pl.concat([goods, copy]), pl.concat([scored(), extra]), None)
    assert data.count == len(scored())
    assert len(data.titles) == len(goods)
    part = data.locales[0]
    assert part.weight.max() == pytest.approx(0.97)


def test_behaviour_joins_with_the_larger_weight_and_only_where_somebody_acted() -> None:
    plain, local = _data(), _data(local=True)
    assert plain.count == local.count
    changed = np.flatnonzero(plain.locales[0].weight != local.locales[0].weight)
    assert len(changed) == behaviour().filter(pl.col("clicks") > 0).height == 20
    assert (local.locales[0].weight[changed] == np.float32(0.95)).all()


def test_pairs_outside_the_snapshot_are_left_out_or_refused() -> None:
    foreign = scored().with_columns(query_id=pl.lit("unknown"))
    data = training_pairs(queries(), products(), pl.concat([scored(), foreign]), None)
    assert data.count == len(scored())
    with pytest.raises(DataError, match="no scored pair"):
        training_pairs(queries(), products(), foreign, None)


def test_a_batch_holds_one_locale_and_masks_every_known_pair() -> None:
    data = _data()
    locales = set()
    assert len(draw(data, 20, 15, np.random.default_rng(0)).weight) == 20
    for seed in range(12):
        batch = draw(data, 20, 15, np.random.default_rng(seed))
        pairs = {
            (q, t): (part.locale, w)
            for part in data.locales
            for q, t, w in zip(part.query, part.title, part.weight, strict=True)
        }
        found = [
            pairs[batch.queries[q], batch.titles[t]]
            for q, t in zip(batch.query_of, batch.title_of, strict=True)
        ]
        assert [w for _, w in found] == batch.weight.tolist()
        assert len({locale for locale, _ in found}) == 1
        locales.add(found[0][0])
        for b, q in enumerate(batch.query_of):
            for p, title in enumerate(batch.titles):
                assert batch.allowed[b, p] == ((batch.queries[q], title) not in pairs)
        part = next(p for p in data.locales if p.locale == found[0][0])
        assert set(batch.titles) <= set(part.catalogue)
        assert len(set(batch.titles)) == len(batch.titles)
    assert locales == {"ko-KR", "zh-TW"}


def test_batch_losses_equal_pair_by_pair_encoding(base: Path, tmp_path: Path) -> None:
    trainer = _trainer(base, tmp_path, 1)
    trainer.model.eval()
    data = trainer.data
    batch = draw(data, 10, 8, np.random.default_rng(3))
    with torch.no_grad():
        contrastive, mse = trainer.batch_losses(batch)
    q = torch.from_numpy(trainer.model.encode_queries([data.queries[i] for i in batch.queries]))
    t = torch.from_numpy(trainer.model.encode_titles([data.titles[i] for i in batch.titles]))
    cosine = torch.stack([q[i] for i in batch.query_of]) @ t.T
    weight, own = torch.from_numpy(batch.weight), torch.from_numpy(batch.title_of)
    allowed = torch.from_numpy(batch.allowed)
    expected = contrastive_loss(cosine, own, allowed, weight, trainer.config.temperature)
    assert contrastive.item() == pytest.approx(expected.item(), rel=1e-4)
    picked = torch.stack([cosine[i, j] for i, j in enumerate(own)])
    assert mse.item() == pytest.approx(mse_loss(picked, weight).item(), rel=1e-4)


def test_a_batch_by_query_holds_several_scored_titles_of_each() -> None:
    data = _data()
    batch = draw(data, 20, 6, np.random.default_rng(1), by_query=True)
    assert len(batch.weight) == 20
    assert (np.bincount(batch.query_of) == 4).all()
    weights = {
        (q, t): w
        for part in data.locales
        for q, t, w in zip(part.query, part.title, part.weight, strict=True)
    }
    expected = [[weights.get((q, t), np.nan) for t in batch.titles] for q in batch.queries]
    np.testing.assert_array_equal(batch.teacher, np.array(expected, np.float32))


@pytest.mark.parametrize(
    ("within", "loss"),
    [
        ("margin_mse", margin_mse_loss),
        ("kl", lambda cosine, teacher: within_query_kl(cosine, teacher, 0.05)),
    ],
)
def test_the_loss_within_queries_is_a_third_one_and_each_query_counts_once(
    base: Path, tmp_path: Path, within: str, loss: Callable[[Tensor, Tensor], Tensor]
) -> None:
    trainer = _trainer(base, tmp_path, 1, within_query=within)
    trainer.model.eval()
    batch = draw(trainer.data, 16, 4, np.random.default_rng(2), by_query=True)
    found = trainer.batch_losses(batch)
    q, t = (
        torch.from_numpy(trainer.model.encode_titles([texts[i] for i in rows]))
        for texts, rows in (
            (trainer.data.queries, batch.queries), (trainer.data.titles, batch.titles)
        )
    )  # fmt: skip
    expected = loss(q @ t.T, torch.from_numpy(batch.teacher)).item()
    assert len(found) == 3
    assert found[2].item() == pytest.approx(expected, rel=1e-3)
    assert expected > 0
    plain = _trainer(base, tmp_path, 1)
    plain.model.eval()
    assert [x.item() for x in plain.batch_losses(batch)] == [x.item() for x in found[:2]]
    trainer.run()
    assert list(trainer.metrics()) == ["contrastive", "mse", within]


def test_false_negatives_are_masked_from_the_middle_on(base: Path, tmp_path: Path) -> None:
    trainer = _trainer(base, tmp_path, 10, false_negative=0.5)
    batch = draw(trainer.data, 16, 8, np.random.default_rng(2))
    trainer.model.eval()
    cosine, positive = trainer.cosines(batch)
    weight, allowed = torch.from_numpy(batch.weight), torch.from_numpy(batch.allowed)
    false = allowed & false_negatives(cosine, positive, 0.5)
    assert false.sum() > 0
    for step, kept in ((4, allowed), (5, allowed & ~false)):
        trainer.step = step
        expected = contrastive_loss(cosine, positive, kept, weight, 0.05).item()
        assert trainer.batch_losses(batch)[0].item() == pytest.approx(expected, abs=1e-6)
    trainer.step = 0
    trainer.run()
    masked = [share for _, share in trainer.curves()["masked"]]
    assert masked[:5] == [0.0] * 5
    assert min(masked[5:]) >= 0.0 < max(masked[5:])


def test_cached_gradients_equal_the_plain_large_batch(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forward and backward, dropout included; the cache never holds two chunks' graphs."""
    monkeypatch.setattr(ebr, "CHUNK", 5)
    found = {}
    for above in (10**6, 1):
        monkeypatch.setattr(ebr, "CACHE_ABOVE", above)
        trainer = _trainer(base, tmp_path, 1)
        trainer.model.train()
        for module in trainer.model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.3
        torch.manual_seed(11)
        batch = draw(trainer.data, 40, 15, np.random.default_rng(3))
        contrastive, mse = trainer.batch_losses(batch)
        (contrastive + mse).backward()
        missing = all(p.grad is None for p in trainer.model.parameters())
        assert missing == (above == 1)  # nothing has gone through the encoder yet
        trainer._cache.backward()
        gradients = [p.grad for p in trainer.model.parameters() if p.grad is not None]
        found[above] = (contrastive, mse, torch.rand(3), *gradients)
    assert len(found[1]) == len(found[10**6]) > 10
    for plain, cached in zip(found[10**6], found[1], strict=True):
        assert torch.allclose(plain, cached, atol=1e-6)


@pytest.mark.parametrize("above", [10**6, 1])  # pairs from which gradients are cached
def test_a_large_vocabulary_learns_the_same(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, above: int
) -> None:
    """By the rows that a batch reads as by a dense gradient: same losses, same embeddings."""
    monkeypatch.setattr(ebr, "CACHE_ABOVE", above)
    runs = []
    for lazy_from in (1, optimizer.LAZY_FROM):
        monkeypatch.setattr(optimizer, "LAZY_FROM", lazy_from)
        trainer = _trainer(base, tmp_path / str(lazy_from), 12, rates=Rates(vocabulary=2.0))
        trainer.run()
        runs.append(trainer)
    torch.testing.assert_close(runs[0].losses, runs[1].losses, rtol=1e-3, atol=1e-4)
    lazy, dense = (r.model.encoder.get_input_embeddings().weight.detach() for r in runs)
    far = (lazy - dense).abs() > 1e-4
    assert far.float().mean() < 0.01  # where a gradient is nothing but rounding, AdamW magnifies it
    assert (lazy - _trainer(base, tmp_path, 1).model.encoder.get_input_embeddings().weight).abs(
    ).max() > 1e-2  # fmt: skip


def test_training_follows_the_cvr_against_the_words(base: Path, tmp_path: Path) -> None:
    """Who searches a kind buys the next one: only the teacher knows, no title says so."""
    model = BiEncoder.from_base(str(base), 16, 24, seed=0)
    assert _share_of_next_kind(model) < 0.2
    data = training_pairs(queries(), products(), _next_kind(), None)
    trainer = EbrTrainer(model, data, _config(150), 7, tmp_path)
    trainer.run()
    assert _share_of_next_kind(model) > 0.8
    curve = trainer.curves()["contrastive"]
    assert curve[-1][0] == 150
    assert curve[-1][1] < 0.7 * curve[0][1]
    assert not model.training


def _kinds() -> pl.DataFrame:
    """Queries that are a kind, with that kind's number and the next one's."""
    asked = [(k, i, (i + 1) % 8) for kinds in KINDS.values() for i, k in enumerate(kinds)]
    names = ["norm", "own", "next"]
    return queries().join(pl.DataFrame(asked, names, orient="row"), on="norm")


def _next_kind() -> pl.DataFrame:
    numbers = {k: i for kinds in KINDS.values() for i, k in enumerate(kinds)}
    goods = products().with_columns(kind=pl.col("category").replace_strict(numbers))
    frame = _kinds().join(goods.select("product_id", "locale", "kind"), on="locale")
    p1 = pl.when(pl.col("kind") == pl.col("next")).then(0.9).otherwise(0.02)
    frame = frame.filter((pl.col("kind") == pl.col("own")) | (pl.col("kind") == pl.col("next")))
    frame = frame.with_columns(p0=1 - p1, p1=p1, p2=pl.lit(0.0))
    return frame.select([pl.col(c).cast(t) for c, t in SCORED.items()])


def _share_of_next_kind(model: BiEncoder) -> float:
    """Share of kinds whose nearest title in the locale is of the next kind."""
    right = []
    for query in _kinds().to_dicts():
        goods = products().filter(pl.col("locale") == query["locale"])
        cosine = (
            model.encode_titles(goods["title"].to_list()) @ model.encode_queries([query["norm"]])[0]
        )
        wanted = KINDS[query["locale"]][query["next"]]
        right.append(goods["category"][int(cosine.argmax())] == wanted)
    return float(np.mean(right))


@pytest.mark.parametrize("lazy_from", [1, optimizer.LAZY_FROM])
def test_a_killed_run_ends_at_the_same_weights(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lazy_from: int
) -> None:
    monkeypatch.setattr(optimizer, "LAZY_FROM", lazy_from)
    whole = _trainer(base, tmp_path / "whole", 9)
    whole.run()

    monkeypatch.setattr(Checkpoints, "due", lambda _: True)
    killed = _trainer(base, tmp_path / "killed", 9)
    steps = iter(range(5))
    update = killed._update

    def dying() -> torch.Tensor:
        if next(steps, None) is None:
            raise KeyboardInterrupt
        return update()

    monkeypatch.setattr(killed, "_update", dying)
    with pytest.raises(KeyboardInterrupt):
        killed.run()
    resumed = _trainer(base, tmp_path / "killed", 9)
    resumed.run()
    assert resumed.curves() == whole.curves()
    for (name, a), b in zip(
        whole.model.state_dict().items(), resumed.model.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b), name
