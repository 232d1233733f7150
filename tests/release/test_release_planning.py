"""Plans: what is said to be detectable is detected, by the bounds that will judge."""

from __future__ import annotations

from datetime import UTC, datetime
from math import sqrt
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa

from csrm_tasks.demo.study.rollout_shoppers import World, a_day
from csrm_tasks.errors import DataError
from csrm_tasks.release.online.checks import (
    DISCORDANT,
    PLANNED,
    OnlineEvidence,
    evaluate_step,
    share_of_alpha,
)
from csrm_tasks.release.online.planning import (
    SQUARE,
    Line,
    Traffic,
    Z,
    detectable,
    lines,
    table,
)
from csrm_tasks.release.online.preference import Preferences, preference
from csrm_tasks.release.online.sequential import Stratum, difference, paired
from csrm_tasks.release.online.traffic import recent
from csrm_tasks.sections import Rollout, Step
from csrm_tasks.settings import Settings
from csrm_tasks.store import open_store, reading, writing
from csrm_tasks.store.tables import DAYS, SESSIONS

TRAFFIC = Traffic(4_000, 0.3, 0.6)
PLAN = Rollout(
    steps=(
        Step(weight=0, interleave=20, audits=300), Step(weight=10), Step(weight=50, margin=0.05),
    ),
    error_margin=None, latency_ratio=None,
)  # fmt: skip
ALPHA = share_of_alpha(PLAN)


def measured(step: int) -> dict[str, Line]:
    return {line.measure: line for line in lines(PLAN.steps[step], PLAN, TRAFFIC)}


def test_the_bounds_are_those_that_judge() -> None:
    """Half-widths of the tests themselves, on data with the planned variance."""
    split = difference([Stratum(2_000, 600, 2_000, 600, 0.5)], ALPHA, PLAN.planned_sessions)
    mixed = preference(Preferences(1_000, 0.0, 1_000 * SQUARE), ALPHA, PLANNED)
    audit = paired(30, 30, 300, ALPHA, DISCORDANT * 300)
    assert split and mixed and audit
    for found, units, spread, planned in (
        (split, 1_000, 0.21, PLAN.planned_sessions),
        (mixed, 1_000, SQUARE, PLANNED / SQUARE),
        (audit, 300, DISCORDANT, 300),
    ):
        error = Z * sqrt(spread / units)
        half = detectable(units, spread, planned, ALPHA) - error
        assert (found.hi - found.lo) / 2 == pytest.approx(half, rel=0.02)


def test_steps_have_lines_for_what_they_measure() -> None:
    assert list(measured(0)) == ["preference", "EM@1", "Defect@5"]
    assert list(measured(1)) == ["conversion"]
    assert measured(1)["conversion"].margin == pytest.approx(0.1 * 0.3)
    assert measured(2)["conversion"].days < measured(1)["conversion"].days * 4  # type: ignore[operator]
    assert lines(Step(weight=0), PLAN, TRAFFIC) == []
    nothing = lines(PLAN.steps[0], PLAN, Traffic(4_000, 0.3, 0.0))[0]
    assert nothing == Line("preference", 0.1, None, None)
    tight = Rollout(steps=(Step(weight=1, margin=0.0),))
    assert lines(tight.steps[0], tight, TRAFFIC)[0].days is None


@pytest.mark.parametrize("step", [1, 2])
def test_a_loss_that_is_said_to_be_detectable_is_found_and_an_equal_release_passes(
    step: int,
) -> None:
    line, rng = measured(step)["conversion"], np.random.default_rng(step)
    assert line.detectable is not None and line.days is not None

    def ends(judged: float, days: int) -> float:
        """The share of rollouts that the step has decided after so many days."""
        made = World((0.3, judged), (0, 0), (0, 0), (0, 0), (0, 0))
        share, hit = PLAN.steps[step].share, 0
        for _ in range(150):
            sessions = tuple(a_day(made, 4_000, share, rng) for _ in range(days))
            outcome, checks = evaluate_step(PLAN.steps[step], PLAN, OnlineEvidence(sessions))
            found = next(c for c in checks if c.name == "conversion").found
            assert found is not None
            hit += found.hi < 0 if judged < 0.3 else outcome == "SUCCESS"
        return hit / 150

    assert 0.7 <= ends(0.3 - line.detectable, PLAN.max_days) <= 0.9
    assert ends(0.3, line.days) >= 0.7
    assert ends(0.3, max(1, line.days // 3)) < 0.7


def test_the_table_says_margins_days_and_who_is_asked() -> None:
    text = "\n".join(table(PLAN, TRAFFIC))
    assert "4,000 sessions a day, 30.00% convert, 60.0% click or cart" in text
    assert "step 0: 0 %, 20 % interleaved, 1 days at least" in text
    slow = "\n".join(table(PLAN, Traffic(10, 0.3, 0.6)))
    assert "a person is asked after 21" in slow
    none = "\n".join(table(PLAN, Traffic(4_000, 0.3, 0.0)))
    assert "preference: nothing is seen of it" in none


def session(name: str, day: str, **more: Any) -> dict[str, Any]:
    moment = datetime.fromisoformat(f"{day}T12:00").replace(tzinfo=UTC)
    counts = dict.fromkeys(("searches", "impressions", "clicks", "carts", "purchases"), 0)
    return {
        "market": "m", "day": day, "locale": "zh-TW", "session_id": name, "bucket": "",
        "release": "", "mixed": False, "converted": False, "first_at": moment,
        "last_at": moment, **counts, **more,
    }  # fmt: skip


def test_traffic_is_that_of_the_last_published_days(both_settings: Settings) -> None:
    store = open_store(both_settings.db_url)
    with reading(store) as connection, pytest.raises(DataError, match="run csrm_ingest first"):
        recent(connection, "m", "zh-TW")
    rows = [session(f"a{n}", "2026-03-01", converted=n < 1, clicks=n % 2) for n in range(4)]
    rows += [session(f"b{n}", "2026-03-02", carts=int(n < 1)) for n in range(6)]
    rows += [session(f"c{n}", "2026-03-03", converted=True) for n in range(9)]  # not published
    rows += [session(f"d{n}", "2026-03-02", locale="ko-KR") for n in range(9)]
    with writing(store, "m") as connection:
        connection.execute(sa.insert(SESSIONS), rows)
        about = {"market": "m", "digest": "x", "rows_in": 9, "quarantined": 0, "share": 0.0}
        days = [about | {"day": day} for day in ("2026-03-01", "2026-03-02")]
        connection.execute(sa.insert(DAYS), days)
    with reading(store) as connection:
        assert recent(connection, "m", "zh-TW") == Traffic(5.0, 0.1, 0.3)
