"""A night that is killed at every durable step in turn, and then finished, ends the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from csrm_tasks.cli.main import main
from csrm_tasks.settings import Settings
from tests.crashes import (
    Homes,
    durable_writes,
    kill,
    postgres_homes,
    settings_of,
    sqlite_homes,
)
from tests.data_fixtures import (
    DAY0,
    DAY1,
    KO,
    event,
    label,
    land_lines,
    land_sessions,
    market,
    product,
    session,
)

NIGHT = session(1, "우유", ["p0", "p1"], click="p1", purchase="p1")


def land_night(settings: Settings) -> None:
    land_lines(settings, DAY0, f"{KO}/catalogue.jsonl", [product(i, f"상품 {i}") for i in range(2)])
    land_lines(settings, DAY0, f"{KO}/labels.jsonl", [
        label(1, "우유", "p1", 2), label(2, "우유", "p9", 1), label(3, "우유", "p0", 7),
    ])  # fmt: skip
    land_sessions(settings, DAY0, KO, [NIGHT])


def land_correction(settings: Settings) -> None:
    """Correct labels and events of which another night's files have said a part too."""
    land_lines(settings, DAY0, f"{KO}/labels.jsonl", [label(3, "우유", "p0", 0)])
    land_lines(settings, DAY0, f"{KO}/ubi_events.jsonl", NIGHT[1][1:])


def land_late(settings: Settings) -> None:
    land_lines(settings, DAY1, f"{KO}/labels.jsonl", [label(1, "우유", "p1", 2)])
    late = [NIGHT[1][0], event(1, "add_to_cart", "p0", 0)]
    land_lines(settings, DAY1, f"{KO}/ubi_events.jsonl", late)


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def homes(request: pytest.FixtureRequest, tmp_path: Path) -> Homes:
    if request.param == "sqlite":
        return sqlite_homes(tmp_path, market())
    server = request.getfixturevalue("server")
    return postgres_homes(tmp_path, market(), server, request.getfixturevalue("template"))


def night(day: str) -> list[str]:
    return ["ingest", "--market", "tiny", "--day", day]


def finish(
    environment: dict[str, str], day: str, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> str:
    """Run the night here, to its end; returns the digest of everything that is stored."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert main(night(day)) == 0, capsys.readouterr().err
    assert main(["digest", "--market", "tiny"]) == 0
    return str(capsys.readouterr().out.split()[-4])


def assert_every_death_ends_the_same(
    homes: Homes,
    land: Callable[[Settings], None],
    tried: Callable[[list[str]], list[int]],
    capsys: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = homes.new()
    land(settings_of(whole))
    steps = durable_writes(whole, night(DAY0))
    expected = finish(whole, DAY0, capsys, monkeypatch)  # the night again: nothing changes
    assert sum(s.startswith("commit") for s in steps) >= 6
    for number in tried(steps):
        killed = homes.new()
        land(settings_of(killed))
        kill(killed, night(DAY0), number)
        assert finish(killed, DAY0, capsys, monkeypatch) == expected, steps[number]


def test_a_night_killed_at_every_durable_step(
    homes: Homes,
    request: pytest.FixtureRequest,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def tried(steps: list[str]) -> list[int]:
        # Before the first commit no database is asked: SQLite's turn shows those.
        first = (
            0
            if "sqlite" in request.node.name
            else next(i for i, s in enumerate(steps) if s.startswith("commit"))
        )
        return list(range(first, len(steps)))

    assert_every_death_ends_the_same(homes, land_night, tried, capsys, monkeypatch)


def test_a_correction_killed_at_every_commit_and_lake_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    homes = sqlite_homes(tmp_path, market())
    begin = homes.new()
    for day, land in ((DAY0, land_night), (DAY1, land_late)):
        land(settings_of(begin))
        finish(begin, day, capsys, monkeypatch)
    homes.begin_with(begin)

    def tried(steps: list[str]) -> list[int]:
        return [i for i, step in enumerate(steps) if step.startswith("commit") or KO in step]

    assert_every_death_ends_the_same(homes, land_correction, tried, capsys, monkeypatch)
