"""The study of the LLM's steps: planted effects are found, and its data are what it says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from csrm_tasks.blobs import text_digest
from csrm_tasks.demo.market.generate import demo_world
from csrm_tasks.demo.market.grades import true_grade
from csrm_tasks.demo.market.labels import default_queries
from csrm_tasks.demo.market.queries import make_queries
from csrm_tasks.demo.market.world import TARGET
from csrm_tasks.demo.study.data import PAGE, SeedMarket, thinned, with_noise, with_truth
from csrm_tasks.demo.study.effects import Effect, compare, over_seeds, queries_needed
from csrm_tasks.demo.study.run import COMPARISONS, Recipe, SeedResult, effects, run_study
from csrm_tasks.demo.study.table import table
from csrm_tasks.demo.study.verdict import verdict
from csrm_tasks.markets import MarketConfig, load_market
from csrm_tasks.records import PAIRS
from csrm_tasks.settings import load_settings
from csrm_tasks.text import normalise, query_id

Asked = Mapping[str, Any]

QUERIES, PER_QUERY = 400, 6


def answered(right: float, seed: int, shift: Sequence[bool] | None = None) -> pl.DataFrame:
    """Answers of a model that is right with probability ``right``, the same questions always."""
    rng = np.random.default_rng([7, seed])
    n = QUERIES * PER_QUERY
    grade = rng.integers(0, 3, n)
    luck = rng.random(n)  # the same for every ``right``: two models differ where it lies between
    said = np.where(luck < right, grade, (grade + 1) % 3)
    query = np.repeat(np.arange(QUERIES), PER_QUERY)
    return pl.DataFrame({
        "query_id": [f"q{seed}-{i}" for i in query], "pair_id": [f"p{i:05d}" for i in range(n)],
        "grade": grade, "said": said,
    })  # fmt: skip


def planted(difference: float, seeds: int = 5) -> Effect:
    """The comparison of two models that truly differ by ``difference``."""
    arms = [answered(0.6 + difference, s) for s in range(seeds)]
    return compare("x", "y", arms, [answered(0.6, s) for s in range(seeds)])


@pytest.mark.parametrize(
    ("difference", "expected"),
    [(0.03, "holds"), (0.0, "does not hold"), (-0.03, "does not hold")],
)
def test_planted_differences_are_found_and_judged(difference: float, expected: str) -> None:
    effect = planted(difference)
    assert abs(effect.by_query.value - difference) < 0.006
    assert effect.by_query.lo <= difference <= effect.by_query.hi
    assert effect.verdict == expected


def test_an_effect_in_some_seeds_only_is_not_decided() -> None:
    """Queries alone would decide it; the seeds disagree, so it may not come again."""
    signs = (0.08, 0.08, 0.08, -0.04, -0.04)
    arms = [answered(0.6 + d, s) for s, d in enumerate(signs)]
    effect = compare("x", "y", arms, [answered(0.6, s) for s in range(5)])
    assert effect.by_query.lo > 0 > effect.by_seed.lo
    assert effect.verdict == "not decided"


def test_each_seed_is_paired_by_query_whatever_the_order_of_its_rows() -> None:
    arm, control = answered(0.7, 0), answered(0.6, 0)
    straight = compare("x", "y", [arm], [control])
    shuffled = compare("x", "y", [arm.sample(fraction=1.0, shuffle=True, seed=3)], [control])
    assert straight.by_query == shuffled.by_query
    exact = float((arm["grade"] == arm["said"]).sum() - (control["grade"] == control["said"]).sum())
    assert straight.seeds[0].value == pytest.approx(exact / arm.height)


def test_the_interval_over_seeds_is_students() -> None:
    from scipy.stats import ttest_1samp

    values = [0.01, 0.03, 0.02, 0.05, 0.01]
    lo, hi = ttest_1samp(values, 0.0).confidence_interval()
    found = over_seeds(values)
    assert (found.value, found.lo, found.hi) == pytest.approx((0.024, lo, hi))
    assert np.isnan(over_seeds([0.01]).lo)  # one seed decides nothing
    assert verdict("gain", over_seeds([0.01])) == "not decided"


def test_as_many_queries_as_it_says_decide_a_point() -> None:
    """With that many queries, the standard error is a point over (1.96 + 0.84)."""
    effect = planted(0.01)
    n = queries_needed(effect, 5 * QUERIES)
    error = (effect.by_query.hi - effect.by_query.lo) / 2 / 1.96
    assert error * np.sqrt(5 * QUERIES / n) == pytest.approx(0.01 / 2.80, rel=0.01)


def test_the_table_says_every_comparison_and_what_is_missing() -> None:
    arms = {arm for pair in COMPARISONS for arm in pair}
    results = [
        SeedResult(s, {a: answered(0.6, s) for a in arms}, {"sft": 1.2, "mt": 1.0 + s / 100})
        for s in range(3)
    ]
    del results[2].answers["sd"]
    found = effects(results)
    assert [(e.arm, e.control) for e in found] == list(COMPARISONS)
    assert [len(e.seeds) for e in found] == [3, 3, 3, 3, 2, 3, 2]
    lines = table(results).splitlines()
    gap = next(line for line in lines if "transfer gap:" in line)
    assert "+0.190" in gap and "holds" in gap
    assert next(line for line in lines if "`sd` −" in line).endswith("| – |")
    assert all(any(f"micro-F1, `{arm}`" in line for line in lines) for arm in arms)
    assert "nan" not in table(results[:1])


@pytest.fixture(scope="module")
def pairs() -> pl.DataFrame:
    """Judged pairs (PAIRS) of 300 queries in two locales."""
    rng = np.random.default_rng(0)
    query = np.repeat(np.arange(300), 10)
    frame = pl.DataFrame({
        "pair_id": [f"p{i}" for i in range(3000)], "query_id": [f"q{i:03d}" for i in query],
        "product_id": [f"x{i}" for i in range(3000)],
        "locale": np.where(query % 2, "ko-KR", "zh-TW"), "grade": rng.integers(0, 3, 3000),
        "split": np.where(query < 200, "train", np.where(query < 250, "dev", "gold")),
        "raters": 1, "agree": 1,
    })  # fmt: skip
    return frame.select(pl.col(c).cast(t) for c, t in PAIRS.items())


def test_noise_falls_on_a_fifth_of_the_train_labels_alone(pairs: pl.DataFrame) -> None:
    noisy = with_noise(pairs, 0.2, seed=1)
    changed = pairs["grade"] != noisy["grade"]
    train = pairs["split"] == "train"
    assert not (changed & ~train).any()
    assert 0.17 < float((changed & train).sum()) / float(train.sum()) < 0.23
    both = pl.DataFrame({"old": pairs["grade"], "new": noisy["grade"]}).filter(changed)
    assert both.group_by("old", "new").len().height == 6  # every grade becomes either other one
    assert with_noise(pairs, 0.2, seed=1).equals(noisy)


def test_thinning_takes_whole_queries_of_one_locale(pairs: pl.DataFrame) -> None:
    few = thinned(pairs, "ko-KR", 0.25, seed=1)
    gone = pairs.join(few, on="pair_id", how="anti")
    assert set(gone["split"]) == {"train"} and set(gone["locale"]) == {"ko-KR"}
    assert gone["query_id"].n_unique() == 75 and gone.height == 750
    assert thinned(pairs, "ko-KR", 0.25, seed=1).equals(few)


def test_gold_is_the_truth_of_queries_that_no_rater_saw(pairs: pl.DataFrame) -> None:
    world = demo_world(500, 0)
    made = make_queries(world, TARGET, default_queries(world)[TARGET])
    by_id = {query_id(TARGET, q.text): q for q in made.queries}
    train = list(by_id)[:20]
    given = pairs.with_columns(
        query_id=pl.when(pl.col("split") == "train").then(pl.lit(train[0])).otherwise("query_id")
    )
    known = pl.DataFrame(
        {"query_id": list(by_id), "norm": [normalise(q.text) for q in by_id.values()]}
    )
    alike = list(by_id)[30]  # the source's raters have judged the same text
    text = normalise(by_id[alike].text)
    known = pl.concat([known, pl.DataFrame({"query_id": ["source"], "norm": [text]})])
    labelled = given.filter(split="train").head(1).with_columns(query_id=pl.lit("source"))
    given = pl.concat([given, labelled])
    gold = with_truth(given, known, world).filter(pl.col("split") == "gold")
    assert gold["query_id"].n_unique() > 50
    assert gold.group_by("query_id").len()["len"].max() == PAGE
    assert not {train[0], alike} & set(gold["query_id"])
    specs = {p.product_id: p.spec for p in world.target.products}
    for query, product, grade in gold.select("query_id", "product_id", "grade").iter_rows():
        assert grade == true_grade(world.lexicon, by_id[query], specs[product])


@dataclass
class Recorder:
    """Stands in for ``run_step``: remembers what was asked for and makes up references."""

    trained: dict[str, tuple[MarketConfig, Asked]] = field(default_factory=dict)
    scored: list[Asked] = field(default_factory=list)

    def __call__(
        self,
        name: str,
        market: MarketConfig,
        inputs: dict[str, Any],
        params: dict[str, Any],
        _: Any,
    ) -> str:
        about = f"{name} {params} {inputs}"
        if name == "train_llm" and not params.get("ranker"):
            self.trained[params["arm"]] = (market, inputs)
            return f"llm-{params['arm']}"
        if params.get("split") == "gold":
            self.scored.append(inputs)
        return f"{name}-{text_digest(about)[:8]}"


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch, pairs: pl.DataFrame, tmp_path: Path) -> Recorder:
    """Run the study of one seed against a recorder."""
    made = Recorder()
    monkeypatch.setattr("csrm_tasks.demo.study.arms.run_step", made)
    monkeypatch.setattr("csrm_tasks.demo.study.run.load_pairs", lambda *_: pairs)
    monkeypatch.setattr("csrm_tasks.demo.study.run.derive", lambda *_: "noisy")
    monkeypatch.setattr(
        "csrm_tasks.demo.study.run.facts", lambda *_: {"train_fit": 0.5, "transfer_gap": 1.0}
    )
    monkeypatch.setattr("csrm_tasks.demo.study.run.answers", lambda *_: answered(0.6, 0))
    settings = load_settings({"CSRM_HOME": str(tmp_path)})
    market = load_market("demo", settings.markets)
    seed = SeedMarket(market, settings, "stage1", "stage2")
    *_, last = run_study(lambda _: seed, [0], Recipe())
    assert {arm for pair in COMPARISONS for arm in pair} == set(last[0].answers)
    return made


def test_an_arm_and_its_control_differ_in_one_thing(recorder: Recorder) -> None:
    for arm, control in COMPARISONS:
        (one, given), (other, control_given) = recorder.trained[arm], recorder.trained[control]
        if (arm, control) != ("sd", "hard_short"):  # which is compared for its being stopped
            assert one.llm.steps == other.llm.steps
        relevance = [m.llm.batch / (1 + m.llm.mixture.mt) for m in (one, other)]
        assert relevance == [Recipe.relevance] * 2
        differs = {k for k in given if given[k] != control_given[k]}
        expected = {"mt": set(), "labels": {"snapshot"}, "rqa": {"rqa"}, "rqa_star": {"rqa"}}
        assert differs == expected.get(arm, {"soft"})


def test_stage_one_arms_read_no_target_label(recorder: Recorder) -> None:
    read = {arm: given["snapshot"] for arm, (_, given) in recorder.trained.items()}
    assert read["sft"] == read["mt"] == "stage1"
    assert {read[a] for a in ("hard", "sd", "hard_short", "sd_short")} == {"noisy"}


def test_every_arm_is_judged_on_the_same_gold_with_the_titles_it_learnt(recorder: Recorder) -> None:
    assert {s["snapshot"] for s in recorder.scored} == {"stage2"}
    learnt = {f"llm-{arm}": given["rqa"] for arm, (_, given) in recorder.trained.items()}
    assert {s["llm"]: s["rqa"] for s in recorder.scored} == learnt
