"""Which week is due: by the days that the store has published, and what was trained before."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import date, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from csrm_tasks.artifacts import ArtifactStore, json_digest
from csrm_tasks.dataset.source import published_days
from csrm_tasks.errors import ConfigError
from csrm_tasks.sections import WeekOfDays
from csrm_tasks.settings import Settings, load_settings
from csrm_tasks.steps import run_step
from csrm_tasks.steps.weeks import Trained, partitions, sunday_of, trained, why_not, why_not_due
from csrm_tasks.store import open_store, reading, writing
from csrm_tasks.store.tables import DAYS
from tests.weeks_fixtures import (
    FIVE,
    MARKET,
    NIGHTS,
    WEEK_1,
    WEEK_2,
    make_live,
    of_days,
    train,
)

SUNDAY = date(2026, 1, 11)
AROUND = [(SUNDAY + timedelta(days=n)).isoformat() for n in range(-10, 12)]
pytestmark = pytest.mark.usefixtures("fingerprints_hold")


def is_due(rule: WeekOfDays, days: dict[str, str], before: list[Trained]) -> bool:
    """The same in other words: by counting."""
    own = [d for d in days if 0 <= (SUNDAY - date.fromisoformat(d)).days < 7]
    latest = max((date.fromisoformat(d) for d in days), default=date.min)
    over = (latest - SUNDAY).days >= rule.wait_days if days else False
    complete = len(own) == 7 or (len(own) >= rule.at_least and over)
    later = [t for t in before if date.fromisoformat(t.until) > SUNDAY]
    same = [t for t in before if t.until == SUNDAY.isoformat()]
    until = {d: x for d, x in days.items() if date.fromisoformat(d) <= SUNDAY}
    done = same and (not rule.again or any(t.days == until for t in same))
    return complete and not later and not done


published = st.dictionaries(st.sampled_from(AROUND), st.sampled_from("ab"), max_size=len(AROUND))
rules = st.builds(
    WeekOfDays, at_least=st.integers(1, 7), wait_days=st.integers(0, 7), again=st.booleans()
)


@given(days=published, rule=rules, data=st.data())
@hypothesis_settings(max_examples=600)
def test_a_week_is_due_as_counting_says(
    days: dict[str, str], rule: WeekOfDays, data: st.DataObject
) -> None:
    ends = [SUNDAY + timedelta(days=7 * n) for n in (-1, 0, 1)]
    until = {d: x for d, x in days.items() if d <= SUNDAY.isoformat()}
    held = st.one_of(st.just(until), published)
    snapshots = st.builds(Trained, st.sampled_from([e.isoformat() for e in ends]), held)
    before = data.draw(st.lists(snapshots, max_size=3))
    assert (why_not(rule, days, before, SUNDAY) == "") == is_due(rule, days, before)


def installation(tmp_path: Path, days: Iterable[str] = ()) -> Settings:
    """An installation whose store holds nothing but that these days are published."""
    settings = load_settings({"CSRM_HOME": str(tmp_path / "home")})
    publish(settings, dict.fromkeys(days, "at first"))
    return settings


def publish(settings: Settings, days: dict[str, str]) -> None:
    """Let the store say that days are published, or published again, with these digests."""
    with writing(open_store(settings.db_url), MARKET) as connection:
        for day, digest in days.items():
            here = (DAYS.c.market == MARKET, DAYS.c.day == day)
            connection.execute(sa.delete(DAYS).where(*here))
            row = {"digest": digest, "rows_in": 1, "quarantined": 0, "share": 0.0}
            connection.execute(sa.insert(DAYS).values(market=MARKET, day=day, **row))


def snapshot(settings: Settings, until: str) -> str:
    """Publish what says that it is a snapshot of the published days, as the step notes it."""
    with reading(open_store(settings.db_url)) as connection:
        days = published_days(connection, MARKET, until)
    about = {"params": {"stage": 2, "until": until}, "external_inputs": days}
    folder = settings.work / "empty"
    folder.mkdir(parents=True, exist_ok=True)
    store = ArtifactStore(settings.artifacts, settings.cache)
    ref = f"{MARKET}/snapshot/{json_digest(about)[:20]}"
    return store.publish(ref, folder, facts={}, inputs={}, about=about).ref


def claim(settings: Settings, run: str, until: str = WEEK_1[-1], rule: WeekOfDays = FIVE) -> str:
    given = {"until": until, "run": run}
    ref = run_step("claim_week", of_days(rule), {}, given, settings)
    said = ArtifactStore(settings.artifacts, settings.cache).open(ref).facts["why_not"]
    return str(said)


def test_a_week_from_its_days_to_its_registration(tmp_path: Path) -> None:
    settings = installation(tmp_path, WEEK_1[:-1])
    assert "4 of its days are published, and schedule.retrain takes 5" in claim(settings, "early")
    assert partitions(of_days(), settings, WEEK_1[1]) == [WEEK_1[1]]
    publish(settings, {WEEK_1[-1]: "at first"})
    assert "run csrm_cold_start first" in claim(settings, "cold")
    make_live(settings)
    # Now it is due, and whoever is told of one of its days, or of the next week's, hears of all.
    assert partitions(of_days(), settings, WEEK_1[1]) == list(WEEK_1)
    assert partitions(of_days(), settings, WEEK_2[0]) == [*WEEK_1, WEEK_2[0]]
    assert claim(settings, "early") == claim(settings, "first") == ""
    train(settings, snapshot(settings, WEEK_1[-1]))
    assert [t.until for t in trained(of_days(), settings)] == [WEEK_1[-1]]
    assert "it is trained already" in claim(settings, "second")
    assert claim(settings, "first") == ""  # the run that trains it, however often it is cleared
    assert partitions(of_days(), settings, WEEK_1[1]) == [WEEK_1[1]]
    # A day that is corrected afterwards: no second training, unless the market asks for one.
    publish(settings, {WEEK_1[1]: "corrected"})
    again = WeekOfDays(at_least=5, wait_days=0, again=True)
    assert "it is trained already" in claim(settings, "third")
    assert partitions(of_days(again), settings, WEEK_1[1]) == list(WEEK_1)
    assert claim(settings, "third", rule=again) == ""
    train(settings, snapshot(settings, WEEK_1[-1]))
    assert "it is trained already" in claim(settings, "fourth", rule=again)


def test_a_week_before_one_that_is_trained_stays(tmp_path: Path) -> None:
    settings = installation(tmp_path, NIGHTS)
    make_live(settings)
    train(settings, snapshot(settings, WEEK_2[-1]))
    assert f"a later week, up to {WEEK_2[-1]}, is trained already" in claim(settings, "late")
    assert partitions(of_days(), settings, WEEK_1[0]) == [WEEK_1[0]]


def test_a_market_by_the_clock_tells_of_its_day_and_counts_none(tmp_path: Path) -> None:
    settings = installation(tmp_path, WEEK_1)
    cron = of_days("0 4 * * 1")
    assert partitions(cron, settings, WEEK_1[1]) == [WEEK_1[1]]
    with pytest.raises(ConfigError, match="counts no days"):
        why_not_due(cron, settings, SUNDAY)


@pytest.mark.parametrize(("day", "sunday"), [("2026-01-05", "2026-01-11"),
                                             ("2026-01-11", "2026-01-11"),
                                             ("2025-12-31", "2026-01-04")])  # fmt: skip
def test_weeks_are_iso_weeks(day: str, sunday: str) -> None:
    assert sunday_of(date.fromisoformat(day)).isoformat() == sunday
