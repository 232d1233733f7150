"""Simulated interleaving: it is the product's, and it decides sooner than the session split."""

from __future__ import annotations

import numpy as np
import pytest

from csrm_tasks.demo.study import interleaved_shoppers, interleaving
from csrm_tasks.release.interleaving import draft


def test_all_searches_at_once_are_interleaved_as_one_by_one() -> None:
    rng = np.random.default_rng(0)
    n, candidates, shows = 400, 14, 10
    first = np.argsort(rng.random((n, candidates)), axis=1)
    second = np.argsort(first + rng.normal(0, rng.choice([0.01, 0.5, 3.0], (n, 1)), first.shape))
    second = np.argsort(second, axis=1)
    flips = rng.random((n, shows)) < 0.5
    page, team = interleaved_shoppers.team_draft(first, second, flips)
    names = {None: -1, "stable": 0, "next": 1}
    for row in range(n):
        rankings = (np.argsort(places[row]).tolist() for places in (first, second))
        found = draft(*rankings, iter([*flips[row].tolist(), True, True, True]))
        assert page[row].tolist() == list(found)[:shows]
        assert team[row].tolist() == [names[t] for t in found.values()][:shows]
    assert (team == -1).any() and (team[:, 0] >= 0).any()


def test_interleaving_needs_a_fifth_of_the_sessions_and_errs_no_more_than_alpha() -> None:
    table, figures = interleaving.rows(interleaving.QUICK)
    assert len(table) == 1 + 2 * len(interleaving.RANKERS)
    assert all(figures[f"sessions_ratio_{n.replace(' ', '_')}"] >= 5 for n in interleaving.RANKERS)
    by_test = [row for row in table[1:] if row[2] == "interleaving"]
    assert all(row[5] == "0.0%" for row in by_test)  # never the worse one
    _, equal = interleaving.equal_rows(interleaving.QUICK)
    assert equal["equal_error"] <= interleaving.ALPHA


def test_the_same_seed_is_the_same_simulation() -> None:
    made = interleaved_shoppers.market(300, 40, 1)
    runs = [
        interleaved_shoppers.interleaved(made, (0.1, 0.5), 500, np.random.default_rng(4))
        for _ in range(2)
    ]
    assert runs[0].next.tolist() == runs[1].next.tolist()
    assert runs[0].next.sum() > 0 and runs[0].bought.any()


def test_rankers_that_rank_alike_give_no_credit(monkeypatch: pytest.MonkeyPatch) -> None:
    made = interleaved_shoppers.market(300, 40, 1)
    monkeypatch.setattr(interleaved_shoppers, "NOISE", 0.0)
    drawn = interleaved_shoppers.interleaved(made, (0.3, 0.3), 500, np.random.default_rng(4))
    assert not drawn.next.any() and not drawn.stable.any()
