"""Weeks that their days trigger: ten nights, one late, one corrected, one bad, through Airflow.

The nights are real and so is Airflow's counting of partitions; a week's training is its snapshot
and a registration.
"""

from __future__ import annotations

from typing import Any

import pytest

from csrm_tasks.artifacts import ArtifactStore
from csrm_tasks.settings import Settings
from csrm_tasks.steps import run_step
from csrm_tasks.steps.night import take_in
from tests.weeks_fixtures import (
    MONDAYS,
    NIGHTS,
    WEEK_1,
    WEEK_2,
    deliver,
    digest,
    installed,
    of_days,
    simulate,
    train,
    trained,
)

pytestmark = [pytest.mark.airflow, pytest.mark.slow]
A, B = WEEK_1, WEEK_2


def night(day: str, how: str = "right") -> list[list[str]]:
    return [["deliver", day, how], ["night", day], ["tick"]]


def by_hand(day: str) -> list[list[str]]:
    return [["deliver", day, "right"], ["by hand", day]]


# The first week's third night is bad and comes again; its second comes when the next week is under
# way; the next week's fourth is corrected. Somebody tells Airflow of days that are not published,
# and some nights are taken in at the command line, where Airflow hears nothing of them.
SEEN_TOO_SOON = [*night(A[0]), *night(A[2], "bad"), *by_hand(A[3]), *by_hand(A[4])]
TOLD = [*([["told", day] for day in A]), ["tick"]]
AS_THEY_CAME = [
    *SEEN_TOO_SOON, *TOLD, *night(B[0]), *night(A[2]), *by_hand(B[1]), *night(A[1]),
    *night(B[3], "wrong"), *by_hand(B[2]), *night(B[3]), *night(B[4]), ["state"],
]  # fmt: skip
# Then a day of a week that was trained is corrected, and the first week's run is cleared.
PLAN = [*AS_THEY_CAME, *night(B[0], "wrong"), ["again", "1"]]


@pytest.fixture(scope="module")
def as_they_came(tmp_path_factory: pytest.TempPathFactory) -> tuple[Settings, list[Any]]:
    folder = tmp_path_factory.mktemp("weeks")
    settings = installed(folder)
    return settings, simulate(settings, folder / "airflow", PLAN)


@pytest.fixture(scope="module")
def in_order(tmp_path_factory: pytest.TempPathFactory) -> tuple[Settings, str]:
    """All came right at first: nights one after another, each week trained when it was over."""
    settings = installed(tmp_path_factory.mktemp("in_order"))
    for week in (A, B):
        for day in week:
            deliver(settings, day)
            take_in(of_days(), settings, day)
        given = {"stage": 2, "until": week[-1]}
        train(settings, run_step("snapshot", of_days(), {}, given, settings))
    return settings, digest(settings)


def outcomes(found: list[Any], what: str) -> list[Any]:
    return [one for (kind, *_), one in zip(PLAN, found, strict=False) if kind == what]


def test_the_state_is_that_of_nights_that_all_came_right_at_first(
    as_they_came: tuple[Settings, list[Any]], in_order: tuple[Settings, str]
) -> None:
    settings, found = as_they_came
    assert outcomes(found, "state") == [in_order[1]]
    assert len(trained(settings)) == 2
    assert contents(settings) == contents(in_order[0])


def contents(settings: Settings) -> list[str]:
    """The digests of the weeks' snapshots."""
    store = ArtifactStore(settings.artifacts, settings.cache)
    return [store.open(ref).digest for ref in trained(settings)]


def test_only_the_bad_night_failed(as_they_came: tuple[Settings, list[Any]]) -> None:
    nights = [given[0] for kind, *given in PLAN if kind == "night"]
    states = outcomes(as_they_came[1], "night")
    failed = [day for day, state in zip(nights, states, strict=True) if state != "success"]
    assert failed == [A[2]] and nights.count(A[2]) == 2


def test_each_week_is_trained_once_by_the_night_that_completes_it(
    as_they_came: tuple[Settings, list[Any]],
) -> None:
    found = as_they_came[1]
    due = {
        PLAN[n - 1][1]: run["week"]
        for n, (kind, *_) in enumerate(PLAN)
        if kind == "tick"
        for run in found[n]
        if run["tasks"]["register"] == "success"
    }
    assert due == {A[1]: MONDAYS[0], B[4]: MONDAYS[1]}


def test_the_store_is_the_judge_of_what_airflow_was_told(
    as_they_came: tuple[Settings, list[Any]],
) -> None:
    (run,) = as_they_came[1][len([*SEEN_TOO_SOON, *TOLD]) - 1]
    assert (run["week"], run["state"]) == (MONDAYS[0], "success")
    skipped = dict.fromkeys(("snapshot", "bundle", "register"), "skipped")
    assert run["tasks"] == {"is_due": "success"} | skipped


def test_a_day_corrected_after_its_week_was_trained_trains_nothing(
    as_they_came: tuple[Settings, list[Any]],
) -> None:
    assert outcomes(as_they_came[1], "tick")[-1] == []


def test_a_run_that_is_cleared_trains_its_week_as_before(
    as_they_came: tuple[Settings, list[Any]],
) -> None:
    settings, found = as_they_came
    (run,) = found[len(PLAN) - 1]
    assert (run["week"], set(run["tasks"].values())) == (MONDAYS[0], {"success"})
    assert len(trained(settings)) == 2  # and no third registration


def test_every_published_day_was_told_of_as_its_partition(
    as_they_came: tuple[Settings, list[Any]],
) -> None:
    assert set(as_they_came[1][-1]) == set(NIGHTS)
