"""Hours of the towers on this machine: the steps tried, up to a market's own, and the line said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from csrm_tasks.towers import dry_run as tried
from csrm_tasks.towers.train import TowerProgress
from tests.bases_fixtures import tiny_e5
from tests.llm_fixtures import make_market


def test_steps_grow_to_the_markets_own_and_hours_follow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = tiny_e5(tmp_path / "e5")
    market = make_market(tmp_path / "llm")
    sizes = {"batch_queries": 6, "batch_products": 3, "steps": 1200, "encoder": str(encoder)}
    towers = market.towers.model_copy(update=sizes)
    market = market.model_copy(update={"towers": towers})
    asked: list[tuple[int, int, int]] = []

    def train(model: Any, given: Any, queries: Any, products: Any, plan: Any, *_: Any) -> Any:
        asked.append((plan.steps, len(queries), len(products)))
        return TowerProgress(seconds=2.0 * len(given))

    with monkeypatch.context() as patched:
        patched.setattr(tried, "train", train)
        assert tried.step_seconds(towers, ["a"], ["b", "c"], seconds=1e6) == 36.0
        assert asked == [(1, n, 3 * n) for n in (1, 2, 4, 6)]
        assert (
            tried.step_seconds(towers, ["a"], ["b"], seconds=1.0) == 36.0
        )  # of one, in proportion
        assert len(asked) == 5
        line = tried.here(market, ["a"], ["b"])
    trainings = 2 + towers.hard_baseline + market.controls.towers_seen
    assert f"a step of 6 × 3 pairs 36 s; {trainings} trainings of 1,200 steps" in line
    assert f"at most {36 * 1200 * trainings / 3600:.2g} hours" in line
    assert tried.here(market, [], ["b"]) == ""
    assert tried.step_seconds(towers, ["라면 우유"], ["milk soup"], seconds=0.0) > 0.0  # for real
