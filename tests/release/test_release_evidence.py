"""Online evidence as it is read: sessions by step and day, serving figures, audits."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa

from csrm_tasks.blobs import open_blobs
from csrm_tasks.errors import DataError
from csrm_tasks.release import rollout
from csrm_tasks.release.online import evidence as online_evidence
from csrm_tasks.release.online import sessions
from csrm_tasks.release.online.checks import Audit
from csrm_tasks.release.online.preference import Preferences
from csrm_tasks.release.online.sequential import Stratum
from csrm_tasks.release.online.span import Span
from csrm_tasks.release.rollout import CurrentRollout, ShareWindow
from csrm_tasks.sections import Rollout, Step
from csrm_tasks.serving.figures import Figures
from csrm_tasks.settings import Settings
from csrm_tasks.store import open_store, reading, writing
from csrm_tasks.store.tables import INTERLEAVED, SESSIONS

M, LOCALE = "m", "zh-TW"
STATE = CurrentRollout(
    "new", "old", Rollout(), 2, 9,
    (
        ShareWindow("2026-03-01T12:00:00+00:00", 0.0),
        ShareWindow("2026-03-02T12:00:00+00:00", 0.01),
        ShareWindow("2026-03-03T12:00:00+00:00", 0.5),
    ),
)  # fmt: skip


@pytest.fixture
def settings(both_settings: Settings) -> Settings:
    return both_settings


def row(session: str, at: str, release: str, bought: bool = False, **more: Any) -> dict[str, Any]:
    moment = datetime.fromisoformat(at).replace(tzinfo=UTC)
    counts = dict.fromkeys(("searches", "impressions", "clicks", "carts", "purchases"), 1)
    return {
        "market": M, "day": at[:10], "locale": LOCALE, "session_id": session, "bucket": "",
        "release": release, "mixed": False, "converted": bought, "first_at": moment,
        "last_at": moment + timedelta(minutes=5), **counts, **more,
    }  # fmt: skip


ROWS = [
    row("shadow", "2026-03-01T13:00", "new"),  # shadow answers nobody
    row("early", "2026-03-02T12:14", "new"),  # servers had not followed yet
    row("a", "2026-03-02T12:15", "new", True),
    row("b", "2026-03-02T13:00", "old"),
    row("c", "2026-03-02T23:00", "old"),
    row("c", "2026-03-02T23:00", "", True, day="2026-03-03"),  # … and bought past midnight
    row("d", "2026-03-03T11:59", "new"),  # began in the step before
    row("e", "2026-03-03T11:59", "old", True),
    row("f", "2026-03-03T13:00", "new"),
    row("g", "2026-03-03T13:00", "old", True),
    row("h", "2026-03-03T13:30", "other", True),  # of no arm
    row("i", "2026-03-03T14:00", "new", locale="ko-KR"),
    row("j", "2026-03-03T14:00", "new", market="n"),
    row("k", "2026-03-04T00:00", "new", True),  # of the next day
    row("l", "2026-03-03T22:00", "", day="2026-03-04"),  # delivered a day late
]


def stored(settings: Settings, rows: list[dict[str, Any]]) -> None:
    with writing(open_store(settings.db_url), M) as connection:
        connection.execute(sa.insert(SESSIONS), rows)


def span(day: str, zone: str = "UTC", state: CurrentRollout = STATE) -> Span:
    return Span.of(state, day, zone)


def strata(
    settings: Settings, day: str, zone: str = "UTC", state: CurrentRollout = STATE
) -> tuple[Stratum, ...]:
    with reading(open_store(settings.db_url)) as connection:
        return sessions.session_strata(connection, M, LOCALE, state, span(day, zone, state))


def test_sessions_count_in_the_step_and_for_the_release_that_they_began_with(
    settings: Settings,
) -> None:
    stored(settings, ROWS)
    first = [Stratum(1, 1, 2, 1, 0.01), Stratum(1, 0, 1, 1, 0.01)]
    assert list(strata(settings, "2026-03-03")) == [*first, Stratum(1, 0, 1, 1, 0.5)]
    assert list(strata(settings, "2026-03-02")) == [Stratum(1, 1, 2, 0, 0.01)]
    assert list(strata(settings, "2026-03-04"))[3:] == [Stratum(1, 1, 0, 0, 0.5)]


def test_a_session_is_its_first_searchs_whatever_the_order_of_delivery(settings: Settings) -> None:
    late = row("x", "2026-03-03T13:00", "old", day="2026-03-04")
    stored(settings, [row("x", "2026-03-03T14:00", "new", True), late])
    assert list(strata(settings, "2026-03-04")) == [Stratum(0, 0, 1, 1, 0.5)]


def test_a_holdout_is_a_window_too(settings: Settings) -> None:
    stored(settings, ROWS[9:11])
    launched = replace(
        STATE,
        launched=True,
        windows=(*STATE.windows, ShareWindow("2026-03-03T12:30:00+00:00", 0.95)),
    )
    with reading(open_store(settings.db_url)) as connection:
        found = sessions.session_strata(connection, M, LOCALE, launched, span("2026-03-03"))
    assert found == (Stratum(0, 0, 1, 1, 0.95),)


def credited(session: str, at: str, release: str, number: int, **more: Any) -> dict[str, Any]:
    moment = datetime.fromisoformat(at).replace(tzinfo=UTC)
    return {
        "market": M, "day": at[:10], "locale": LOCALE, "session_id": session, "release": release,
        "credits": number, "first_at": moment, **more,
    }  # fmt: skip


CREDITED = [
    credited("before", "2026-03-01T11:00", "new", 3),  # the rollout had not begun
    credited("a", "2026-03-01T13:00", "new", 3),
    credited("a", "2026-03-01T13:01", "old", 1),
    credited("b", "2026-03-02T13:00", "old", 2),
    credited("c", "2026-03-02T23:59", "new", 1),
    credited("c", "2026-03-03T00:01", "old", 1),  # past midnight: one session
    credited("d", "2026-03-02T13:00", "other", 4),
    credited("e", "2026-03-02T13:00", "new", 4, locale="ko-KR"),
    credited("f", "2026-03-02T13:00", "new", 4, market="n"),
    credited("g", "2026-03-04T00:00", "new", 4),  # of the next day
]


@pytest.mark.parametrize(
    ("day", "expected"),
    [
        ("2026-03-01", [(3, 1)]),
        ("2026-03-02", [(3, 1), (0, 2), (1, 0)]),
        ("2026-03-03", [(3, 1), (0, 2), (1, 1)]),
        ("2026-03-04", [(3, 1), (0, 2), (1, 1), (4, 0)]),
    ],
)
def test_interleaved_sessions_prefer_what_their_credits_say(
    settings: Settings, day: str, expected: list[tuple[int, int]]
) -> None:
    with writing(open_store(settings.db_url), M) as connection:
        connection.execute(sa.insert(INTERLEAVED), CREDITED)
    with reading(open_store(settings.db_url)) as connection:
        found = sessions.preferences(connection, M, LOCALE, STATE, span(day))
    assert found == Preferences.of(expected)


def test_an_interleaved_session_is_of_neither_arm(settings: Settings) -> None:
    both = [row("x", "2026-03-03T13:00", r, True, bucket="interleaved") for r in ("new",)]
    stored(settings, [*both, row("y", "2026-03-03T13:00", "old", bucket="stable")])
    assert list(strata(settings, "2026-03-03")) == [Stratum(0, 0, 1, 0, 0.5)]


def test_sessions_are_counted_by_what_their_shoppers_did_before_the_rollout(
    settings: Settings,
) -> None:
    past = [
        row("old-1", "2026-02-20T10:00", "x", True, client_id="k1"),
        row("old-2", "2026-02-21T10:00", "x", client_id="k1"),
        row("old-3", "2026-01-20T10:00", "x", True, client_id="k2"),  # too long ago
        row("old-4", "2026-02-28T10:00", "x", True, client_id=""),
        row("old-5", "2026-03-01T09:00", "x", True, client_id="k3"),  # the first day is no past
    ]
    stored(settings, past)
    owners = {"a": "k1", "b": "k1", "c": "k2", "f": "k3", "g": "nobody"}
    stored(settings, [r | {"client_id": owners.get(r["session_id"], "")} for r in ROWS])
    with reading(open_store(settings.db_url)) as connection:
        found = sessions.session_groups(connection, M, LOCALE, STATE, span("2026-03-03"))
    expected = strata(settings, "2026-03-03")
    for n, stratum in enumerate(expected):  # the same sessions as without
        for treated, number, hits in (
            (True, stratum.treated, stratum.treated_hits),
            (False, stratum.control, stratum.control_hits),
        ):
            here = (found.stratum == n) & (found.treated == treated)
            assert found.number[here].sum() == number
            assert found.number[here] @ found.outcome[here] == hits
    known = {
        (int(s), bool(t), int(o), *np.round(np.expm1(k)).astype(int).tolist()): int(n)
        for s, t, o, k, n in zip(
            found.stratum, found.treated, found.outcome, found.known, found.number, strict=True
        )
    }
    assert {k: n for k, n in known.items() if k[3]} == {
        (0, True, 1, 2, 1): 1,
        (0, False, 0, 2, 1): 1,
    }


def report(settings: Settings, day: str, figures: Any) -> None:
    path = Path(settings.routing) / M / "serving" / f"{day}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(figures if isinstance(figures, str) else json.dumps(figures))


def figures(
    requests: int, errors: int, buckets: dict[str, int], at: str = "20:15/9"
) -> dict[str, Any]:
    """A release's day with one window."""
    one = {"requests": requests, "errors": errors, "buckets": buckets}
    return one | {"p99_ms": 1.0, "windows": {at: one}}


@pytest.fixture
def local(tmp_path: Path) -> Settings:
    return Settings(
        tmp_path, "", "", tmp_path, str(tmp_path / "routing"), "sqlite://", "", tmp_path, 1
    )


def test_serving_figures_are_those_of_times_with_both_releases(local: Settings) -> None:
    old = figures(900, 9, {"80": 891})
    report(local, "2026-03-01", {"new": figures(100, 1, {"82": 99}), "old": old})
    report(local, "2026-03-02", {"old": old})  # nothing of the new one
    one = figures(300, 0, {"-3": 100, "82": 200})
    report(local, "2026-03-03", {"new": one, "old": old, "x": old})
    report(local, "2026-03-04", {"new": figures(100, 1, {"99": 99}), "old": old})
    blobs = open_blobs(local.routing)
    found = online_evidence.serving(blobs, M, STATE, span("2026-03-03"))
    assert found is not None
    assert found.failed().tolist() == [[100, 1, 900, 9], [300, 0, 900, 9]]
    assert found.times.sum(axis=2).tolist() == [[99, 891], [300, 891]]
    assert found.times[1, 0, [-3 - found.first, 82 - found.first]].tolist() == [100, 200]
    assert online_evidence.serving(blobs, "other", STATE, span("2026-03-03")) is None


def test_another_document_or_quarter_of_an_hour_is_another_time(local: Settings) -> None:
    other = figures(900, 9, {"80": 891}, "20:15/8")
    report(local, "2026-03-01", {"new": figures(100, 1, {"82": 99}), "old": other})
    later = figures(900, 9, {"80": 891}, "20:30/9")
    report(local, "2026-03-02", {"new": figures(100, 1, {"82": 99}), "old": later})
    older_server = {"requests": 100, "errors": 1, "p99_ms": 50.0}
    report(local, "2026-03-03", {"new": older_server, "old": older_server})
    assert online_evidence.serving(open_blobs(local.routing), M, STATE, span("2026-03-03")) is None


def note(
    server: Figures, at: datetime, release: str, generation: int | None, failed: bool = False,
    remembered: bool = False,
) -> None:  # fmt: skip
    server.note(at, release, 0.05, failed=failed, generation=generation, remembered=remembered)


def test_what_servers_count_is_read_back_by_quarter_and_document(local: Settings) -> None:
    """Two servers, one of which cannot write at first; requests that chance did not assign."""
    blobs = open_blobs(local.routing)
    servers = [Figures(M), Figures(M)]
    at = datetime(2026, 3, 3, 20, 29, 59, tzinfo=UTC)
    for server in servers:
        for release, generation in (("new", 9), ("old", 9), ("new", 10), ("old", 10)):
            note(server, at, release, generation)
        note(server, at + timedelta(seconds=1), "old", 10, failed=True)
        note(server, at, "old", None, failed=True)
        note(server, at, "new", 10, remembered=True)

    class Away:
        def read(self, _: str) -> bytes:
            raise OSError("away")

    with pytest.raises(OSError, match="away"):
        servers[0].flush(Away())  # type: ignore[arg-type]
    note(servers[0], at, "new", 9, failed=True)
    for server in servers:
        server.flush(blobs)
        server.flush(blobs)  # nothing is new
    found = online_evidence.serving(blobs, M, STATE, span("2026-03-03"))
    assert found is not None
    assert found.failed().tolist() == [[2, 0, 2, 0], [3, 1, 2, 0]]  # of rows 10 and 9
    day = json.loads(blobs.read(f"{M}/serving/2026-03-03.json") or b"")
    assert {r: (d["requests"], d["errors"]) for r, d in day.items()} == {
        "new": (7, 1), "old": (8, 4),
    }  # fmt: skip
    assert list(day["old"]["windows"]) == ["20:15/10", "20:15/9", "20:30/10"]
    assert list(day["new"]["windows"]) == ["20:15/10", "20:15/10/remembered", "20:15/9"]
    assert found.quarters.tolist() == [0, 0]
    assert 50 <= day["old"]["p99_ms"] < 50 * 1.05


def window(requests: int, errors: int, buckets: dict[str, int]) -> str:
    return json.dumps({"new": {"windows": {"20:15/9": figures(requests, errors, buckets)}}})


@pytest.mark.parametrize(
    "bad",
    ["{", "[]", '{"new": {"windows": {"20:15/9": {}}}}', '{"new": 3}', window(0, 0, {}),
     window(5, 6, {}), window(5, 1, {"3": 5}), window(5, 1, {"x": 4}), window(5, 1, {"900": 4}),
     window(5, 1, {"3": 6, "4": -2})],
)  # fmt: skip
def test_figures_that_cannot_be_read_name_their_file(local: Settings, bad: str) -> None:
    report(local, "2026-03-02", bad)
    with pytest.raises(DataError, match=r"m/serving/2026-03-02\.json: .*expected an object"):
        online_evidence.serving(open_blobs(local.routing), M, STATE, span("2026-03-03"))


@pytest.mark.parametrize("name", ["8:15/9", "20.15/9", "24:00/9", "20:60/9", "yesterday/9"])
def test_a_window_that_says_no_quarter_of_an_hour_names_its_file(
    local: Settings, name: str
) -> None:
    report(local, "2026-03-02", {"new": figures(5, 1, {"3": 4}, at=name)})
    with pytest.raises(DataError, match=r"m/serving/2026-03-02\.json: .*HH:MM"):
        online_evidence.serving(open_blobs(local.routing), M, STATE, span("2026-03-03"))


SEOUL, ANGELES, UTC_ = "Asia/Seoul", "America/Los_Angeles", "UTC"
# in Los Angeles 2026-03-08 has 23 hours and 2026-11-01 has 25
ENDS = [
    (UTC_, "2026-03-03", "2026-03-04T00:00"),
    (SEOUL, "2026-03-03", "2026-03-03T15:00"),
    (ANGELES, "2026-03-03", "2026-03-04T08:00"),
    (ANGELES, "2026-03-07", "2026-03-08T08:00"),
    (ANGELES, "2026-03-08", "2026-03-09T07:00"),
    (ANGELES, "2026-10-31", "2026-11-01T07:00"),
    (ANGELES, "2026-11-01", "2026-11-02T08:00"),
]


@pytest.mark.parametrize(("zone", "day", "until"), ENDS)
def test_a_day_is_over_by_the_markets_clocks(zone: str, day: str, until: str) -> None:
    state = replace(STATE, windows=(ShareWindow(f"{day}T12:00:00+00:00", 0.5),))
    assert span(day, zone, state).until == datetime.fromisoformat(until).replace(tzinfo=UTC)


@pytest.mark.parametrize(
    ("zone", "since", "passes"),
    [  # a step of one day that began at 06:00 by the market's clocks
        (UTC_, "2026-03-03T06:00", "2026-03-04"),
        (SEOUL, "2026-03-02T21:00", "2026-03-04"),  # in UTC's days March 3 would do
        (ANGELES, "2026-03-03T14:00", "2026-03-04"),
        (ANGELES, "2026-03-07T14:00", "2026-03-08"),  # 18 + 23 hours
        (ANGELES, "2026-10-31T13:00", "2026-11-01"),
    ],
)
def test_a_hold_of_one_day_passes_with_a_whole_day_of_the_markets_data(
    zone: str, since: str, passes: str
) -> None:
    plan = Rollout(steps=(Step(weight=5, days=1),))
    state = CurrentRollout("new", "old", plan, 0, 9, (ShareWindow(f"{since}:00+00:00", 0.05),))
    first = date.fromisoformat(passes) - timedelta(days=1)
    moves = []
    for day in (first, date.fromisoformat(passes)):
        until = span(str(day), zone, state).until.isoformat()
        held = rollout.days_since(state.windows[-1].since, until)
        moves.append(rollout.next_move(state, ["SUCCESS"], held))
    assert moves == ["wait", "advance"]


@pytest.mark.parametrize(
    ("zone", "market_days", "utc_days"),
    [
        (UTC_, ["02", "03"], ["02", "03"]),
        (SEOUL, ["02", "03"], ["02", "03"]),
        (ANGELES, ["01", "02", "03"], ["02", "03", "04"]),  # it is evening there, a day earlier
    ],
)
def test_a_rollout_has_the_markets_days_and_the_utc_days_of_its_servers(
    zone: str, market_days: list[str], utc_days: list[str]
) -> None:
    state = replace(STATE, windows=(ShareWindow("2026-03-02T03:00:00+00:00", 0.5),))
    found = span("2026-03-03", zone, state)
    assert found.market_days() == [f"2026-03-{d}" for d in market_days]
    assert found.utc_days() == [f"2026-03-{d}" for d in utc_days]


def test_sessions_of_the_markets_first_evening_count_and_those_of_its_next_day_do_not(
    settings: Settings,
) -> None:
    """19:00 of March 1 in Los Angeles is March 2 in UTC; the store has it under March 1."""
    state = replace(STATE, windows=(ShareWindow("2026-03-02T03:00:00+00:00", 0.5),))
    stored(settings, [
        row("a", "2026-03-02T04:00", "new", True, day="2026-03-01"),
        row("b", "2026-03-03T07:59", "old", day="2026-03-02"),
        row("c", "2026-03-03T08:00", "old", True, day="2026-03-02"),  # past midnight there
    ])  # fmt: skip
    found = strata(settings, "2026-03-02", ANGELES, state)
    assert found == (Stratum(1, 1, 0, 0, 0.5), Stratum(0, 0, 1, 0, 0.5))
    # In Seoul it is noon of March 2, which ends at 15:00 UTC.
    assert strata(settings, "2026-03-01", SEOUL, state) == ()


@pytest.mark.parametrize(
    ("zone", "quarters"),
    [
        (UTC_, ["03T07:45", "03T08:00", "03T14:45", "03T15:00"]),
        (SEOUL, ["03T07:45", "03T08:00", "03T14:45"]),
        (ANGELES, ["03T07:45", "03T08:00", "03T14:45", "03T15:00", "04T07:45"]),
    ],
)
def test_serving_figures_end_with_the_markets_day(
    local: Settings, zone: str, quarters: list[str]
) -> None:
    names = ["07:45/9", "08:00/9", "14:45/9", "15:00/9"]
    windows = {n: {"requests": 2, "errors": 0, "buckets": {"3": 2}} for n in names}
    for day in ("2026-03-03", "2026-03-04"):
        report(local, day, {r: {"windows": windows} for r in ("new", "old")})
    blobs, until = open_blobs(local.routing), span("2026-03-03", zone)
    found = online_evidence.served_windows(blobs, M, STATE, until)
    assert [at for at, _ in found] == [f"2026-03-{q}+00:00" for q in quarters]


def test_audits_of_this_rollout_add_up(local: Settings) -> None:
    from release_fixtures import MARKET

    from csrm_tasks.release import ledger

    def audited(release: str, by: str, audit: str, grades: str, queries: str) -> None:
        payload = {
            "by": by, "audit": audit, "grades": grades, "queries": queries, "em_lost": "1",
            "em_won": "2", "defect_new": "3", "defect_gone": "4",
        }  # fmt: skip
        home = replace(local, db_url=f"sqlite:///{local.home}/x.db")
        ledger.append(home, MARKET, "audited", release, actor="t", reason="", payload=payload)

    for release, by, audit, grades, queries in (
        ("new", "rater", "1", "half", "4"), ("new", "rater", "2", "a", "10"),
        ("new", "rater", "1", "whole", "10"),  # takes the place of the half
        ("new", "rater", "2", "a", "10"),  # said already
        ("new", "teacher", "1", "t", "10"), ("older", "rater", "3", "o", "10"),
    ):  # fmt: skip
        audited(release, by, audit, grades, queries)
    entries = ledger.verified(replace(local, db_url=f"sqlite:///{local.home}/x.db"), MARKET)
    assert online_evidence.audits(entries, STATE, "rater") == Audit(20, 2, 4, 6, 8)
    assert online_evidence.audits(entries, STATE, "teacher") == Audit(10, 1, 2, 3, 4)
    assert online_evidence.audits([], STATE, "rater") is None
