"""Simulated interleaving: it is the product's, and it decides sooner than the session split."""

from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner

from csrm_tasks.cli.rollout import rollout
from csrm_tasks.demo.study import audit_world, interleaved_shoppers, interleaving
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


@pytest.fixture(scope="module")
def printed() -> str:
    found = CliRunner().invoke(rollout, ["sensitivity", "--quick"])
    assert found.exit_code == 0, found.output
    return found.output


def test_interleaving_needs_a_fifth_of_the_sessions_and_errs_no_more_than_alpha(
    printed: str,
) -> None:
    figures = json.loads(printed.splitlines()[-1])["figures"]
    assert all(figures[f"sessions_ratio_{n.replace(' ', '_')}"] >= 5 for n in interleaving.RANKERS)
    by_test = [line for line in printed.splitlines() if "| interleaving | " in line]
    decided = [line for line in by_test if line.count("→") == 1]
    assert len(decided) == len(interleaving.RANKERS)
    assert all(line.endswith("| 0.0% |") for line in decided)  # never the worse one
    assert figures["equal_error"] <= interleaving.ALPHA


def test_audits_by_strata_with_an_llm_are_half_as_wide_and_cover(printed: str) -> None:
    """Small; docs/ROLLOUT.md has the figures of 2,000."""
    figures = json.loads(printed.splitlines()[-1])["figures"]
    for measure in audit_world.MEASURES:
        assert figures[f"width_{measure}_strata_LLM"] < 0.5
        assert figures[f"textbook_{measure}_strata_LLM"] < 0.6
        assert figures[f"width_{measure}_strata_useless_LLM"] < 0.85
        for way in ("plain_draw", "strata", "strata_LLM", "strata_useless_LLM"):
            assert figures[f"covered_{measure}_{way}"] >= 0.93  # 300 audits: 95 % less 1.6 errors


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
