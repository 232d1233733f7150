"""What the service logs is whole, lands once, and is ingested without a row set aside."""

from __future__ import annotations

import json
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from csrm_tasks.blobs import open_blobs
from csrm_tasks.errors import ConfigError
from csrm_tasks.serving.ubi import UbiLog
from csrm_tasks.settings import Settings
from csrm_tasks.steps import run_step
from csrm_tasks.store import open_store, reading
from csrm_tasks.store.tables import SESSIONS
from tests.release_fixtures import MARKET, market, store_of
from tests.serving_fixtures import document, release, route, serving

LOCALE = "zh-TW"


class Clock:
    """A time that a test sets."""

    def __init__(self, at: str) -> None:
        self.at = datetime.fromisoformat(at).replace(tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.at


def log_at(folder: Path, clock: Clock, instance: str = "a", zone: str = "UTC") -> UbiLog:
    return UbiLog(folder, MARKET, LOCALE, instance, clock, zone)


def landed(folder: Path) -> dict[str, list[Any]]:
    """Return the delivered files with their records; those that begin with a dot are not."""
    found = sorted(p for p in folder.rglob("*.jsonl") if not p.name.startswith("."))
    return {
        p.relative_to(folder / MARKET).as_posix(): [json.loads(x) for x in p.open()] for p in found
    }


def test_a_day_is_published_when_it_is_over_and_the_rest_at_the_end(tmp_path: Path) -> None:
    clock = Clock("2026-01-01T23:59:59")
    log = log_at(tmp_path, clock)
    log.write("ubi_queries", [{"n": 1}, {"n": 2}])
    log.write("ubi_events", [{"n": 3}])
    log.rotate()
    assert landed(tmp_path) == {}
    clock.at += timedelta(seconds=2)
    log.rotate()
    first = {
        "2026-01-01/zh-TW/ubi_events-a.0.jsonl": [{"n": 3}],
        "2026-01-01/zh-TW/ubi_queries-a.0.jsonl": [{"n": 1}, {"n": 2}],
    }
    assert landed(tmp_path) == first
    log.write("ubi_events", [{"n": 4}])
    log.close()
    last = {"2026-01-02/zh-TW/ubi_events-a.0.jsonl": [{"n": 4}]}
    assert landed(tmp_path) == first | last
    again = log_at(tmp_path, clock)
    again.write("ubi_events", [{"n": 5}])
    again.close()
    assert landed(tmp_path) == first | last | {
        "2026-01-02/zh-TW/ubi_events-a.1.jsonl": [{"n": 5}]
    }  # fmt: skip


def test_the_first_record_after_midnight_closes_the_day_by_itself(tmp_path: Path) -> None:
    clock = Clock("2026-01-01T23:59:59")
    log = log_at(tmp_path, clock)
    log.write("ubi_events", [{"n": 1}])
    clock.at += timedelta(seconds=2)
    log.write("ubi_events", [{"n": 2}])
    assert list(landed(tmp_path)) == ["2026-01-01/zh-TW/ubi_events-a.0.jsonl"]
    log.close()


@pytest.mark.parametrize(
    ("zone", "midnight"),
    [
        ("Asia/Taipei", "2026-03-29T16:00:00"),
        ("America/Sao_Paulo", "2026-03-30T03:00:00"),
        ("Europe/Berlin", "2026-03-29T22:00:00"),  # a day of 23 hours
    ],
)
def test_days_end_by_the_clocks_of_the_market(tmp_path: Path, zone: str, midnight: str) -> None:
    """So that what a night at two, there, reads has got its name."""
    clock = Clock(midnight)
    clock.at -= timedelta(seconds=1)
    log = log_at(tmp_path, clock, zone=zone)
    log.write("ubi_events", [{"n": 1}])
    clock.at += timedelta(seconds=2)
    log.rotate()
    ended = {"2026-03-29/zh-TW/ubi_events-a.0.jsonl": [{"n": 1}]}
    assert landed(tmp_path) == ended
    log.write("ubi_events", [{"n": 2}])
    log.close()
    assert landed(tmp_path) == ended | {"2026-03-30/zh-TW/ubi_events-a.0.jsonl": [{"n": 2}]}
    # What a killed service left comes with its own day for an hour, then with today.
    clock.at -= timedelta(minutes=30)
    dead = log_at(tmp_path, clock, "b", zone)
    dead.write("ubi_events", [{"n": 3}])
    dead._name.release()
    clock.at += timedelta(minutes=80)
    log_at(tmp_path, clock, "c", zone).close()
    assert {"2026-03-29/zh-TW/ubi_events-b.0.jsonl": [{"n": 3}]}.items() <= landed(tmp_path).items()
    late = log_at(tmp_path, Clock("2026-03-29T12:00:00"), "d", zone)
    late.write("ubi_events", [{"n": 4}])
    late._name.release()
    clock.at += timedelta(minutes=20)
    log_at(tmp_path, clock, "e", zone).close()
    assert {"2026-03-30/zh-TW/ubi_events-e.0.jsonl": [{"n": 4}]}.items() <= landed(tmp_path).items()


def test_what_a_killed_service_left_is_published_less_a_line_that_was_cut(tmp_path: Path) -> None:
    clock = Clock("2026-01-01T12:00:00")
    dead = log_at(tmp_path, clock)
    dead.write("ubi_events", [{"n": 1}])
    dead._name.release()  # as the kernel does for a killed process
    [part] = tmp_path.rglob(".ubi_events*")
    with part.open("a") as f:
        f.write('{"n": 2, "cu')
    log_at(tmp_path, clock).close()
    assert landed(tmp_path) == {"2026-01-01/zh-TW/ubi_events-a.0.jsonl": [{"n": 1}]}
    assert not list(tmp_path.rglob(".ubi_*"))


def test_what_a_service_of_another_name_left_is_published_if_it_is_dead(tmp_path: Path) -> None:
    clock = Clock("2026-01-01T12:00:00")
    dead, alive = log_at(tmp_path, clock, "dead"), log_at(tmp_path, clock, "alive")
    dead.write("ubi_queries", [{"n": 1}])
    alive.write("ubi_queries", [{"n": 2}])
    dead._name.release()  # as the kernel does for a killed process
    log_at(tmp_path, clock, "new").close()
    first = {"2026-01-01/zh-TW/ubi_queries-dead.0.jsonl": [{"n": 1}]}
    assert landed(tmp_path) == first
    alive.write("ubi_queries", [{"n": 3}])
    alive.close()
    second = {"2026-01-01/zh-TW/ubi_queries-alive.0.jsonl": [{"n": 2}, {"n": 3}]}
    assert landed(tmp_path) == first | second
    log_at(tmp_path, clock, "dead").close()
    assert landed(tmp_path) == first | second


def test_a_file_too_late_for_its_day_is_delivered_with_today(tmp_path: Path) -> None:
    clock = Clock("2026-01-01T12:00:00")
    dead = log_at(tmp_path, clock)
    dead.write("ubi_events", [{"n": 1}])
    dead._name.release()
    clock.at = datetime(2026, 1, 2, 9, tzinfo=UTC)  # the first day was ingested at two
    log_at(tmp_path, clock).close()
    assert landed(tmp_path) == {"2026-01-02/zh-TW/ubi_events-a.0.jsonl": [{"n": 1}]}


def test_two_services_may_not_write_under_one_name(tmp_path: Path) -> None:
    clock = Clock("2026-01-01T12:00:00")
    log = log_at(tmp_path, clock)
    with pytest.raises(ConfigError, match="another service writes as a"):
        log_at(tmp_path, clock)
    log_at(tmp_path, clock, "b").close()
    log.close()
    log_at(tmp_path, clock).close()


def test_nothing_written_is_nothing_delivered(tmp_path: Path) -> None:
    log = log_at(tmp_path, Clock("2026-01-01T12:00:00"))
    log.write("ubi_events", [])
    log.close()
    assert landed(tmp_path) == {}


def test_what_was_served_is_ingested_without_a_row_set_aside(settings: Settings) -> None:
    old, new = release(settings, "a"), release(settings, "b")
    share = {"stable": 50, "next": 50, "holdout": 0}
    route(settings, document(old, next=new[0], weights=share, bundles=dict([old, new])))
    sessions = [f"s{i}" for i in range(12)]
    arms = {}
    with serving(settings) as (client, _):
        for session in sessions:
            asked = {
                "query": "紅色\u2028物品", "products": ["p0", "p1", "p2"],
                "session_id": session, "client_id": "",
            }  # fmt: skip
            got = client.post("/rank", json=asked).json()
            arms[session] = (got["bucket"], got["release"])
            did = [("impression", 1, None), ("purchase", 1, datetime.now(UTC).isoformat())]
            events = [
                {
                    "query_id": got["query_id"], "action_name": action, "object_id": "p0",
                    "position": position, "session_id": session, "bucket": got["bucket"],
                    "release": got["release"], "timestamp": at,
                }
                for action, position, at in did
            ]  # fmt: skip
            assert client.post("/events", json={"events": events}).json() == {"logged": 2}
        assert 'csrm_logged_total{kind="ubi_events"} 24.0' in client.get("/metrics").text
    assert {a for a, _ in arms.values()} == {"stable", "next"}

    [day] = {p.parent.parent.name for p in settings.landing.rglob("ubi_*.jsonl")}
    catalogue = settings.landing / MARKET / day / LOCALE / "catalogue.csv"
    lines = ["product_id,title", *(f"p{i},物品 {i}" for i in range(3))]
    catalogue.write_text("\n".join(lines) + "\n")
    ref = run_step("land", market(), {}, {"day": day}, settings)
    ref = run_step("validate", market(), {"land": ref}, {}, settings)
    ref = run_step("store", market(), {"validate": ref}, {}, settings)
    receipt = json.loads(store_of(settings).open(ref).file("receipt.json").read_text())
    assert {f["quarantined"] for f in receipt["files"]} == {0}
    assert sum(f["stored"] for f in receipt["files"]) == 3 + 12 + 24
    run_step("aggregate", market(), {"store": ref}, {"day": day}, settings)
    columns = [SESSIONS.c[c] for c in ("session_id", "bucket", "release", "purchases")]
    with reading(open_store(settings.db_url)) as connection:
        found = {s: (b, r, n) for s, b, r, n in connection.execute(sa.select(*columns))}
    assert found == {session: (*arms[session], 1) for session in sessions}


BAD_EVENTS: list[tuple[Any, str]] = [
    ({"action_name": "stare"}, "action_name: "),
    ({"object_id": ""}, "object_id: "),
    ({"bucket": "moon"}, "bucket: "),
    ({"position": 0}, "position: "),
    ({"timestamp": "2020-01-01T00:00:00Z"}, "timestamp: is not within a day"),
    ({"timestamp": "2090-01-01T00:00:00Z"}, "timestamp: is not within a day"),
    ({"timestamp": "yesterday"}, "timestamp: "),
    ({"query_id": None}, "query_id: "),
    ({"colour": "x" * 1000}, "colour: "),
]
GOOD_EVENT = {
    "query_id": "q", "action_name": "click", "object_id": "p0", "bucket": "stable", "release": "r",
}  # fmt: skip


def test_bad_events_are_named_by_their_index_and_cost_no_good_one(settings: Settings) -> None:
    route(settings, document(release(settings, "a")))
    wrong = [GOOD_EVENT | changed for changed, _ in BAD_EVENTS] + ["click", None]
    sent = [x for one in wrong for x in (GOOD_EVENT, one)]
    with serving(settings) as (client, _):
        assert client.post("/events", json={"events": [GOOD_EVENT]}).json() == {"logged": 1}
        got = client.post("/events", json={"events": sent})
        none = client.post("/events", json={"events": wrong[:2]})
        for body in ({"events": []}, {"events": "click"}, {}, {"events": [GOOD_EVENT] * 1001}):
            assert client.post("/events", json=body).status_code == 422
    assert got.status_code == 207
    assert got.json()["logged"] == len(wrong)
    refused = {r["index"]: r["detail"] for r in got.json()["refused"]}
    assert list(refused) == list(range(1, len(sent), 2))
    for detail, (_, why) in zip(refused.values(), BAD_EVENTS, strict=False):
        assert detail.startswith(why) and "xxx" not in detail
    assert none.status_code == 422
    assert none.json()["logged"] == 0
    assert none.json()["error"].startswith("events.0.action_name: ")
    [logged] = landed(settings.landing).values()
    assert len(logged) == 1 + len(wrong)
    assert all("ordinal" in record["event_attributes"]["position"] for record in logged)


@contextmanager
def disk_of(size: int) -> Iterator[None]:
    """Let no file of this process grow beyond ``size`` bytes: the kernel writes what fits."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("room", [0, 1, 11, 40_000])
def test_records_that_the_disk_takes_in_part_are_taken_back(tmp_path: Path, room: int) -> None:
    log = log_at(tmp_path, Clock("2026-01-01T12:00:00"))
    log.write("ubi_queries", [{"n": 1}])
    [part] = tmp_path.rglob(".ubi_queries*")
    size = part.stat().st_size
    with disk_of(size + room), pytest.raises(OSError, match="too large"):
        log.write("ubi_queries", [{"n": 2}, {"text": "長" * 20_000}])
    assert part.stat().st_size == size
    log.write("ubi_queries", [{"n": 3}])
    log.close()
    assert landed(tmp_path) == {
        "2026-01-01/zh-TW/ubi_queries-a.0.jsonl": [{"n": 1}, {"n": 3}]
    }  # fmt: skip


def test_a_landing_zone_that_takes_no_files_is_an_error_at_the_start(tmp_path: Path) -> None:
    (tmp_path / MARKET).write_text("a file where a folder should be")
    with pytest.raises(ConfigError, match="takes no files"):
        log_at(tmp_path, Clock("2026-01-01T12:00:00"))


def test_a_full_disk_is_an_alarm_and_searches_go_on(settings: Settings) -> None:
    route(settings, document(release(settings, "a")))
    asked = {"query": "1", "products": ["p0"]}
    with serving(settings) as (client, _):
        first = client.post("/rank", json=asked).json()["query_id"]
        with disk_of(100):
            assert client.post("/rank", json=asked).status_code == 200
            assert "too large" in client.get("/readyz").json()["alarms"]["ubi"]
            assert 'csrm_alarm{kind="ubi"} 1.0' in client.get("/metrics").text
        last = client.post("/rank", json=asked).json()["query_id"]
        assert client.get("/readyz").json()["alarms"] == {}
        assert 'csrm_logged_total{kind="ubi_queries"} 2.0' in client.get("/metrics").text
    [records] = landed(settings.landing).values()
    assert [r["query_id"] for r in records] == [first, last]


def test_an_end_publishes_the_logs_before_it_waits_for_a_release_that_is_loaded(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    route(settings, document(release(settings, "a")))
    seen = []
    with serving(settings) as (client, service):
        client.post("/rank", json={"query": "1", "products": ["p0"]})
        files = landed(settings.landing), open_blobs(settings.routing).keys(f"{MARKET}/serving")
        assert files == ({}, [])

        def stop() -> None:
            seen.append(landed(settings.landing))
            seen.append(open_blobs(settings.routing).keys(f"{MARKET}/serving"))

        monkeypatch.setattr(service.follower, "stop", stop)
    assert [len(found) for found in seen] == [1, 1]


def test_a_disk_that_fails_at_the_end_leaves_the_records_to_the_next_service(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    route(settings, document(release(settings, "a")))

    def broken(_: int) -> None:
        raise OSError(5, "Input/output error")

    with serving(settings) as (client, service):
        client.post("/rank", json={"query": "1", "products": ["p0"]})
        monkeypatch.setattr("csrm_tasks.serving.ubi.os.fsync", broken)
    assert "Input/output" in service.alarms.texts()["ubi"]
    assert landed(settings.landing) == {}
    monkeypatch.undo()
    with serving(settings):
        pass
    [records] = landed(settings.landing).values()
    assert len(records) == 1
