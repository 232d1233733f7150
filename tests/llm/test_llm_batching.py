"""Length buckets, epochs, the task mixture: seeded, complete, resumable (A6, A7, A11, A24)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from csrm_tasks.llm.data import (
    LabelRows,
    TranslationRows,
    load_fields,
    load_pairs,
    relevance_rows,
    translation_rows,
)
from csrm_tasks.llm.languages import families, load_meanings
from csrm_tasks.llm.network.model import Model, load_base
from csrm_tasks.llm.prompt.batching import (
    BatchStream,
    Epoch,
    bucket,
    draw_siblings,
    mixed,
    pad,
    useful_share,
)
from csrm_tasks.llm.prompt.encoding import PromptEncoder
from csrm_tasks.llm.prompt.prompts import QueryFields
from csrm_tasks.llm.training.mixture import Mixture, TaskShare
from csrm_tasks.llm.training.tasks import (
    NO_TITLES,
    LabelTask,
    TranslationTask,
    draw_by_kind,
    without_title,
)
from csrm_tasks.records import TRANSLATIONS, write_table
from tests.llm_fixtures import (
    SOURCE,
    TARGET,
    make_base,
    make_given,
    make_market,
    make_rqa,
    make_snapshot,
    run_as,
)


class Lengths:
    """An epoch source of 130 samples."""

    def start_epoch(self, epoch: int) -> Epoch:
        rng = np.random.default_rng(epoch)
        return Epoch(rng.permutation(130), rng.integers(20, 90, 130), np.zeros(130, np.int8))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return load_base(str(make_base(tmp_path_factory.mktemp("base"))))


def test_useful_share_at_the_lengths_of_a_real_market() -> None:
    rng = np.random.default_rng(0)
    lengths = np.minimum(rng.lognormal(5.035, 0.27, 50_000).astype(np.int64), 766)  # A11
    assert abs(lengths.mean() - 160) < 3
    assert abs(np.quantile(lengths, 0.95) - 240) < 8
    assert useful_share(lengths, bucket(lengths, 64, rng)) >= 0.95
    plain = np.array_split(np.arange(len(lengths)), len(lengths) // 64)
    assert useful_share(lengths, plain) < 0.7


@pytest.mark.parametrize(("n", "batch"), [(130, 64), (1, 64), (63, 64), (12_801, 64), (5, 1)])
def test_every_sample_is_in_exactly_one_batch(n: int, batch: int) -> None:
    rng = np.random.default_rng(n)
    batches = bucket(rng.integers(1, 300, n), batch, rng)
    assert sorted(np.concatenate(batches)) == list(range(n))
    assert max(map(len, batches)) - min(map(len, batches)) <= 1
    assert n < batch or min(map(len, batches)) >= batch


def test_a_stream_continues_from_epoch_and_position() -> None:
    whole = BatchStream(Lengths(), 20, seed=5)
    taken = [next(whole)[1].tolist() for _ in range(17)]
    assert whole.epoch == 2
    for start in (0, 4, 6, 7, 12, 16):
        first = BatchStream(Lengths(), 20, seed=5)
        for _ in range(start):
            next(first)
        again = BatchStream(Lengths(), 20, seed=5)
        again.seek(first.epoch, first.position)
        assert [next(again)[1].tolist() for _ in range(17 - start)] == taken[start:]
    other = BatchStream(Lengths(), 20, seed=6)
    assert [next(other)[1].tolist() for _ in range(17)] != taken


def label_task(model: Model, rows: LabelRows, rqa_dropout: float) -> LabelTask:
    encoder = PromptEncoder(model.tokenizer, 96)
    return LabelTask(model, rows, encoder, rqa_dropout=rqa_dropout, siblings=8, seed=0)


def neighbours(values: np.ndarray) -> list[np.ndarray]:
    """Cut an array where its value changes."""
    return np.split(values, np.flatnonzero(np.diff(values)) + 1)


@pytest.mark.parametrize("most", [1, 3, 8])
@pytest.mark.parametrize("seed", range(5))
def test_a_familys_groups_stand_together_and_every_sample_comes_once(most: int, seed: int) -> None:
    """Against the groups looked at one by one: the k-th of each query of a family is one run."""
    rng = np.random.default_rng(seed)
    owners = rng.permutation(np.repeat(np.arange(40), rng.integers(1, 20, 40)))
    family_of = rng.integers(0, 25, 40)
    order, groups = draw_siblings(owners, most, rng)
    place, united = mixed(order, groups, owners, family_of[owners])
    assert sorted(place) == list(range(len(order)))
    seen: dict[int, int] = {}
    drawn: dict[tuple[int, int], list[int]] = {}  # family and rank → groups in the order drawn
    for group in dict.fromkeys(groups.tolist()):
        owner = int(owners[order[groups == group]][0])
        rank = seen[owner] = seen.get(owner, -1) + 1
        drawn.setdefault((int(family_of[owner]), rank), []).append(group)
    expected = [group for together in drawn.values() for group in together]
    assert list(dict.fromkeys(groups[place].tolist())) == expected
    assert [len(set(groups[place][united == u])) for u in dict.fromkeys(united.tolist())] == [
        len(together) for together in drawn.values()
    ]
    inside = [np.flatnonzero(groups[place] == g) for g in set(groups.tolist())]
    assert all((np.diff(at) == 1).all() for at in inside)  # a query's own stay neighbours
    alone, itself = mixed(order, groups, owners, owners)
    assert np.array_equal(alone, np.arange(len(order)))  # nobody has kin: as it was drawn
    assert len(set(itself)) == len(set(groups))


def with_translated_queries(snapshot: Path) -> list[tuple[str, str]]:
    """Give each source query but the last a target query as its translation; return all couples."""
    queries = pl.read_parquet(snapshot / "queries.parquet")
    texts = [queries.filter(locale=loc)["query"].to_list() for loc in (SOURCE, TARGET)]
    couples = list(zip(*texts, strict=True))
    rows = [("query", s.upper(), f" {t}", "dev") for s, t in couples[:-1]]
    rows += [("query", "􏿿", couples[0][1], "train")]  # the first in order is taken
    rows += [("title", *couples[-1], "train")]
    directed = [(*row, SOURCE, TARGET) for row in rows]
    frame = pl.DataFrame(directed, TRANSLATIONS, orient="row")
    write_table(frame, TRANSLATIONS, snapshot / "translations.parquet")
    return couples


def test_a_query_is_one_with_its_translation(tmp_path: Path) -> None:
    couples = with_translated_queries(make_snapshot(tmp_path, target_labels=True))
    meanings = load_meanings(tmp_path)
    numbers = families([QueryFields(t) for couple in couples for t in couple], meanings)
    first, other = numbers[::2], numbers[1::2]
    assert (first == other)[:-1].all() and first[-1] != other[-1]
    assert len(set(first)) == len(couples)
    both = {"a": "a", "b": "a", "c": "b"}  # no chain: c translates b, which translates a
    assert families([QueryFields(t) for t in "abcdd"], both).tolist() == [0, 0, 1, 2, 2]


def test_a_batch_holds_both_languages_of_its_queries(model: Model, tmp_path: Path) -> None:
    snapshot = make_snapshot(tmp_path, target_labels=True, n=240)
    with_translated_queries(snapshot)
    pairs = load_pairs(snapshot, "train")
    rows = relevance_rows(load_fields(snapshot), pairs)
    kin = families(rows.queries, load_meanings(snapshot))
    encoder = PromptEncoder(model.tokenizer, 96)

    def share(given: np.ndarray | None) -> float:
        """Of the queries in each batch those whose other language is in it, too."""
        task = LabelTask(model, rows, encoder, rqa_dropout=0.1, siblings=4, seed=0, families=given)
        epoch = task.start_epoch(0)
        assert sorted(epoch.order) == list(range(len(rows)))
        found = []
        for batch in bucket(epoch.lengths, 24, np.random.default_rng(0), epoch.groups):
            inside = pairs[epoch.order[batch]].with_columns(kin=pl.Series(kin[epoch.order[batch]]))
            found += inside.group_by("kin").agg(pl.col("locale").n_unique())["locale"].to_list()
        return float(np.mean(np.asarray(found) == 2))

    assert share(None) < 0.4 < 0.7 < share(kin)


def test_a_training_mixes_languages_where_it_is_told_to(tmp_path: Path) -> None:
    given = make_given(tmp_path)
    make_snapshot(given.snapshot, target_labels=True)
    market = make_market(make_base(tmp_path / "base"), steps=4)
    with_translated_queries(given.snapshot)
    plain, mixed_up = (
        run_as(f"{mix}", market, given, tmp_path, mix_languages=mix).facts for mix in (False, True)
    )
    assert plain["dev_log_loss"] != mixed_up["dev_log_loss"]
    assert plain["train_pairs"] == mixed_up["train_pairs"]


@pytest.mark.parametrize("most", [1, 3, 8])
def test_siblings_stand_together_and_every_sample_comes_once(most: int) -> None:
    rng = np.random.default_rng(0)
    owners = rng.permutation(np.repeat(np.arange(40), rng.integers(1, 20, 40)))
    order, groups = draw_siblings(owners, most, rng)
    assert sorted(order) == list(range(len(owners)))
    found = neighbours(groups)
    assert len(found) == len(np.unique(groups))  # a group is one run
    sizes: dict[int, list[int]] = {}
    start = 0
    for group in found:
        (owner,) = set(owners[order[start : start + len(group)]])
        sizes.setdefault(owner, []).append(len(group))
        start += len(group)
    for owner, cut in sizes.items():
        n = int((owners == owner).sum())
        assert len(cut) == -(-n // most)  # as few as may be
        assert max(cut) - min(cut) <= 1
    other, _ = draw_siblings(owners, most, rng)
    assert (order != other).any()


def test_batches_keep_siblings_together_and_labels_come_as_often_as_there_are() -> None:
    rng = np.random.default_rng(1)
    owners = np.repeat(np.arange(800), 8)
    order, groups = draw_siblings(owners, 8, rng)
    lengths = rng.integers(20, 120, len(order))
    batches = bucket(lengths, 60, rng, groups)
    assert sorted(np.concatenate(batches)) == list(range(len(order)))
    runs = sum(len(neighbours(groups[b])) for b in batches)
    assert runs <= 800 + len(batches)  # a group is cut by the end of a batch only
    of_group = [len(np.unique(groups[b])) for b in batches]
    assert min(of_group) >= 60 / 8
    labels = owners % 3  # one label a query: as alike as siblings can be
    share = [np.mean(labels[order[b]] == 2) for b in batches]
    assert np.mean(share) == pytest.approx(np.mean(labels == 2), abs=0.005)


def test_siblings_lose_their_titles_together(model: Model, tmp_path: Path) -> None:
    snapshot = make_snapshot(tmp_path / "snapshot", n=1200)
    fields = load_fields(snapshot, make_rqa(tmp_path / "rqa", snapshot))
    rows = relevance_rows(fields, load_pairs(snapshot, "train"))
    epoch = label_task(model, rows, 0.25).start_epoch(0)
    assert epoch.groups is not None
    lost = epoch.variants == NO_TITLES
    together = [set(lost[epoch.groups == g]) for g in np.unique(epoch.groups)]
    assert all(len(values) == 1 for values in together)
    assert 0.1 < np.mean([v.pop() for v in together]) < 0.4


def test_a_batch_of_siblings_runs_their_prefix_once(model: Model, tmp_path: Path) -> None:
    snapshot = make_snapshot(tmp_path / "snapshot", n=240)
    fields = load_fields(snapshot, None)
    rows = relevance_rows(fields, load_pairs(snapshot, "train"))
    task = label_task(model, rows, 0.0)
    stream = BatchStream(task, 32, seed=0)
    for _ in range(4):
        epoch, at = next(stream)
        _, tokens = task.loss(epoch, at)
        assert tokens < 0.8 * epoch.lengths[at].sum()


def test_rows_are_padded_on_the_right() -> None:
    rows = [np.array([5, 6, 7], np.int32), np.array([8], np.int32)]
    ids, lengths = pad(rows, torch.device("cpu"))
    assert ids.tolist() == [[5, 6, 7], [8, 0, 0]]
    assert lengths.tolist() == [3, 1]


def test_translation_kinds_are_drawn_by_the_square_root_of_their_number() -> None:
    kinds = np.repeat(["title", "query", "brand"], [6400, 100, 400])
    order = draw_by_kind(kinds, np.random.default_rng(0))
    names, counts = np.unique(kinds[order], return_counts=True)
    found = dict(zip(names.tolist(), counts / len(order), strict=True))
    assert found == pytest.approx(
        {"title": 80 / 110, "query": 10 / 110, "brand": 20 / 110}, abs=1e-3
    )
    times = np.bincount(order, minlength=len(kinds))
    for kind in names:
        assert np.ptp(times[kinds == kind]) <= 1  # nothing a second time before all came once


def test_a_title_that_is_the_candidate_is_dropped_even_when_it_was_cut() -> None:
    query = QueryFields("q", titles=("拉麵 辣", "牛奶", "拉麵  辣味 五入"))
    assert without_title(query, "拉麵 辣味 五入").titles == ("牛奶",)
    assert without_title(query, "尿布") is query


def _parts(model: Model, tmp_path: Path, repeat: int = 1) -> list[TaskShare]:
    snapshot = make_snapshot(tmp_path / "snapshot")
    fields = load_fields(snapshot, make_rqa(tmp_path / "rqa", snapshot))
    encoder = PromptEncoder(model.tokenizer, 96)
    rows = relevance_rows(fields, load_pairs(snapshot, "train"))
    mt = translation_rows(snapshot)
    mt = replace(mt, targets=[t * repeat for t in mt.targets])
    return [
        TaskShare(label_task(model, rows, 0.1), 1.0),
        TaskShare(TranslationTask(model, mt, encoder, seed=1), 0.1, 2.0),
    ]


def test_shares_are_those_of_the_mixture_and_losses_are_weighted(
    model: Model, tmp_path: Path
) -> None:
    draws = Mixture(_parts(model, tmp_path), batch=22, seed=0).next_step()
    assert [d.task.name for d in draws] == ["relevance", "mt"]
    assert [len(d.at) for d in draws] == [36, 2]  # 20 : 2; 36 rows make one batch, not 1.8
    assert [d.scale for d in draws] == pytest.approx([1 / 1.1, 0.2 / 1.1])


def test_twice_as_long_translations_leave_the_relevance_loss_alone(
    model: Model, tmp_path: Path
) -> None:
    short = Mixture(_parts(model, tmp_path), batch=16, seed=0)
    long = Mixture(_parts(model, tmp_path, repeat=2), batch=16, seed=0)
    for _ in range(5):
        (rel_a, mt_a), (rel_b, mt_b) = short.next_step(), long.next_step()
        assert rel_a.scale == rel_b.scale
        assert rel_a.sample_names() == rel_b.sample_names()
        assert torch.equal(rel_a.loss()[0], rel_b.loss()[0])
        assert mt_b.loss()[1] > mt_a.loss()[1]  # tokens


def test_too_long_a_translation_loses_source_text_and_never_the_slot(model: Model) -> None:
    rows = TranslationRows(["title"], ["우유 " * 40], ["牛奶"], ["ko-KR"], ["zh-TW"])
    encoder = PromptEncoder(model.tokenizer, 60)
    task = TranslationTask(model, rows, encoder, seed=0)
    assert encoder.truncated == 1
    assert task.start_epoch(0).lengths.tolist() == [60]
    text = model.tokenizer.decode(task._prompts[0])
    assert text.startswith("translate title ko-KR>zh-TW\nS:우유 우유")
    assert text.endswith("\nO:牛奶<eos>")


def test_titles_are_dropped_at_the_configured_rate_and_drawn_anew_each_epoch(
    model: Model, tmp_path: Path
) -> None:
    snapshot = make_snapshot(tmp_path / "snapshot", n=1200)
    fields = load_fields(snapshot, make_rqa(tmp_path / "rqa", snapshot))
    encoder = PromptEncoder(model.tokenizer, 96)
    rows = relevance_rows(fields, load_pairs(snapshot, "train"))
    task = label_task(model, rows, 0.25)
    bare = [min(encoder.length(rows.space, replace(q, titles=()), p), 96)
            for q, p in zip(rows.queries, rows.products, strict=True)]  # fmt: skip
    first, second = task.start_epoch(0), task.start_epoch(1)
    short = [n <= bare[i] for i, n in zip(first.order, first.lengths, strict=True)]
    assert 0.15 < np.mean(short) < 0.35  # drawn per group of siblings
    by_row = [e.variants[np.argsort(e.order)] for e in (first, second)]
    assert (by_row[0] != by_row[1]).any()
    again = task.start_epoch(0)
    assert np.array_equal(again.lengths, first.lengths)


def test_a_mixture_continues_from_its_state(model: Model, tmp_path: Path) -> None:
    whole = Mixture(_parts(model, tmp_path), batch=16, seed=3)
    names = []
    for i in range(9):
        if i == 4:
            state = whole.state()
        names.append([d.sample_names() for d in whole.next_step()])
    again = Mixture(_parts(model, tmp_path), batch=16, seed=3)
    again.load_state(state)
    assert [[d.sample_names() for d in again.next_step()] for _ in range(5)] == names[4:]
