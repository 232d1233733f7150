"""The study of curation: planted effects are judged by the rule, its market is what it says."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from click.testing import CliRunner

from csrm_tasks.blobs import text_digest
from csrm_tasks.cli.study import study
from csrm_tasks.demo.curation import run
from csrm_tasks.demo.curation.arms import Arms, Recipe
from csrm_tasks.demo.curation.effects import (
    F1,
    HARD_PRECISION,
    compare,
    f1_of,
    share_right,
)
from csrm_tasks.demo.curation.market import (
    GROUPS,
    NOISE,
    CurationMarket,
    judged,
    relevance_of,
)
from csrm_tasks.demo.curation.pages import RIGHT, Questions
from csrm_tasks.demo.curation.run import (
    CLAIMS,
    PRECISION,
    SeedResult,
    effects,
    filter_precision,
    removed,
)
from csrm_tasks.demo.curation.table import ARMS, table
from csrm_tasks.demo.market.generate import lexicon_of
from csrm_tasks.demo.market.grades import true_grade
from csrm_tasks.demo.market.world import World, make_multi_world
from csrm_tasks.demo.study.data import SeedMarket
from csrm_tasks.evaluation.paired import Interval
from csrm_tasks.markets import MarketConfig, load_market
from csrm_tasks.records import Grade
from csrm_tasks.settings import load_settings

QUERIES, PER_QUERY = 300, 6


def answered(right: float, seed: int, hard_right: float | None = None) -> pl.DataFrame:
    """Answers that are right with probability ``right``; the questions are the same always."""
    rng = np.random.default_rng([11, seed])
    n = QUERIES * PER_QUERY
    grade = (rng.random(n) < 0.7).astype(np.int64)
    hard = (rng.random(n) < 0.5) & (grade == 0)
    luck = rng.random(n)
    limit = np.where(hard, right if hard_right is None else hard_right, right)
    said = np.where(luck < limit, grade, 1 - grade) == 1
    return pl.DataFrame({
        "task": ["qc" if i % 2 else "qi" for i in range(n)],
        "query_id": [f"q{seed}-{i // PER_QUERY}" for i in range(n)],
        "pair_id": [f"p{i:05d}" for i in range(n)],
        "locale": [("zh-TW", "id-ID")[i // PER_QUERY % 2] for i in range(n)],
        "grade": grade, "hard": hard, "said": said,
    })  # fmt: skip


def slow_f1(answers: pl.DataFrame) -> float:
    found = []
    for task in ("qc", "qi"):
        rows = answers.filter(task=task).select("grade", "said").rows()
        hits = sum(g == 1 and s for g, s in rows)
        found.append(2 * hits / (sum(g for g, _ in rows) + sum(s for _, s in rows)))
    return sum(found) / 2


def test_measures_are_those_of_a_slow_reference() -> None:
    for seed in range(3):
        answers = answered(0.8, seed).sample(fraction=1.0, shuffle=True, seed=seed)
        assert float(F1.figure(F1.counts(answers).sum(0))) == pytest.approx(slow_f1(answers))
        parts = [float(m.figure(m.counts(answers).sum(0))) for m in map(f1_of, ("qc", "qi"))]
        assert sum(parts) / 2 == pytest.approx(slow_f1(answers)) and parts[0] != parts[1]
        rows = answers.filter(task="qi").select("grade", "hard", "said").rows()
        claimed = [g for g, hard, said in rows if said and (g == 1 or hard)]
        found = float(HARD_PRECISION.figure(HARD_PRECISION.counts(answers).sum(0)))
        assert found == pytest.approx(sum(claimed) / len(claimed))


def test_a_planted_gain_holds_and_a_planted_loss_does_not() -> None:
    control = [answered(0.75, s) for s in range(5)]
    better = compare(F1, "gain", [answered(0.8, s) for s in range(5)], control)
    assert better.verdict == "holds" and len(better.seeds) == 5
    exact = [slow_f1(answered(0.8, s)) - slow_f1(answered(0.75, s)) for s in range(5)]
    assert better.seeds == pytest.approx(exact)
    worse = [answered(0.7, s) for s in range(5)]
    assert compare(F1, "gain", worse, control).verdict == "does not hold"
    assert compare(F1, "no loss", worse, control).verdict == "does not hold"
    assert compare(F1, "no loss", control, control).verdict == "holds"
    assert compare(F1, "gain", control, control).verdict == "does not hold"


def test_precision_on_hard_ones_sees_what_is_near_alone() -> None:
    control = [answered(0.75, s) for s in range(5)]
    near = [answered(0.75, s, hard_right=0.9) for s in range(5)]
    assert compare(HARD_PRECISION, "gain", near, control).verdict == "holds"
    far = [
        t.with_columns(said=pl.col("said") & (pl.col("hard") | (pl.col("grade") == 1)))
        for t in control
    ]
    same = compare(HARD_PRECISION, "gain", far, control)
    assert same.by_query == Interval(0.0, 0.0, 0.0)


def test_the_filters_precision_is_the_share_of_wrong_labels_that_it_removed() -> None:
    truth = pl.DataFrame({
        "task": ["qi"] * 5 + ["qc"], "split": ["train"] * 6, "pair_id": [f"p{i}" for i in range(6)],
        "grade": [1, 1, 0, 0, 1, 1], "yes": [True, False, True, False, False, False],
    })  # fmt: skip
    decisions = pl.DataFrame({
        "pair_id": [f"p{i}" for i in range(5)], "query_id": ["a", "a", "b", "b", "c"],
        "action": ["remove", "remove", "remove", "keep", "keep"],
    })  # fmt: skip
    gone, recall = removed(decisions, truth)
    assert sorted(gone.rows()) == [("a", False), ("a", True), ("b", True)]
    assert recall == pytest.approx(2 / 3)
    many = pl.DataFrame(
        {"query_id": [f"q{i // 2}" for i in range(200)], "wrong": [i % 20 > 0 for i in range(200)]}
    )
    found = share_right([many, many, many])
    assert found.by_query.value == pytest.approx(0.95) and found.seeds == (0.95,) * 3
    assert found.verdict == "holds"
    assert filter_precision([SeedResult(0)]) is None
    results = [SeedResult(i, flagged=flagged) for i, flagged in enumerate([many, many[:0], many])]
    row = next(line for line in table(results).splitlines() if line.startswith(f"| {PRECISION}"))
    assert row.split(" | ")[-3:] == ["95.0", "–", "95.0 |"]  # each below its seed
    assert filter_precision([SeedResult(0, flagged=gone.clear())]) is None


@pytest.fixture(scope="module")
def market() -> MarketConfig:
    return load_market("multi", load_settings().markets)


@pytest.fixture(scope="module")
def world() -> World:
    return make_multi_world(lexicon_of(GROUPS), 800, 3)


@pytest.fixture(scope="module")
def truth(world: World, market: MarketConfig) -> pl.DataFrame:
    known = [q for locale in market.locales for q in Questions(world, locale).queries]
    return judged(world, market, pl.DataFrame({"query_id": known}))


def test_the_market_has_absent_languages_and_the_noise_and_shares_that_it_says(
    truth: pl.DataFrame, market: MarketConfig
) -> None:
    train, gold = (truth.filter(split=s) for s in ("train", "gold"))
    assert set(train["locale"]) == {*market.source_locales}
    assert set(gold["locale"]) == {market.target_locale, *market.evaluation_locales}
    wrong = truth.select("split", "task", wrong=pl.col("yes") != (pl.col("grade") == 1))
    assert not wrong.filter(pl.col("split") != "train")["wrong"].any()
    for task in ("qc", "qi"):
        assert wrong.filter(split="train", task=task)["wrong"].mean() == pytest.approx(
            NOISE, abs=0.03
        )
        for split in ("train", "gold"):
            share = truth.filter(split=split, task=task)["yes"].mean()
            assert share == pytest.approx(RIGHT, abs=0.05)
    sides = truth.with_columns(norm=pl.col("query").str.to_lowercase()).group_by("norm")
    assert sides.agg(pl.col("split").n_unique())["split"].max() == 1  # A10
    hard = {
        s: truth.filter(~pl.col("yes"), split=s, task="qi")["hard"].mean()
        for s in ("train", "gold")
    }
    assert hard["train"] < 0.2 < 0.4 < hard["gold"]
    known = relevance_of(truth)
    assert set(known["grade"]) == {int(Grade.IRRELEVANT), int(Grade.EXACT)}
    assert set(known["pair_id"]) == set(truth.filter(task="qi")["pair_id"])


def test_true_answers_are_those_of_the_rule(world: World, market: MarketConfig) -> None:
    questions = Questions(world, market.target_locale)
    specs = {p.product_id: p.spec for p in world.target.products}
    for identifier, query in list(questions.queries.items())[:60]:
        for asked in questions.of(identifier, 0.6):
            if asked.task == "qi":
                grade = true_grade(world.lexicon, query, specs[asked.product_id])
                assert asked.yes == (grade == Grade.EXACT)
            elif query.type is not None:
                path = world.lexicon.groups[world.lexicon.types[query.type].group].path.en
                assert asked.yes == (asked.item in (path, path.split(" > ")[0]))


def _seed(number: int, arms: Iterator[str] | None = None) -> SeedResult:
    result = SeedResult(number)
    names = {name for claim in CLAIMS for name in (claim.arm, claim.control)} | set(ARMS)
    for name in arms or names:
        right = 0.8 if name in ("translated", "kept", "dev") else 0.75
        result.answers[name] = answered(right, number)
    result.flagged = pl.DataFrame({"query_id": ["a", "b"], "wrong": [True, True]})
    result.recall = 0.5
    delta = {"value": -0.02, "lo": -0.04, "hi": -0.01}
    result.options = [{"option": "filter", "kept": False, "delta": delta}]
    return result


def test_the_table_says_every_claim_and_what_is_missing() -> None:
    results = [_seed(0), _seed(1), SeedResult(2, {"base": answered(0.7, 2)})]
    text = table(results)
    assert "nan" not in text
    for claim, effect in effects(results):
        line = next(x for x in text.splitlines() if f"| {claim.title} (" in x)
        assert f"**{effect.verdict}**" in line and line.endswith("| – |")
    assert "| `filter` | dropped, -2.0 [-4.0, -1.0] | dropped, -2.0 [-4.0, -1.0] | – |" in text
    assert "| 100.0 | [100.0, 100.0] |" in text
    assert "nan" not in table([_seed(0)]) and table([SeedResult(0)])


def test_the_command_keeps_its_table_as_it_grows(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The command over made-up seeds; each part of each is written down."""
    asked: list[int] = []

    def one_seed(market: int, recipe: Recipe, result: SeedResult) -> Iterator[str]:
        asked.append(market)
        result.answers["base"] = answered(0.7, market)
        yield "base"
        result.answers["translated"] = answered(0.8, market)
        yield "translated"

    monkeypatch.setattr(run, "one_seed", one_seed)
    monkeypatch.setattr(
        "csrm_tasks.demo.curation.market.curation_market", lambda base, home, seed: seed
    )
    monkeypatch.setenv("CSRM_HOME", str(tmp_path))
    done = CliRunner().invoke(study, ["curation", "--seeds", "2", "--first", "3"])
    assert done.exit_code == 0, done.output
    assert asked == [3, 4] and done.output.count("translation raises F1") == 3
    assert "seed 4" in (tmp_path / "curation.md").read_text()


@dataclass
class Recorder:
    """Stands in for ``run_step``: remembers what was asked for and makes up references."""

    asked: list[tuple[str, MarketConfig, dict[str, Any], dict[str, Any]]] = field(
        default_factory=list
    )

    def __call__(
        self,
        name: str,
        market: MarketConfig,
        inputs: dict[str, Any],
        params: dict[str, Any],
        _: Any,
    ) -> str:
        self.asked.append((name, market, dict(inputs), dict(params)))
        told = f"{name} {market.seed} {params} {inputs}"
        told += market.filter.action or "" if name == "filter_noise" else ""
        return f"{name}-{text_digest(told)[:8]}"

    def trained(self) -> dict[str, tuple[MarketConfig, dict[str, Any]]]:
        """Return market and inputs of every arm; of two of a name the first."""
        found: dict[str, tuple[MarketConfig, dict[str, Any]]] = {}
        for name, market, inputs, params in self.asked:
            if name == "train_llm" and not params.get("ranker"):
                found.setdefault(params["arm"], (market, inputs))
        return found


@pytest.fixture
def recorded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, market: MarketConfig, truth: pl.DataFrame
) -> Recorder:
    """Run one seed of the study against a recorder."""
    made = Recorder()
    options = [{"option": "filter", "kept": True, "delta": {"value": 0.0, "lo": 0.0, "hi": 0.0}}]
    for module in ("csrm_tasks.demo.curation.arms", "csrm_tasks.demo.study.arms"):
        monkeypatch.setattr(f"{module}.run_step", made)
    monkeypatch.setattr(Arms, "facts", lambda *_: {"dev_micro_f1": 0.5, "options": options})
    monkeypatch.setattr(run, "_halves", lambda *_: (answered(0.8, 0), answered(0.7, 0)))
    monkeypatch.setattr(run, "_judge", lambda result, name, *_: result.answers.update({name: 1}))
    monkeypatch.setattr(run, "_decisions", lambda *_: None)
    monkeypatch.setattr(run, "removed", lambda *_: (None, 0.5))
    settings = load_settings({"CSRM_HOME": str(tmp_path)})
    seed = SeedMarket(market, settings, "frozen", "frozen")
    result = SeedResult(0)
    parts = list(run.one_seed(CurationMarket(seed, truth), Recipe(), result))
    assert parts == [
        "base", "translated", "negatives", "filtered", "weighed", "merged", "kept",
    ]  # fmt: skip
    assert set(ARMS) <= set(result.answers)
    return made


def test_an_arm_differs_from_its_control_in_one_input(recorded: Recorder) -> None:
    trained = recorded.trained()
    own, base = trained["base"]
    added = {"translated": {"translated"}, "negatives": {"negatives"}, "filtered": {"filtered"},
             "weighed": {"filtered"},
             "kept": {"translated", "negatives", "filtered", "ablation"}}  # fmt: skip
    for arm, names in added.items():
        other, given = trained[arm]
        assert {k for k in given if given.get(k) != base.get(k)} == names
        same = ("steps", "batch", "lr", "lora", "mixture", "siblings")
        assert all(getattr(other.llm, k) == getattr(own.llm, k) for k in same)
    weighed, filtered = trained["weighed"], trained["filtered"]
    assert weighed[1]["filtered"] != filtered[1]["filtered"]
    assert (weighed[0].filter.action, filtered[0].filter.action) == ("down_weight", "remove")
    seeds = [m.seed for n, m, _, p in recorded.asked if n == "train_llm" and p["arm"] == "base"]
    assert len(seeds) == len(set(seeds)) == Recipe.trainings


def test_gold_is_only_scored_and_options_are_tried_on_what_the_arms_learn(
    recorded: Recorder,
) -> None:
    assert not [n for n, _, _, p in recorded.asked if p.get("split") == "gold"]  # by _judge alone
    runs = [(m, i, p) for n, m, i, p in recorded.asked if n == "ablation_run"]
    tried = ["", "llm.negatives", "llm.augmentation", "filter"]
    assert [p["without"] for _, _, p in runs] == tried * Recipe.ablation_seeds
    assert {m.ablation.steps for m, _, _ in runs} == {None}  # half of a training's, by default
    trained = recorded.trained()
    for name in ("translated", "negatives", "filtered"):
        assert {i[name] for _, i, _ in runs} == {trained[name][1][name]}
