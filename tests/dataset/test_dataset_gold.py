"""The gold set is frozen: later labels neither change nor remove a pair (A10)."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from csrm_tasks.dataset.consensus import PAIR
from csrm_tasks.dataset.splits import frozen_gold
from csrm_tasks.sections import Snapshot

RULES = Snapshot(gold_raters=3, gold_agree=2)
ZH = "zh-TW"
MON, TUE, SUN, NEXT = "2026-01-05", "2026-01-06", "2026-01-11", "2026-01-12"  # one week, the next
NAMES = [*PAIR, "norm", "day", "grade", "rater_id", "rated_at", "label_id"]


def said(*rows: tuple[str, str, int, str], product: str = "p", locale: str = ZH) -> pl.DataFrame:
    """Rows of (day, query, grade, rater)."""
    made = [
        (locale, f"{locale} {q}", product, q, day, g, rater,
         datetime.fromisoformat(day).replace(tzinfo=UTC) + timedelta(seconds=i), f"{day} {i}")
        for i, (day, q, g, rater) in enumerate(rows)
    ]  # fmt: skip
    return pl.DataFrame(made, schema=NAMES, orient="row", schema_overrides={"grade": pl.Int8})


def found(ratings: pl.DataFrame, rules: Snapshot = RULES) -> list[tuple[Any, ...]]:
    gold = frozen_gold(ratings, rules, [ZH]).pairs
    return gold.select("norm", "product_id", "grade", "raters", "agree").rows()


AGREED = ((MON, "q", 2, "a"), (MON, "q", 2, "b"), (MON, "q", 1, "c"))


def test_a_pair_stays_as_it_stood_on_the_day_it_met_the_rule() -> None:
    assert found(said(*AGREED)) == [("q", "p", 2, 3, 2)]
    later = [(TUE, "q", 0, r) for r in "defghij"]  # outvoted since
    changed = [(TUE, "q", 0, r) for r in "abc"]  # everybody has changed their mind
    for more in (later, changed):
        assert found(said(*AGREED, *more)) == [("q", "p", 2, 3, 2)]


def test_the_rule_may_be_met_over_some_days_of_one_week() -> None:
    rows = [(MON, "q", 2, "a"), (TUE, "q", 0, "b"), (SUN, "q", 2, "c")]
    assert found(said(*rows[:2])) == []
    assert found(said(*rows)) == [("q", "p", 2, 3, 2)]


@pytest.mark.parametrize(("side", "kept"), [("train", False), ("dev", False), ("gold", True)])
def test_a_query_that_a_snapshot_held_to_learn_from_never_becomes_gold(
    side: str, kept: bool
) -> None:
    slow = said((SUN, "q", 2, "a"), (NEXT, "q", 2, "b"), (NEXT, "q", 2, "c"))
    assert found(slow) == [("q", "p", 2, 3, 3)]  # no snapshot was taken in between
    held = pl.DataFrame({"norm": ["q"], "side": [side]})
    gold = frozen_gold(slow, RULES, [ZH], held)
    assert (gold.pairs.height, gold.late) == ((1, 0) if kept else (0, 1))
    other = pl.DataFrame({"norm": ["r"], "side": [side]})
    assert frozen_gold(slow, RULES, [ZH], other).pairs.height == 1


def test_a_gold_query_may_gain_pairs_in_later_weeks() -> None:
    more = [(NEXT, "q", 0, r) for r in "abc"]
    grown = found(pl.concat([said(*AGREED), said(*more, product="r")]))
    assert grown == [("q", "p", 2, 3, 2), ("q", "r", 0, 3, 3)]


def test_only_the_target_has_gold() -> None:
    assert found(said(*AGREED, locale="ko-KR")) == []
    assert frozen_gold(said(), RULES, [ZH]).pairs.is_empty()


LABEL = st.tuples(
    st.integers(0, 20), st.sampled_from("qrs"), st.integers(0, 2), st.sampled_from(["", *"abcd"])
)


@settings(max_examples=60, deadline=None)
@given(st.lists(LABEL, max_size=40), st.integers(0, 20))
def test_an_earlier_days_set_is_part_of_a_later_days(rows: list[Any], cut: int) -> None:
    start = datetime(2026, 1, 1, tzinfo=UTC)
    days = [((start + timedelta(days=d)).date().isoformat(), *rest) for d, *rest in rows]
    ratings = said(*days)
    until = (start + timedelta(days=cut)).date().isoformat()
    before = found(ratings.filter(pl.col("day") <= until))
    assert set(before) <= set(found(ratings))


@pytest.mark.parametrize(("raters", "agree"), [(3, 2), (4, 3), (5, 4)])
def test_against_the_obvious_way(raters: int, agree: int) -> None:
    rng = np.random.default_rng(raters)
    days = [MON, TUE, SUN, NEXT, "2026-01-13"]
    rows = [
        (days[int(rng.integers(5))], "qrst"[int(rng.integers(4))], int(rng.random() < 0.7) * 2, r)
        for r in "abcdefgh" for _ in range(4)
    ]  # fmt: skip
    expected = {q for q in "qrst" if slow_gold([x for x in rows if x[1] == q], raters, agree)}
    rules = Snapshot(gold_raters=raters, gold_agree=agree)
    assert {row[0] for row in found(said(*rows), rules)} == expected


def slow_gold(rows: list[tuple[str, str, int, str]], raters: int, agree: int) -> bool:
    """One query of one product: is there a day by which the rule is met?"""
    for day in sorted({d for d, *_ in rows}):
        votes = {r: g for d, _, g, r in sorted(rows, key=lambda x: x[0]) if d <= day}
        top = max(list(votes.values()).count(g) for g in votes.values())
        if len(votes) >= raters and top >= agree:
            return True
    return False


ratings_of = st.lists(
    st.tuples(
        st.sampled_from([MON, TUE, SUN, NEXT]), st.sampled_from("qr"), st.integers(0, 2),
        st.sampled_from("abcd"), st.booleans(),
    ),
    max_size=14,
)  # fmt: skip


def slowly(rows: list[tuple[str, str, int, str, bool]]) -> dict[str, int]:
    """Query → grade of gold, looked for day by day among the last grades of each rater so far."""
    gold: dict[str, int] = {}
    for day in (MON, TUE, SUN, NEXT):
        for query in "qr":
            for held_out in (False, True):  # of both on one day what many raters agree on counts
                last = {r: g for d, q, g, r, h in rows
                        if d <= day and (q, h) == (query, held_out)}  # fmt: skip
                today = any((d, q, h) == (day, query, held_out) for d, q, _, _, h in rows)
                grades = list(last.values())
                best = min(set(grades), key=lambda g: (-grades.count(g), g), default=None)
                if best is None or not today:
                    continue
                n, agree = len(grades), grades.count(best)
                met = agree == n if held_out else n >= 3 and agree >= 2
                if met and query not in gold:
                    gold[query] = best
    return gold


@settings(max_examples=300)
@given(rows=ratings_of, late=st.sampled_from([None, "q"]))
def test_delivered_gold_is_frozen_like_drawn_gold(
    rows: list[tuple[str, str, int, str, bool]], late: str | None
) -> None:
    ordered = sorted(rows, key=lambda r: r[0])
    schema = said((MON, "q", 0, "a"))
    every = pl.concat([schema.clear(), said(*(r[:4] for r in ordered)).cast(schema.schema)])
    mask = pl.Series([r[4] for r in ordered], dtype=pl.Boolean)
    learnt, held = every.filter(~mask), every.filter(mask)
    sides = pl.DataFrame({"norm": [late], "side": ["train"]}) if late else None
    gold = frozen_gold(learnt, RULES, [ZH], sides, held)
    wanted = slowly(ordered)
    found_ = dict(gold.pairs.select("norm", "grade").iter_rows())
    assert found_ == {q: g for q, g in wanted.items() if q != late}
    assert gold.late == (late in wanted)
