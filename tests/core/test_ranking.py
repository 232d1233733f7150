"""The one order of results, against a slow and obvious sort."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st

from csrm_tasks.evaluation.metrics import top_hits
from csrm_tasks.ranking import best_first, places
from csrm_tasks.release.online import audits
from csrm_tasks.serving.answering import _order

# Few values, so that ties are common.
SCORE = st.sampled_from([None, math.nan, -math.inf, -0.5, -0.0, 0.0, 0.25, 0.5, 0.75, math.inf])
ROWS = st.lists(st.tuples(SCORE, st.integers(0, 3)), max_size=25)
NUMBER = st.sampled_from([0.0, 0.25, 0.5, 0.75])
LISTING = st.lists(st.tuples(NUMBER, st.integers(0, 2), st.integers(0, 2)), max_size=25)


def slow(scores: list[float | None]) -> list[int]:
    """Take the best that is left, the first of equals, until none has a score; then the rest."""
    left, order = list(range(len(scores))), []
    numbers = {i: s for i, s in enumerate(scores) if s is not None and not math.isnan(s)}
    while any(i in numbers for i in left):
        best = left[0]
        for i in left:
            if i in numbers and (best not in numbers or numbers[i] > numbers[best]):
                best = i
        left.remove(best)
        order.append(best)
    return [*order, *left]


@given(ROWS)
@settings(max_examples=300, deadline=None)
def test_the_order_is_that_of_a_slow_sort_in_every_group(rows: list[Any]) -> None:
    scores = [s for s, _ in rows]
    assert best_first(scores).tolist() == slow(scores)
    groups = np.array([g for _, g in rows], np.int64)
    expected = []
    for group in range(4):
        own = [i for i, (_, g) in enumerate(rows) if g == group]
        expected += [own[at] for at in slow([scores[i] for i in own])]
    order = best_first(scores, groups)
    assert order.tolist() == expected
    ranked = groups[order]
    assert places(ranked).tolist() == [ranked[:at].tolist().count(g) for at, g in enumerate(ranked)]


@given(LISTING)
@settings(max_examples=150, deadline=None)
def test_search_audit_and_metrics_rank_alike(rows: list[tuple[float, int, int]]) -> None:
    """A listing without defects, in order of its products' names: what is first, and the five."""
    score, grade, query = ([row[i] for row in rows] for i in range(3))
    shown = pl.DataFrame(
        {
            "query_id": [f"q{q}" for q in query],
            "query": [f"q{q}" for q in query],
            "product_id": [f"p{i:02}" for i in range(len(rows))],
            "title": [""] * len(rows),
        },
        schema=dict.fromkeys(("query_id", "query", "product_id", "title"), pl.String),
    )
    judge = SimpleNamespace(score=lambda *_: SimpleNamespace(rank_score=np.array(score)))
    page = audits.page(judge, shown, "new")
    em, defect = top_hits(np.array(query, np.int64), np.array(score), np.array(grade), 3)
    for q in range(3):
        own = [i for i in range(len(rows)) if query[i] == q]
        ranked = [own[at] for at in slow([score[i] for i in own])]
        top = page.filter(pl.col("query_id") == f"q{q}")
        assert top["product_id"].to_list() == [f"p{i:02}" for i in ranked[:5]]
        assert top["rank"].to_list() == list(range(1, len(ranked[:5]) + 1))
        assert em[q] == (bool(ranked) and grade[ranked[0]] == 2)
        assert defect[q] == (not ranked or any(grade[i] == 0 for i in ranked[:5]))
        scored: Any = SimpleNamespace(
            rank_score=np.array([score[i] for i in own]), is_defect=np.zeros(len(own), bool)
        )
        order, out = _order(scored, range(len(own)), len(own), 0.0)
        assert ([own[at] for at in order], out) == (ranked, [])
