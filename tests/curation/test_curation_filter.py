"""The self-validation filter: folds without leaks, planted noise found, dev and gold left alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from csrm_tasks.artifacts import Artifact, ArtifactStore
from csrm_tasks.curation import folds as folding
from csrm_tasks.curation import noise
from csrm_tasks.errors import ConfigError, DataError
from csrm_tasks.markets import MarketConfig
from csrm_tasks.records import DECISIONS, PAIRS, QUERIES, read_table, write_table
from csrm_tasks.sections import Filter
from csrm_tasks.settings import Settings
from csrm_tasks.steps import run_step
from csrm_tasks.text import normalise
from tests.curation_fixtures import fold_of, noisy_snapshot
from tests.data_fixtures import market

pytestmark = pytest.mark.usefixtures("fingerprints_hold")


class World:
    """A market with a published snapshot whose truth is known."""

    def __init__(self, home: Settings, folder: Path, **more: Any) -> None:
        self.home, self.folder = home, folder
        self.store = ArtifactStore(home.artifacts, home.cache)
        self.truth = noisy_snapshot(folder, **more)
        made = self.store.publish("tiny/snapshot/0", folder, facts={}, inputs={}, about={})
        self.snapshot = made.ref

    def run(self, step: str, config: MarketConfig, inputs: dict[str, Any], **p: Any) -> Artifact:
        given = {"snapshot": self.snapshot} | inputs
        return self.store.open(run_step(step, config, given, p, self.home))

    def folds(self, config: MarketConfig) -> list[str]:
        return [self.run("filter_fold", config, {}, fold=k).ref for k in range(config.filter.folds)]

    def filter(self, **rules: Any) -> Artifact:
        config = filtering(**rules)
        return self.run("filter_noise", config, {"folds": self.folds(config)})


def filtering(**rules: Any) -> MarketConfig:
    return market(filter=Filter(**({"action": "remove", "scorer": "linear"} | rules)))


def decisions(made: Artifact) -> pl.DataFrame:
    return read_table(made.file("decisions.parquet"), DECISIONS)


@pytest.fixture
def world(settings: Settings, tmp_path: Path) -> World:
    return World(settings, tmp_path / "snapshot", queries=90)


def out_of_fold(folder: Path, rules: Filter) -> pl.DataFrame:
    config = market(filter=rules)
    parts = (folding.held_out_scores(config, folder, k, None, folder) for k in range(rules.folds))
    return pl.concat(parts).sort("pair_id")


def by_truth(truth: dict[str, int], found: pl.DataFrame) -> list[bool]:
    """Return of each flagged pair whether its label is wrong."""
    flagged = found.filter(pl.col("action") != "keep")
    return [truth[p] != g for p, g in flagged.select("pair_id", "grade").iter_rows()]


def test_planted_wrong_labels_are_found_and_nothing_but_train_is_judged(
    settings: Settings, tmp_path: Path
) -> None:
    world = World(settings, tmp_path / "snapshot", noise=0.15, seed=31)
    made = world.filter(max_share=0.5)
    found = decisions(made)
    pairs = pl.read_parquet(world.folder / "pairs.parquet")
    train = pairs.filter(split="train")
    assert found["pair_id"].to_list() == sorted(train["pair_id"])
    flagged, kept = found.filter(action="remove"), found.filter(action="keep")
    assert np.mean(by_truth(world.truth, found)) >= 0.9 and flagged.height >= 50
    assert (flagged["weight"] == 0).all() and (flagged["reason"] != "").all()
    assert (kept["weight"] == 1).all() and (kept["reason"] == "").all()
    assert made.facts["threshold"]["chosen_by"] == "dev"
    assert made.facts["threshold"]["precision"] >= noise.PRECISION
    assert made.facts["flagged"] == flagged.height


@pytest.mark.parametrize("seed", range(32, 36))
def test_what_is_flagged_is_wrong_by_truth(tmp_path: Path, seed: int) -> None:
    truth = noisy_snapshot(tmp_path, noise=0.15, seed=seed)
    rules = Filter(action="remove", scorer="linear", max_share=0.5)
    scored = out_of_fold(tmp_path, rules)
    line = noise.choose_threshold(scored, rules)
    wrong = by_truth(truth, noise.decide(scored, rules, line.value))
    assert len(wrong) >= 20 and np.mean(wrong) >= 0.9


def test_where_labels_are_right_that_no_text_shows_nothing_is_flagged(tmp_path: Path) -> None:
    """A model is sure and wrong here; a fixed line would throw good labels away."""
    truth = noisy_snapshot(tmp_path, odd=0.05, seed=36)
    rules = Filter(action="down_weight", scorer="linear")
    scored = out_of_fold(tmp_path, rules)
    line = noise.choose_threshold(scored, rules)
    assert line == noise.Threshold(noise.NOTHING, "dev")
    assert by_truth(truth, noise.decide(scored, rules, line.value)) == []
    assert np.mean(by_truth(truth, noise.decide(scored, rules, noise.USUAL))) < 0.75


def test_gold_changes_nothing(world: World, settings: Settings, tmp_path: Path) -> None:
    """Gold's labels are all wrong here; without any gold pair the decisions are the same bytes."""
    path = world.folder / "pairs.parquet"
    pairs = pl.read_parquet(path)
    write_table(pairs.filter(pl.col("split") != "gold"), PAIRS, path)
    config = filtering()
    for fold in range(2):
        with_gold = world.run("filter_fold", config, {}, fold=fold)
        scored = pl.read_parquet(with_gold.file("scored.parquet"))
        assert set(scored["split"]) == {"train", "dev"}
        again = folding.held_out_scores(config, world.folder, fold, None, tmp_path)
        assert again.select("pair_id", "p0", "p1", "p2").equals(
            scored.select("pair_id", "p0", "p1", "p2")
        )


def test_the_same_from_the_same_whatever_else_has_run(world: World, tmp_path: Path) -> None:
    rules: dict[str, Any] = {"threshold": 0.8, "max_share": 0.5}
    one, config = world.filter(**rules), filtering(**rules)
    assert one.facts["flagged"]
    parts = [folding.held_out_scores(config, world.folder, k, None, tmp_path) for k in (1, 0)]
    scored = pl.concat(parts).sort("pair_id")
    line = noise.choose_threshold(scored, config.filter)
    write_table(noise.decide(scored, config.filter, line.value), DECISIONS, tmp_path / "d.parquet")
    assert (tmp_path / "d.parquet").read_bytes() == one.file("decisions.parquet").read_bytes()


norms = st.text("가나다abc ", min_size=1, max_size=6)


@hypothesis_settings(max_examples=300)
@given(
    texts=st.lists(norms, min_size=1, max_size=12, unique=True),
    folds=st.integers(2, 10),
    data=st.data(),
)
def test_no_query_text_is_in_two_folds(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], folds: int, data: st.DataObject
) -> None:
    """In both locales, in whichever order, beside whichever other queries; against a hash by hand.

    What a fold's model learns from (all pairs of other folds) shares no text with what it judges.
    """
    folder = tmp_path_factory.mktemp("folds")
    queries = [
        (f"{loc}{n}", loc, n, n, "", "label", 1) for n in texts for loc in ("ko-KR", "zh-TW")
    ]
    queries = data.draw(st.permutations(queries))
    splits = {n: data.draw(st.sampled_from(["train", "dev", "gold"])) for n in texts}
    pairs = [(f"{q[0]}/{k}", q[0], f"p{k}", q[1], k, splits[q[3]], 1, 1)
             for q in queries for k in (0, 1)]  # fmt: skip
    write_table(
        pl.DataFrame(queries, dict(QUERIES), orient="row"), QUERIES, folder / "queries.parquet"
    )
    write_table(pl.DataFrame(pairs, dict(PAIRS), orient="row"), PAIRS, folder / "pairs.parquet")
    found = folding.judged(folder, folds)
    text_of = {q[0]: q[3] for q in queries}
    assert found["pair_id"].to_list() == [p[0] for p in pairs if p[5] != "gold"]
    for query, fold in found.select("query_id", "fold").iter_rows():
        assert fold == fold_of(text_of[query], folds)
    for k in range(folds):
        judged, learnt = (
            {text_of[q] for q in found.filter(side)["query_id"]}
            for side in (pl.col("fold") == k, pl.col("fold") != k)
        )
        assert not judged & learnt


level = st.text("abA ㄱ", min_size=1, max_size=2).map(str.strip).filter(bool)


@hypothesis_settings(max_examples=200)
@given(
    paths=st.lists(st.lists(level, max_size=5), min_size=1, max_size=12),
    folds=st.integers(2, 10),
    tail=st.lists(level, max_size=2),
)
def test_no_branch_of_categories_is_in_two_folds(
    paths: list[list[str]], folds: int, tail: list[str]
) -> None:
    """By the first three levels, whatever else there is; against a hash by hand."""
    deeper = [path[:3] + tail if len(path) >= 3 else path for path in paths]
    texts = [" > ".join(path) for path in [*paths, *deeper]]
    found = folding.fold_numbers_of_paths(pl.Series("category", texts), folds).to_list()
    assert found[: len(paths)] == found[len(paths) :]
    for path, fold in zip([*paths, *deeper], found, strict=True):
        assert fold == fold_of(normalise(" > ".join(path[:3])), folds)
    shouted = pl.Series("category", [text.upper() for text in texts])
    assert folding.fold_numbers_of_paths(shouted, folds).to_list() == found


def scored(rows: list[tuple[str, str, int, int, tuple[float, float, float]]]) -> pl.DataFrame:
    """Rows of split, locale, grade, agree, probabilities."""
    return pl.DataFrame(
        [
            (f"{i:05d}", f"q{i}", f"p{i}", loc, g, split, max(1, a), a, 0, *p)
            for i, (split, loc, g, a, p) in enumerate(rows)
        ],
        PAIRS | {"fold": pl.Int64} | dict.fromkeys(("p0", "p1", "p2"), pl.Float32),
        orient="row",
    )


RIGHT, WRONG = (0.05, 0.05, 0.9), (0.9, 0.05, 0.05)  # of pairs labelled 2


@pytest.mark.parametrize(
    ("rules", "flagged", "line"),
    [
        (
            {},
            2,
            "remove 2 of 19 train pairs of label 2 in ko-KR: 10.5%, more than filter.max_share",
        ),
        ({}, 19, "remove 19 of 19 train pairs of label 2 in ko-KR: all, which leaves none"),
        ({"max_share": 0.5}, 19, "all, which leaves none"),
        ({}, 1, None),
        ({"max_share": 0.2}, 2, None),
        ({"action": "down_weight"}, 19, None),
        ({"action": "review"}, 19, None),
    ],
)
def test_too_many_of_a_label_in_a_language_are_not_removed(
    rules: dict[str, Any], flagged: int, line: str | None
) -> None:
    rows = [("train", "ko-KR", 2, 1, WRONG if i < flagged else RIGHT) for i in range(19)]
    rows += [("train", "zh-TW", 2, 1, RIGHT)] * 100  # another language does not make up for it
    chosen = Filter(**({"action": "remove"} | rules))
    if line is not None:
        with pytest.raises(DataError, match=line) as caught:
            noise.decide(scored(rows), chosen, 0.8)
        assert "\n" not in str(caught.value) and "filter.action: review" in str(caught.value)
        return
    found = noise.decide(scored(rows), chosen, 0.8)
    assert (found["action"] != "keep").sum() == flagged
    weight = {"remove": 0.0, "down_weight": 0.3, "review": 1.0}[chosen.action or ""]
    assert set(found.filter(pl.col("action") != "keep")["weight"].round(3)) == {weight}


def test_a_label_that_two_raters_gave_stays() -> None:
    rows = [("train", "ko-KR", 2, agree, WRONG) for agree in (1, 2, 3)]
    rows += [("train", "ko-KR", 2, 1, RIGHT)] * 20
    found = noise.decide(scored(rows), Filter(action="remove"), 0.8)
    assert found.filter(action="remove")["pair_id"].to_list() == ["00000"]


def test_the_threshold_is_the_least_at_which_dev_says_that_alarms_are_true() -> None:
    """At 0.6 the model errs on dev as often as it contradicts train labels, at 0.9 never."""
    unsure, unsure_wrong = (0.2, 0.15, 0.65), (0.65, 0.15, 0.2)
    train = [("train", "ko-KR", 2, 1, WRONG)] * 30 + [("train", "ko-KR", 2, 1, RIGHT)] * 100
    train += [("train", "ko-KR", 2, 1, unsure_wrong)] * 30 + [("train", "ko-KR", 2, 1, unsure)] * 40
    dev = [("dev", "ko-KR", 2, 2, RIGHT)] * 200
    dev += [("dev", "ko-KR", 2, 2, unsure_wrong)] * 30 + [("dev", "ko-KR", 2, 2, unsure)] * 40
    rules = Filter(action="remove")
    found = noise.choose_threshold(scored(train + dev), rules)
    assert (found.value, found.chosen_by) == (0.65, "dev")
    assert found.precision == pytest.approx(1 - (1 - 0.05 ** (1 / 200)) * 130 / 30, abs=1e-4)
    # a model that is sure and wrong on dev as often as on train proves nothing of the labels
    bad = dev + [("dev", "ko-KR", 2, 2, WRONG)] * 30
    assert noise.choose_threshold(scored(train + bad), rules).value == noise.NOTHING
    alone = [(s, loc, g, 1, p) for s, loc, g, _, p in dev]  # nobody who confirms dev's labels
    assert noise.choose_threshold(scored(train + alone), rules) == noise.Threshold(0.8, "default")
    told = Filter(action="remove", threshold=0.7)
    assert noise.choose_threshold(scored(train + dev), told).value == 0.7


def test_dev_of_a_language_without_train_labels_does_not_draw_the_line() -> None:
    """A model errs there as it never does on a pair that may be flagged."""
    train = [("train", "ko-KR", 2, 1, WRONG)] * 30 + [("train", "ko-KR", 2, 1, RIGHT)] * 100
    dev = [("dev", "ko-KR", 2, 2, RIGHT)] * 200
    absent = [("dev", "id-ID", 2, 2, WRONG)] * 100
    rules = Filter(action="remove")
    known = noise.choose_threshold(scored(train + dev), rules)
    assert known.chosen_by == "dev" and known.value < noise.NOTHING
    assert noise.choose_threshold(scored(train + dev + absent), rules) == known
    assert noise.choose_threshold(scored(train + absent), rules).chosen_by == "default"


def test_wrong_folds_are_refused_in_one_line(world: World) -> None:
    config = filtering()
    with pytest.raises(ConfigError, match="there is no fold 2 of 2, counted from 0"):
        world.run("filter_fold", config, {}, fold=2)
    one, two = world.folds(config)
    with pytest.raises(ConfigError, match="needs all 2 folds in input 'folds', not 1"):
        world.run("filter_noise", config, {"folds": [one]})
    with pytest.raises(DataError, match="is not fold 0 of 2 of this snapshot"):
        world.run("filter_noise", config, {"folds": [two, one]})
    with pytest.raises(ConfigError, match=r"filter.action is null"):
        world.run("filter_noise", market(), {"folds": [one, two]})


def test_a_label_that_the_other_folds_lack_is_refused(world: World) -> None:
    path = world.folder / "pairs.parquet"
    pairs = folding.judged(world.folder, 2)
    mine = (pl.col("fold") == 0) | (pl.col("grade") != 2) | (pl.col("split") != "train")
    write_table(pairs.filter(mine), PAIRS, path)
    with pytest.raises(DataError, match="fold 0 of 2 has label 2 in none of the other folds"):
        folding.held_out_scores(filtering(), world.folder, 0, None, world.folder)
