"""A day's audit by strata: what is expected, what is drawn, what people's answers add."""

from __future__ import annotations

from itertools import product
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from csrm_tasks.release.online import audits, stratified
from csrm_tasks.release.online.checks import Audit, OnlineEvidence, Sums, evaluate_step
from csrm_tasks.release.online.expected import DOUBT, by_measure, expected
from csrm_tasks.release.online.sequential import paired, weighed
from csrm_tasks.sections import Rollout, Step

PRODUCTS = "abcdefg"


def pages_of(new: str, old: str, chances: dict[str, tuple[float, float]]) -> pl.DataFrame:
    """Both pages of one query; of each product how likely it is exact, and irrelevant."""
    rows = [
        (name, "q", rank, p, *chances[p])
        for name, page in (("new", new), ("old", old))
        for rank, p in enumerate(page, start=1)
    ]
    names = ["release", "query_id", "rank", "product_id", "exact", "irrelevant"]
    return pl.DataFrame(rows, schema=names, orient="row")


def by_all_outcomes(new: str, old: str, which: dict[str, float], first: bool) -> tuple[float, ...]:
    """The mean difference and the chance of one, over all 2^n outcomes of the products."""
    mean = chance = 0.0
    names = sorted(set(new) | set(old))
    for outcome in product([False, True], repeat=len(names)):
        has = dict(zip(names, outcome, strict=True))
        likely = np.prod([which[p] if has[p] else 1 - which[p] for p in names])
        pages = (new[:1], old[:1]) if first else (new, old)
        one, other = (any(has[p] for p in page) for page in pages)
        mean += likely * (one - other)
        chance += likely * (one != other)
    return mean, chance


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_what_is_expected_is_that_of_all_outcomes(data: st.DataObject) -> None:
    new, old = ("".join(data.draw(st.permutations(PRODUCTS))[:5]) for _ in range(2))
    length = data.draw(st.integers(1, 5))  # a query with few products has short pages
    new, old = new[:length], old[:length]
    share = st.floats(0, 1)
    chances = {p: (data.draw(share), data.draw(share)) for p in PRODUCTS}
    found = by_measure(expected(pages_of(new, old, chances), "new", "old"))
    for place, (measure, first) in enumerate((("EM@1", True), ("Defect@5", False))):
        clipped = {p: min(max(c[place], DOUBT), 1 - DOUBT) for p, c in chances.items()}
        mean, chance = by_all_outcomes(new, old, clipped, first)
        assert found[measure].difference[0] == pytest.approx(mean, abs=1e-9)  # type: ignore[index]
        assert found[measure].chance[0] == pytest.approx(chance, abs=1e-9)  # type: ignore[index]


def test_no_certainty_of_a_model_says_that_pages_which_differ_cannot() -> None:
    sure = dict.fromkeys(PRODUCTS, (0.0, 0.0))
    other = expected(pages_of("abcde", "abcdf", sure), "new", "old")
    assert (other["em_chance"][0], other["defect_chance"][0] > 0) == (0, True)
    swapped = expected(pages_of("bacde", "abcde", sure), "new", "old")
    assert (swapped["em_chance"][0] > 0, swapped["defect_chance"][0]) == (True, 0)


def frame(queries: int, rng: np.random.Generator) -> pl.DataFrame:
    """What is expected of queries, of which a third cannot differ."""
    can = rng.random(queries) < 2 / 3
    sure, em, defect = np.zeros(queries), rng.random(queries) * can, rng.random(queries) / 5 * can
    return pl.DataFrame({
        "query_id": [f"q{i}" for i in range(queries)], "cost": np.full(queries, 6),
        "em": sure, "em_chance": em, "defect": sure, "defect_chance": defect,
    })  # fmt: skip


def answers(found: pl.DataFrame, rng: np.random.Generator, bias: float = 0.0) -> pl.DataFrame:
    """What people say of the drawn queries: as likely as is expected, each way alike."""
    drawn = found.drop_nulls("chance")
    said = {}
    for name in ("em", "defect"):
        differs = rng.random(drawn.height) < drawn[f"{name}_chance"].to_numpy()
        side = np.where(rng.random(drawn.height) < 0.5 + bias, 1, -1)
        said[name] = (differs * side).astype(np.int8)
    return drawn.select("query_id").with_columns(**{k: pl.Series(v) for k, v in said.items()})


def test_a_frame_is_many_queries_for_one_that_is_judged_and_lasts_a_month() -> None:
    assert stratified.frame_size(1_000_000, 150) == 3_000
    assert stratified.frame_size(60_000, 150) == 2_000
    assert stratified.frame_size(900, 150) == 150


def test_weights_are_known_and_those_that_are_answered_stand_for_the_drawn() -> None:
    rng = np.random.default_rng(0)
    drawn = stratified.draw_by_strata(frame(900, rng), [], 90, "seed")
    assert drawn.equals(
        stratified.draw_by_strata(frame(900, np.random.default_rng(0)), [], 90, "seed")
    )
    assert 80 <= drawn["chance"].is_not_null().sum() <= 90
    assert drawn.filter(pl.col("stratum") == 0)["chance"].is_null().all()
    said = answers(drawn, rng)
    whole = stratified.judged(drawn, said)
    assert whole["weight"].to_list() == pytest.approx(
        (1 / drawn["chance"].drop_nulls() / 900).to_list()
    )
    half = stratified.judged(drawn, said[::2])
    for (stratum,), rows in half.group_by("stratum"):
        asked = drawn.filter((pl.col("stratum") == stratum) & pl.col("chance").is_not_null())
        up = asked.height / rows.height
        assert rows["weight"].to_numpy() * rows["chance"].to_numpy() * 900 == pytest.approx(up)
    of_one = drawn.filter(pl.col("stratum") == 2).select("query_id")
    assert stratified.judged(drawn, said.join(of_one, on="query_id", how="anti")).is_empty()


def test_estimates_are_right_on_average_whatever_the_towers_expect() -> None:
    """Against the whole frame judged: means of 400 draws, half of them allocated by answers."""
    rng = np.random.default_rng(1)
    made = frame(600, rng)
    truth = answers(made.with_columns(chance=pl.lit(1.0)), rng, bias=0.2)
    wrong = made.with_columns(  # upside down, but for what cannot differ
        **{c: pl.when(pl.col(c) > 0).then(pl.col(c).max() * 1.01 - pl.col(c)).otherwise(0.0)
           for c in ("em_chance", "defect_chance")}
    )  # fmt: skip
    before: list[pl.DataFrame] = []
    found = []
    for n in range(400):
        drawn = stratified.draw_by_strata(wrong, before if n % 2 else [], 60, str(n))
        judged = stratified.judged(drawn, truth)
        before = [judged]
        sums = stratified.sums(judged)
        found.append([sums[m].total / judged.height for m in ("EM@1", "Defect@5")])
    for name, values in zip(("em", "defect"), np.array(found).T, strict=True):
        error = values.std() / 400**0.5
        assert abs(values.mean() - truth[name].to_numpy().sum() / 600) < 3.5 * error


def test_a_plain_draws_weights_are_one_and_its_checks_the_paired_ones() -> None:
    found = pl.DataFrame({"weight": np.full(40, 1 / 40), "em": [1] * 5 + [-1] * 2 + [0] * 33,
                          "defect": [0] * 40})  # fmt: skip
    sums = stratified.sums(found)
    assert (sums["EM@1"].total, sums["EM@1"].squares) == (pytest.approx(3), pytest.approx(7))
    em = sums["EM@1"]
    said = weighed(em.total, em.squares + em.one, 40, 0.05, 60)
    assert said is not None
    assert vars(said) == pytest.approx(vars(paired(5, 2, 40, 0.05, 60)))


def test_checks_of_audits_by_strata_read_the_sums_and_not_the_counts() -> None:
    plan = Rollout(steps=(Step(weight=0, audits=100, audit_margin=0.05),), error_margin=None,
                   latency_ratio=None)  # fmt: skip
    quiet, bad = Sums(0.0, 2.0, 0.2), Sums(60.0, 30.0, 0.2)
    for sums, expected_outcome in ((quiet, "SUCCESS"), (bad, "FAILURE")):
        audit = Audit(600, 50, 50, 90, 10, em=quiet, defect=sums)
        outcome, checks = evaluate_step(plan.steps[0], plan, OnlineEvidence(audit=audit))
        assert outcome == expected_outcome
        assert checks[-1].found.value == pytest.approx(sums.total / 600)  # type: ignore[union-attr]


def test_looking_every_day_at_equal_releases_errs_no_more_than_alpha() -> None:
    """100 rollouts of 10 days, allocated by the days before; a fixed test read daily does err."""
    alpha, wrong, naive = 0.1, 0, 0
    made = frame(300, np.random.default_rng(3))
    for run in range(100):
        rng = np.random.default_rng((7, run))
        before: list[pl.DataFrame] = []
        total, queries, ever, fixed = Sums(0.0, 0.0, 0.0), 0, False, False
        for day in range(10):
            drawn = stratified.draw_by_strata(made, before[-2:], 40, f"{run}:{day}")
            judged = stratified.judged(drawn, answers(drawn, rng))
            before.append(judged)
            total, queries = total + stratified.sums(judged)["Defect@5"], queries + judged.height
            found = weighed(total.total, total.squares + total.one, queries, alpha, 20)
            assert found is not None
            ever |= not found.lo <= 0 <= found.hi
            fixed |= abs(total.total) > 1.645 * total.squares**0.5
        wrong, naive = wrong + ever, naive + fixed
    assert wrong <= alpha * 100
    assert naive > 1.5 * alpha * 100


def test_towers_help_without_deciding_and_an_interval_needs_some_answers() -> None:
    rng = np.random.default_rng(5)
    answered = []
    for day in range(4):
        drawn = stratified.draw_by_strata(frame(500, rng), [], 50, str(day))
        answered.append(stratified.Audited(drawn, stratified.judged(drawn, answers(drawn, rng))))
    found = stratified.helped(answered, 0.05)
    for measure, column in (("EM@1", "em"), ("Defect@5", "defect")):
        plain = sum(float(a.judged["weight"] @ a.judged[column]) for a in answered) / 4  # type: ignore[operator]
        assert found[measure].value == pytest.approx(plain, abs=1e-9)  # no help: 0 is expected
        assert found[measure].lo < 0 < found[measure].hi
    few = stratified.Audited(answered[0].frame, answered[0].judged[:5])
    assert stratified.helped([few], 0.05) == {}


def test_both_releases_towers_say_how_likely_a_product_is_and_each_ranks_by_its_own() -> None:
    shown = pl.DataFrame({
        "query_id": ["q"] * 6, "query": ["milk"] * 6, "product_id": list("abcdef"),
        "title": list("abcdef"),
    })  # fmt: skip

    def scorer(scores: list[float], defect: float) -> Any:
        said = SimpleNamespace(rank_score=scores, em=np.array(scores), defect=np.full(6, defect))
        return SimpleNamespace(score=lambda *_: said)

    up, down = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6], [0.6, 0.5, 0.4, 0.3, 0.2, 0.1]
    found = stratified.ranked({"new": scorer(up, 0.4), "old": scorer(down, 0.2)}, shown)
    tops = {n: "".join(found.filter(pl.col("release") == n)["product_id"]) for n in ("new", "old")}
    assert tops == {"new": "fedcb", "old": "abcde"}
    assert found["exact"].to_list() == pytest.approx([0.35] * 10)
    assert found["irrelevant"].to_list() == pytest.approx([0.3] * 10)
    page = audits.page(scorer(up, 0.4), shown, "new")
    assert found.filter(pl.col("release") == "new").select(page.columns).equals(page)
