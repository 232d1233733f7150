"""What people judge next, simulated: unsure pairs by grade, and a budget that decides sooner."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from csrm_tasks.evaluation import abstention, budget
from csrm_tasks.evaluation.budget import Open
from csrm_tasks.evaluation.checks import Claim, Compared, compare
from csrm_tasks.evaluation.metrics import micro_f1
from csrm_tasks.evaluation.report.review import review_part

PRIOR = np.array([0.2, 0.2, 0.6])


def scored(n: int, sees: float, rng: np.random.Generator) -> pl.DataFrame:
    """Pairs of four a query, whose queries differ in how hard they are; with their grades."""
    grades = rng.choice(3, n, p=PRIOR)
    hard = np.repeat(rng.choice([0.3, 1.5], n // 4 + 1), 4)[:n, None]
    logits = sees * np.eye(3)[grades] + hard * rng.normal(size=(n, 3))
    chance = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return pl.DataFrame({
        "query_id": [f"q{i // 4:05}" for i in range(n)], "product_id": [f"p{i}" for i in range(n)],
        "locale": ["xx-XX"] * n, "consensus": grades,
        **{f"p{k}": chance[:, k] for k in range(3)},
    })  # fmt: skip


def test_the_coverage_that_is_told_is_that_of_new_traffic_for_each_grade() -> None:
    """150 dev sets: the sets hold each grade as often as asked, and dev says so by itself."""
    rng, alpha, held, told = np.random.default_rng(0), 0.1, [], []
    for _ in range(150):
        fitted = abstention.fit(scored(400, 2.0, rng), alpha)
        new = scored(800, 2.0, rng)
        found = abstention.sets(abstention.probabilities(new), fitted.limits)
        held.append(abstention.coverage(found, new["consensus"].to_numpy()))
        told.append([c or np.nan for c in fitted.covered])
    for mean in (np.mean(held, axis=0), np.mean(told, axis=0)):
        assert (mean >= 1 - alpha - 0.01).all() and (mean <= 1 - alpha + 0.04).all()


def test_pairs_without_a_consensus_fit_nothing_and_nothing_fitted_is_sure_of_nothing() -> None:
    rng = np.random.default_rng(0)
    dev = scored(400, 2.0, rng)
    some = dev.with_columns(consensus=pl.when(pl.int_range(pl.len()) % 2 == 0).then("consensus"))
    alone = abstention.fit(some.drop_nulls("consensus"), 0.1)
    assert abstention.fit(some, 0.1).limits.tolist() == alone.limits.tolist()
    none = abstention.fit(dev.with_columns(consensus=pl.lit(None, pl.Int64)), 0.1)
    assert (none.limits == 0).all() and none.covered == (None,) * 3 and none.unsure is None


def served_tables() -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """What the teacher says, what was shown, what is judged: q1 is gold, of q2 a pair is train."""
    said = [("q1", "a"), ("q1", "b"), ("q2", "a"), ("q2", "b"), ("q3", "a"), ("q3", "b")]
    chances = [0.4] * 4 + [0.98, 0.4]
    scored_ = pl.DataFrame({
        "query_id": [q for q, _ in said], "product_id": [p for _, p in said],
        "locale": ["xx-XX"] * 6, "p0": [(1 - c) / 2 for c in chances],
        "p1": [(1 - c) / 2 for c in chances], "p2": chances,
    })  # fmt: skip
    shown = scored_.select("query_id", "product_id", "locale").with_columns(
        impressions=pl.Series([9, 9, 9, 3, 9, 7])
    )
    judged = pl.DataFrame({
        "query_id": ["q1", "q2"], "product_id": ["a", "a"], "locale": ["xx-XX"] * 2,
        "split": ["gold", "train"],
    })  # fmt: skip
    return scored_, shown, judged


def test_the_queue_has_shown_unjudged_pairs_by_worth_and_none_of_a_gold_query() -> None:
    served = abstention.unjudged(*served_tables(), "xx-XX")
    pairs = [f"{q}{p}" for q, p in served.select("query_id", "product_id").iter_rows()]
    assert sorted(pairs) == ["q2b", "q3a", "q3b"]
    fitted = abstention.Abstention(np.array([0.2, 0.2, 0.2]), (9, 9, 9), (0.9,) * 3, 0.5)
    asked = abstention.queue(served, fitted, 5)
    assert asked.select("query_id", "product_id").rows() == [("q3", "b"), ("q2", "b")]
    assert asked["value"].to_list() == pytest.approx([7 * 0.6, 3 * 0.6])
    assert asked["grades"].to_list() == ["0 1 2"] * 2
    assert abstention.queue(served, fitted, 1).height == 1
    said, shown, judged = served_tables()
    assert abstention.unjudged(said, shown.with_columns(impressions=0), judged, "xx-XX").is_empty()
    assert abstention.queue(served[:0], fitted, 5).is_empty()


RARE = 0.06


def world(rng: np.random.Generator, queries: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two models' confusions, (Q, 3, 3) each, and which queries are in a rare slice.

    There the candidate is a little better than the champion; elsewhere they are alike.
    """
    rare = rng.random(queries) < RARE
    truth = rng.choice(3, (queries, 8), p=PRIOR)
    tables = []
    for right in (np.where(rare, 0.78, 0.72), np.full(queries, 0.72)):
        said = np.where(rng.random((queries, 8)) < right[:, None], truth, (truth + 1) % 3)
        cells = np.zeros((queries, 3, 3))
        np.add.at(cells, (np.arange(queries)[:, None], truth, said), 1)
        tables.append(cells)
    return tables[0], tables[1], rare


def judgements_until(order: list[int], judged: int, made: tuple[np.ndarray, ...]) -> int | None:
    """How many more queries are judged in this order until the slice's claim is decided."""
    one, other, rare = made
    claim = Claim(micro_f1, 0.03, False, 0.05, 50, "rare")
    for more in range(0, len(order) + 1, 10):
        asked = np.array([*range(judged), *order[:more]])
        kept = asked[rare[asked]]
        found = compare("micro_f1 in rare", claim, one[kept], other[kept])
        if isinstance(found, Compared) and found.diff.lo > -0.03:
            return more
    return None


def test_the_budgets_choice_decides_an_open_claim_with_fewer_judgements_than_a_random_one() -> None:
    judged, took = 300, []
    for seed in range(24):
        made = world(np.random.default_rng(seed), 4_000)
        if judgements_until([], judged, made) == 0:
            continue  # decided as it is
        rare = made[2]
        claim = Open("micro_f1 in rare", "rare", int(rare[:judged].sum()), 150)
        candidates = np.arange(judged, len(rare))
        inside = {"rare": rare[candidates]}
        drawn, (spent,) = budget.spend([claim], inside, [8] * len(candidates), 4_000, seed)
        assert spent.chosen == spent.inside == len(drawn) <= 150
        at_random = np.random.default_rng(seed).permutation(candidates).tolist()[:2_000]
        orders = candidates[drawn].tolist(), at_random
        ours, theirs = (judgements_until(order, judged, made) for order in orders)
        took.append((160 if ours is None else ours, 2_010 if theirs is None else theirs))
    ours_, theirs_ = np.array(took).T
    assert len(took) >= 10
    assert (ours_ <= theirs_).mean() >= 0.9
    assert 4 * ours_.sum() <= theirs_.sum()


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_budget_is_kept_and_no_query_is_judged_twice_or_for_nothing(data: st.DataObject) -> None:
    count = data.draw(st.integers(0, 40))
    flags = st.lists(st.booleans(), min_size=count, max_size=count)
    inside = {name: np.array(data.draw(flags), bool) for name in ("a", "b")}
    costs = data.draw(st.lists(st.integers(1, 8), min_size=count, max_size=count))
    claims = [
        Open(f"x in {w}" if w else "x", w, 10, data.draw(st.integers(1, 30)))
        for w in data.draw(st.lists(st.sampled_from(["", "a", "b"]), unique=True))
    ]
    most = data.draw(st.integers(0, 100))
    drawn, spent = budget.spend(claims, inside, costs, most, 0)
    assert len(set(drawn)) == len(drawn)
    assert sum(costs[k] for k in drawn) <= most
    assert sum(s.chosen for s in spent) == len(drawn)
    for one in spent:
        counted = (
            sum(bool(inside[one.claim.where][k]) for k in drawn) if one.claim.where else len(drawn)
        )
        assert one.inside == counted
        assert one.chosen <= one.claim.needed
        assert 0 < one.width <= 1
    if not claims:
        assert drawn == []


def test_a_slices_queries_are_drawn_at_random_and_count_for_every_open_claim() -> None:
    rng = np.random.default_rng(1)
    inside = {"a": rng.random(1_000) < 0.3, "b": rng.random(1_000) < 0.5}
    claims = [Open("x in b", "b", 50, 200), Open("x in a", "a", 50, 100)]
    drawn, spent = budget.spend(claims, inside, [1] * 1_000, 10_000, 3)
    first = drawn[:100]  # for a, which needs fewest
    assert inside["a"][first].all()
    assert 35 <= inside["b"][first].sum() <= 65  # as often as any of a
    assert spent[0].inside == 200 and spent[0].chosen == 200 - inside["b"][first].sum()
    assert all(s.decided for s in spent)
    assert spent[0].width == pytest.approx((50 / 250) ** 0.5)


def test_what_the_gate_left_open_is_read_from_its_verdict() -> None:
    found = budget.open_claims(
        {"micro_f1": 90, "em_f1": 20, "micro_f1 in language zh-TW": 300, "micro_f1 in gone": 4},
        {"": 300, "language zh-TW": 80},
    )
    assert found == [
        Open("micro_f1", "", 300, 90), Open("em_f1", "", 300, 20),
        Open("micro_f1 in language zh-TW", "language zh-TW", 80, 300),
    ]  # fmt: skip


def test_the_report_says_both_and_nothing_where_there_is_none() -> None:
    assert review_part(None, None) == ""
    facts = {
        "locale": "zh-TW", "alpha": 0.1, "limits": [0.2, 0.0, 0.4], "dev_pairs": [50, 3, 200],
        "covered": [0.912, None, 0.9], "unsure_dev": 0.31, "unsure_shown": 0.27, "served": 4_100,
        "queue": 300,
    }  # fmt: skip
    budgeted = [{"claim": "micro_f1 in <b>", "queries": 80, "needed": 120, "chosen": 60,
                 "inside": 62, "width": 0.75, "decided": False}]  # fmt: skip
    page = review_part(facts, budgeted)
    for text in ("91.2%", "never ruled out", "27%", "4,100", "300", "micro_f1 in &lt;b&gt;",
                 "× 0.75", "not by these alone", "csrm data review-queue"):  # fmt: skip
        assert text in page
    assert "Claims" not in review_part(facts, None)
