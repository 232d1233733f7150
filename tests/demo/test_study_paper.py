"""The study of both papers: plan, looks, verdicts, what is kept, and the report."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from html import escape
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import sqlalchemy as sa
from scipy.stats import t

from csrm_tasks.demo.paper import page, run, searches, table
from csrm_tasks.demo.paper.effects import (
    OPEN,
    Effect,
    decided,
    effect_of,
    effects,
    first_seeds,
)
from csrm_tasks.demo.paper.market import days_of, held_aside
from csrm_tasks.demo.paper.measures import MEASURES, session_conversion
from csrm_tasks.demo.paper.plan import CELLS, CLAIMS, PARTS, Claim, chosen
from csrm_tasks.demo.paper.recipe import Recipe, as_studied, recipe_of, small
from csrm_tasks.demo.paper.results import PASSED_ON, UNTRAINED, Found, PartResult, Results
from csrm_tasks.demo.paper.run import PaperStudy
from csrm_tasks.demo.paper.stopping import LOOKS, SPENT, level, limits, look_at, over_seeds
from csrm_tasks.errors import ConfigError, DataError
from csrm_tasks.evaluation.metrics import Floats
from csrm_tasks.markets import load_market
from csrm_tasks.records import PAIRS
from csrm_tasks.settings import load_settings
from csrm_tasks.store import open_store, writing
from csrm_tasks.store.tables import DAYS

MT = next(c for c in CLAIMS if c.arm == "mt" and c.measure == "micro_f1")
QUERIES = [f"q{i:03d}" for i in range(120)]


# The plan


def test_every_claim_compares_arms_that_have_a_cell_in_a_part_that_there_is() -> None:
    cells = {(c.arm, c.measure) for c in CELLS}
    assert {c.part for c in (*CELLS, *CLAIMS)} == set(PARTS)
    assert len(cells) == len(CELLS)
    for claim in CLAIMS:
        assert {(claim.arm, claim.measure), (claim.control, claim.measure)} <= cells, claim.title
        assert claim.paper_step() != "–", claim.title


@pytest.mark.parametrize(
    ("arm", "control", "measure", "step"),
    [
        ("mt", "sft", "micro_f1", "+0.80"), ("mt_rqa", "mt", "micro_f1", "+2.10"),
        ("labels", "mt_rqa", "micro_f1", "+1.40"), ("rqa_star", "labels", "micro_f1", "+0.50"),
        ("sd3", "sd2", "micro_f1", "-0.10"), ("mt", "sft", "gap", "+0.013"),
        ("sft", "encoder_small", "micro_f1", "+14.40"), ("ebr_star", "ebr", "titles", "+6.00"),
        ("student", "teacher", "defect_f1", "-0.09"), ("ta_svf", "ta", "qi_f1", "+0.61"),
    ],
)  # fmt: skip
def test_the_papers_steps_are_those_of_its_tables(
    arm: str, control: str, measure: str, step: str
) -> None:
    asked = (arm, control, measure)
    (claim,) = [c for c in CLAIMS if (c.arm, c.control, c.measure) == asked]
    assert claim.paper_step() == step


def test_parts_are_named_in_any_order_and_run_in_theirs() -> None:
    assert chosen("distil, ladder") == ("ladder", "distil")
    assert chosen(None) == PARTS
    for wrong in ("ladder,table2", " , "):
        with pytest.raises(ConfigError, match=r"--only names .*ladder, baselines"):
            chosen(wrong)


# Looks at seeds


def studies(effect: float, n: int = 20_000) -> Floats:
    """Seeds' effects of many studies, (n, newest look); a seed varies by a point."""
    return effect + 0.01 * np.random.default_rng(11).standard_normal((n, LOOKS[-1]))


def intervals(values: Floats, times: Callable[[int], float]) -> list[tuple[Floats, Floats]]:
    """Bounds (n,) at each look, of so many standard errors to either side."""
    found = []
    for look in LOOKS:
        own = values[:, :look]
        half = times(look) * own.std(1, ddof=1) / look**0.5
        found.append((own.mean(1) - half, own.mean(1) + half))
    return found


def test_all_looks_together_miss_the_truth_in_a_twentieth_of_studies() -> None:
    truth = 0.003
    values = studies(truth)
    rates = []
    for times in (lambda n: limits()[n], lambda n: float(t.ppf(0.975, n - 1))):
        missed = [(lo > truth) | (hi < truth) for lo, hi in intervals(values, times)]
        rates.append(float(np.any(missed, axis=0).mean()))
    ruled, naive = rates
    assert 0.042 < ruled < 0.056  # 0.05, and the error of 20,000 studies is 0.0015
    assert naive > 0.10  # what looking again without a rule would cost


@pytest.mark.parametrize(("effect", "wrong"), [(0.0, "holds"), (0.005, "does not hold")])
def test_a_study_stopped_at_its_first_decision_is_seldom_wrong(effect: float, wrong: str) -> None:
    """At the edge of each rule, whichever look it stops at: half of the error lies on a side."""
    first = np.full(20_000, "not decided", dtype=object)
    for lo, hi in intervals(studies(effect), lambda n: limits()[n]):
        now = np.where(lo > 0, "holds", np.where(hi < 0.005, "does not hold", "not decided"))
        first = np.where(first == "not decided", now, first)
    assert 0.018 < float((first == wrong).mean()) < 0.032


def test_a_clear_effect_is_decided_by_seven_seeds_and_most_by_more() -> None:
    def held(effect: float) -> list[float]:
        decided = [lo > 0 for lo, _ in intervals(studies(effect), lambda n: limits()[n])]
        return [float(np.any(decided[: i + 1], axis=0).mean()) for i in range(len(LOOKS))]

    clear, slight = held(0.02), held(0.0075)
    assert clear[1] > 0.9
    assert slight[1] < 0.5 < slight[2] < slight[3] and slight[3] > 0.85


def test_limits_are_wider_than_students_and_spend_what_is_said() -> None:
    assert list(SPENT.values()) == sorted(SPENT.values()) and SPENT[LOOKS[-1]] == 0.05
    for look in LOOKS:
        assert limits()[look] > t.ppf(0.975, look - 1)
        assert t.ppf(1 - level(look) / 2, look - 1) == pytest.approx(limits()[look])
    assert level(LOOKS[0]) == pytest.approx(SPENT[LOOKS[0]], rel=0.1)
    assert [look_at(n) for n in (0, 3, 4, 6, 7, 13, 40)] == [None, None, 4, 4, 7, 7, 28]
    with pytest.raises(ValueError, match="a look at 7 seeds takes as many values"):
        over_seeds([0.1] * 6, 7)


# Effects


def result(seed: int, right: dict[str, float], part: str = "ladder") -> PartResult:
    """A part in which each arm is right on a share of six pairs of every query, by chance."""
    found = Found()
    for arm, share in right.items():
        rng = np.random.default_rng([seed, 5])
        hits = rng.binomial(6, share, len(QUERIES))
        counts = np.zeros((len(QUERIES), 3, 3))
        counts[:, 1, 1], counts[:, 1, 0] = hits, 6 - hits
        found.add(arm, "micro_f1", QUERIES, counts)
    return kept(seed, part, found)


def kept(seed: int, part: str, found: Found) -> PartResult:
    curves = pl.concat(found.curves) if found.curves else pl.DataFrame()
    return PartResult(seed, part, pl.concat(found.counts), curves, found.notes, 60.0)


def seeds(n: int, arm: float, control: float, first: int = 10) -> list[PartResult]:
    return [result(s, {"mt": arm, "sft": control}) for s in range(first, first + n)]


def judged(results: list[PartResult], shared: bool = False, claim: Claim = MT) -> Effect | None:
    return effect_of(claim, {r.seed: r for r in results}, 10, shared)


@pytest.mark.parametrize(
    ("arm", "control", "expected"),
    [(0.70, 0.60, "holds"), (0.60, 0.70, "does not hold"), (0.6, 0.6, "does not hold")],
)
def test_planted_effects_are_judged_at_a_look(arm: float, control: float, expected: str) -> None:
    effect = judged(seeds(7, arm, control))
    assert effect is not None and (effect.look, effect.verdict) == (7, expected)
    assert effect.by_seed.value == pytest.approx(arm - control, abs=0.02)


def test_nothing_is_decided_between_looks_or_past_a_gap() -> None:
    few = judged(seeds(3, 0.8, 0.6))
    assert few is not None and (few.look, few.verdict, len(few.seeds)) == (None, "not decided", 3)
    six = judged(seeds(6, 0.8, 0.6))
    assert six is not None and six.look == 4
    gap = [r for r in seeds(9, 0.8, 0.6) if r.seed != 12]
    assert (broken := judged(gap)) is not None and broken.look is None
    assert first_seeds([10, 11, 13], 10) == [10, 11] and first_seeds([11], 10) == []
    other = [result(10, {"mt": 0.6})]
    assert judged(other) is None and effects(other, 10, False) == []


def test_queries_that_all_seeds_share_are_resampled_as_one() -> None:
    """Seven trainings on the same queries say no more about other queries than they do."""
    same = [replace(r, seed=s) for s in range(10, 17) for r in seeds(1, 0.7, 0.66)]
    apart, together = judged(same, shared=False), judged(same, shared=True)
    assert apart is not None and together is not None
    width = [e.by_query.hi - e.by_query.lo for e in (apart, together)]
    assert width[1] / width[0] == pytest.approx(7**0.5, rel=0.1)


def test_lower_is_better_where_the_measure_says_so() -> None:
    gap = next(c for c in CLAIMS if c.measure == "gap")
    results = []
    for seed in range(10, 14):
        found = Found()
        found.value("mt", "gap", 0.6 + 0.001 * seed)
        found.value("sft", "gap", 0.7)
        results.append(kept(seed, "ladder", found))
    effect = judged(results, claim=gap)
    assert effect is not None and effect.verdict == "holds"
    assert effect.by_seed.value == pytest.approx(0.7 - 0.6115)


def test_arms_that_were_judged_by_different_queries_are_refused() -> None:
    found = Found()
    found.add("mt", "micro_f1", ["a"], np.ones((1, 3, 3)))
    found.add("sft", "micro_f1", ["b"], np.ones((1, 3, 3)))
    with pytest.raises(ValueError, match="mt and sft were judged by different queries"):
        judged([kept(10, "ladder", found)])


def test_that_rounds_do_no_harm_is_all_that_sd3_claims() -> None:
    sd3 = next(c for c in CLAIMS if c.arm == "sd3")
    assert (sd3.rule, MT.rule) == ("no loss", "gain")


# What is kept


def test_results_of_another_recipe_and_half_written_ones_are_passed_over(tmp_path: Path) -> None:
    ours, theirs = Results(tmp_path, "a"), Results(tmp_path, "b")
    found = Found(notes={"x": "y"}, seconds=3.0)
    found.add("mt", "em_f1", ["q2", "q1"], np.arange(8.0).reshape(2, 2, 2))
    found.curve("mt", "em_f1", [(0.1, 0.5)])
    ours.write(10, "ladder", found)
    assert list(theirs.read()) == []
    (one,) = ours.read()
    assert (one.seed, one.part, one.notes, one.seconds) == (10, "ladder", {"x": "y"}, 3.0)
    assert one.curves.select("x", "y").rows() == [(0.1, 0.5)]
    assert (own := one.of("mt", "em_f1")) is not None
    assert own[0] == ["q1", "q2"] and own[1][0].tolist() == [[4, 5], [6, 7]]
    assert one.of("mt", "defect_f1") is None
    (tmp_path / "a" / "seed10" / "ladder.json").unlink()
    assert list(ours.read()) == []


@pytest.mark.parametrize("why", [f"{PASSED_ON}: dev 0.5 after a round", f"{UNTRAINED}: dev 0.3"])
def test_an_arm_that_says_nothing_in_a_seed_counts_in_no_claim(why: str) -> None:
    """A model that was passed on is compared with itself: no evidence that both are alike."""
    found = Found(notes={"mt": why})
    for arm in ("mt", "sft"):
        found.add(arm, "micro_f1", ["a"], np.ones((1, 3, 3)))
    assert kept(10, "ladder", found).of("mt", "micro_f1") is None
    others = [result(seed, {"mt": 0.8, "sft": 0.6}) for seed in range(11, 14)]
    (effect,) = [
        e for e in effects([kept(10, "ladder", found), *others], 10, False) if e.claim == MT
    ]
    assert (effect.look, effect.verdict) == (None, OPEN) and set(effect.seeds) == {11, 12, 13}


def test_an_own_market_is_studied_up_to_the_day_on_which_the_study_began(tmp_path: Path) -> None:
    settings = load_settings({"CSRM_HOME": str(tmp_path / "home")})
    market = load_market("names", settings.markets)

    def publish(day: str, digest: str) -> None:
        row = {"market": "names", "day": day, "digest": digest, "rows_in": 1, "quarantined": 0,
               "share": 0.0, "stale": 0}  # fmt: skip
        with writing(open_store(settings.db_url), "names") as connection:
            connection.execute(sa.delete(DAYS).where(DAYS.c.market == "names", DAYS.c.day == day))
            connection.execute(sa.insert(DAYS), [row])

    def study() -> PaperStudy:
        return PaperStudy(market, None, settings, Recipe(), tmp_path / "study", first=10)

    with pytest.raises(DataError, match="has taken no day in"):
        _ = study().results
    publish("2026-01-04", "a")
    publish("2026-01-05", "b")
    before = study().results.digest
    publish("2026-01-06", "c")  # a night that is taken in while the study goes on
    assert days_of(market, settings, tmp_path / "study") == {"2026-01-04": "a", "2026-01-05": "b"}
    assert study().results.digest == before
    publish("2026-01-05", "corrected")  # labels that were learnt from have changed
    assert study().results.digest != before


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PaperStudy:
    """A study whose one part makes up its counts; seed 12 is killed at the first try."""
    tries: list[int] = []

    def part(seed: int, _: Recipe, found: Found) -> None:
        tries.append(seed)
        if seed == 12 and tries.count(12) == 1:
            raise KeyboardInterrupt
        found.counts = [result(seed, {"mt": 0.8, "sft": 0.6}).counts]

    monkeypatch.setattr(run, "OF_PAPER_1", {"ladder": part})
    monkeypatch.setattr(PaperStudy, "_study_market", lambda _, seed: seed)
    monkeypatch.setattr("csrm_tasks.demo.paper.effects.CLAIMS", [c for c in CLAIMS if c == MT])
    settings = load_settings({"CSRM_HOME": str(tmp_path)})
    market = load_market("demo", settings.markets)
    return PaperStudy(market, None, settings, Recipe(), tmp_path / "study", first=10)


def test_a_killed_study_goes_on_and_stops_where_all_is_decided(study: PaperStudy) -> None:
    with pytest.raises(KeyboardInterrupt):
        list(study.run(range(10, 20), ["ladder"]))
    assert [r.seed for r in study.read()] == [10, 11]
    *_, last = study.run(range(10, 20), ["ladder"])
    assert [r.seed for r in last] == [10, 11, 12, 13]  # of a look at four; no fifth is needed
    assert decided("ladder", last, 10, shared=False)
    assert not decided("ladder", last[:3], 10, shared=False)


def test_another_process_widens_the_same_report(study: PaperStudy) -> None:
    study.run_part(11, "ladder")
    study.run_part(10, "ladder")
    text = page.write(study, study.read()).with_suffix(".md").read_text(encoding="utf-8")
    assert (
        "`mt` − `sft`" in text and "| **not decided** | +0.80 |" in text and "| – | – | 2 |" in text
    )
    changed = replace(study, recipe=small(study.recipe))
    assert changed.read() == []


# The report


class Outside(HTMLParser):
    """Collects what a page would load from elsewhere, and its text."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loads += [v or "" for k, v in attrs if k in ("src", "href", "xlink:href")]


def whole_study(n: int) -> list[PartResult]:
    """Every cell of the plan, made up; half of the arms are better by five points."""
    found = []
    for seed in range(10, 10 + n):
        for part in PARTS:
            one = Found(notes={"x": "<b>no</b>"} if seed == 10 else {})
            own = [(c.arm, c.measure) for c in CELLS if c.part == part]
            own += (
                [("sft", "micro_f1")] if part == "baselines" else []
            )  # what they are held against
            for i, (arm, measure) in enumerate(own):
                shape = MEASURES[measure].shape
                rng = np.random.default_rng([seed, i])
                counts = np.ones((len(QUERIES), *shape))
                first = counts.reshape(len(QUERIES), -1)
                first[:, 0 if len(shape) == 1 else -1] = rng.random(len(QUERIES)) + i % 2
                if len(shape) == 1:
                    first[:, 1] = 2
                one.add(arm, measure, QUERIES, counts)
            if part == "curation":
                one.curve("ta_sns", "qc_f1", [(0.1, 0.5), (0.5, 0.7)])
                one.curve("ta_svf", "qi_f1", [(0.1, 0.8), (0.5, 0.6)])
            found.append(kept(seed, part, one))
    return found


def test_the_page_holds_every_claim_and_loads_nothing() -> None:
    text = page.render("<market>", whole_study(4), 10, shared=True)
    parser = Outside()
    parser.feed(text)
    assert parser.loads == [] and "script" not in parser.tags
    assert parser.tags.count("svg") >= 3 + len(PARTS)  # lines, and the effects of each part
    for claim in CLAIMS:
        assert escape(claim.title) in text
    assert "&lt;market&gt;" in text and "<b>no" not in text and "nan" not in text.lower()
    assert "paper’s peak 0.15 to 0.20" in text
    assert all(text.count(word) for word in ("holds", "does not hold", "not decided"))


def test_the_table_is_written_from_the_first_part_on() -> None:
    whole = whole_study(4)
    text = table.markdown(whole, 10, shared=False)
    assert text.count("| **") == len(CLAIMS)
    assert all(f"`{c.arm}`" in text for c in CELLS)
    assert "| 95.1 |" in text and "ladder: 1.0 CPU-minutes a seed, 4 seeds" in text
    early = table.markdown(whole[:1], 10, shared=False)
    assert (
        "nan" not in early and "| **not decided** | +0.80 |" in early and "| – | – | 1 |" in early
    )
    assert page.render("m", [], 10, shared=False).count("<table") == 0


# Pages of searches, and labels held aside


def test_the_chance_of_a_cart_is_reckoned_as_shoppers_act() -> None:
    rng = np.random.default_rng(0)
    query = np.repeat([0, 1, 2], [3, 14, 1])
    score, cart = rng.random(18), rng.random(18) * 0.3
    expected = []
    for q in range(3):
        own = [(s, c) for k, s, c in zip(query, score, cart, strict=True) if k == q]
        none = 1.0
        for place, (_, chance) in enumerate(sorted(own, reverse=True)[: searches.SHOWN]):
            none *= 1 - (place + 1) ** -0.8 * chance
        expected.append(1 - none)
    assert searches.carted(query, score, cart, 3) == pytest.approx(expected)


def test_a_session_converts_if_one_of_its_searches_does() -> None:
    rng = np.random.default_rng(1)
    searched = 1 + rng.poisson(0.3, 400_000)
    converted = (rng.binomial(searched, 0.2) > 0).mean()
    assert float(session_conversion(np.array([20.0, 100.0]))) == pytest.approx(converted, abs=3e-3)


def test_half_of_dev_is_held_aside_where_there_is_no_gold() -> None:
    n = 40
    pairs = pl.DataFrame({
        "pair_id": [f"p{i}" for i in range(n)], "query_id": [f"q{i // 2}" for i in range(n)],
        "product_id": [f"x{i}" for i in range(n)], "locale": "zh-TW", "grade": 1,
        "split": ["train" if i < 16 else "dev" for i in range(n)], "raters": 1, "agree": 1,
    })  # fmt: skip
    pairs = pairs.select(pl.col(c).cast(kind) for c, kind in PAIRS.items())
    found = held_aside(pairs, "zh-TW")
    assert found.filter(split="gold")["query_id"].n_unique() == 6
    assert found.filter(split="train").height == 16
    whole = found.group_by("query_id").agg(pl.col("split").n_unique())
    assert whole["split"].max() == 1  # a query stays on one side
    assert held_aside(pairs, "zh-TW").equals(found)
    with pytest.raises(DataError, match="0 labelled queries of ko-KR are on dev"):
        held_aside(pairs, "ko-KR")


def test_an_own_market_trains_as_its_week_does_and_spoils_no_label() -> None:
    market = load_market("demo", load_settings().markets)
    recipe = recipe_of(market)
    assert (recipe.steps, recipe.noise, recipe.source_share) == (market.llm.steps, 0.0, 1.0)
    assert (recipe.mt, recipe.relevance) == (market.llm.mixture.mt, 48)
    options = {"label_smoothing": 0.1, "warm_start": "live"}
    negatives = market.llm.negatives.model_copy(update={"per_query": 2})
    llm = market.llm.model_copy(update=options | {"negatives": negatives})
    plain = as_studied(market.model_copy(update={"llm": llm})).llm
    assert plain.negatives.per_query == 0  # no step of the study draws them
    assert plain.label_smoothing == 0.1  # which a training does by itself
    assert (plain.must_learn, plain.warm_start) == (False, "none")
