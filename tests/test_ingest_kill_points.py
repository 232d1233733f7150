"""A night that is killed at every durable step in turn, and then finished, ends the same."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
import yaml

from csrm_tasks.cli import main
from csrm_tasks.settings import Settings, load_settings
from csrm_tasks.store import open_store
from tests import ingest_processes
from tests.conftest import new_database
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

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload([ingest_processes.__name__])
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


class Homes:
    """Installations that begin with the same files and the same store."""

    def __init__(self, root: Path, new_url: Callable[[Path, str | None], str]) -> None:
        self._root = root
        self._new_url = new_url
        self._count = 0
        self._begin: tuple[Path, str] | None = None
        (root / "markets").mkdir()
        text = yaml.safe_dump(market().model_dump(mode="json", exclude_defaults=True))
        (root / "markets" / "tiny.yaml").write_text(text)

    def new(self) -> dict[str, str]:
        self._count += 1
        home = self._root / f"home{self._count}"
        url = None
        if self._begin:
            shutil.copytree(self._begin[0], home)
            url = self._begin[1]
        return {
            "CSRM_HOME": str(home),
            "CSRM_MARKETS": str(self._root / "markets"),
            "CSRM_DB_URL": self._new_url(home, url),
        }

    def begin_with(self, environment: dict[str, str]) -> None:
        self._begin = Path(environment["CSRM_HOME"]), environment["CSRM_DB_URL"]


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def homes(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Homes]:
    if request.param == "sqlite":
        yield sqlite_homes(tmp_path)
        return
    server = request.getfixturevalue("server")
    empty = request.getfixturevalue("template")

    def new_url(_: Path, begin: str | None) -> str:  # they go with the server
        return new_database(server, sa.make_url(begin).database if begin else empty)

    yield Homes(tmp_path, new_url)


def sqlite_homes(root: Path) -> Homes:
    open_store(f"sqlite:///{root / 'csrm.db'}").dispose()

    def new_url(home: Path, begin: str | None) -> str:
        if begin is None:
            home.mkdir()
            shutil.copy(root / "csrm.db", home)
        return f"sqlite:///{home / 'csrm.db'}"

    return Homes(root, new_url)


def run_and_die(environment: dict[str, str], day: str, deadly: int) -> int | None:
    child = CONTEXT.Process(
        target=ingest_processes.night, args=(environment, day, deadly, None), daemon=True
    )
    child.start()
    child.join(60)
    return child.exitcode


def durable_steps(environment: dict[str, str], day: str) -> list[str]:
    """Run a night in a process of its own that lives; returns what it did durably."""
    told = CONTEXT.SimpleQueue()
    child = CONTEXT.Process(
        target=ingest_processes.night, args=(environment, day, 0, told), daemon=True
    )
    child.start()
    code, seen = told.get()
    child.join(60)
    assert (code, child.exitcode) == (0, 0)
    return list(seen)


def finish(
    environment: dict[str, str], day: str, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> str:
    """Run the night here, to its end; returns the digest of everything that is stored."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert main(["ingest", "--market", "tiny", "--day", day]) == 0, capsys.readouterr().err
    assert main(["digest", "--market", "tiny"]) == 0
    return str(capsys.readouterr().out.split()[-4])


def settings_of(environment: dict[str, str]) -> Settings:
    return load_settings({**os.environ, **environment})


def assert_every_death_ends_the_same(
    homes: Homes,
    land: Callable[[Settings], None],
    tried: Callable[[list[str]], list[int]],
    capsys: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = homes.new()
    land(settings_of(whole))
    steps = durable_steps(whole, DAY0)
    expected = finish(whole, DAY0, capsys, monkeypatch)  # the night again: nothing changes
    assert steps.count("commit") >= 6
    for number in tried(steps):
        killed = homes.new()
        land(settings_of(killed))
        assert run_and_die(killed, DAY0, number + 1) == -signal.SIGKILL
        assert finish(killed, DAY0, capsys, monkeypatch) == expected, steps[number]


def test_a_night_killed_at_every_durable_step(
    homes: Homes,
    request: pytest.FixtureRequest,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def tried(steps: list[str]) -> list[int]:
        # Before the first commit no database is asked: SQLite's turn shows those.
        first = 0 if "sqlite" in request.node.name else steps.index("commit")
        return list(range(first, len(steps)))

    assert_every_death_ends_the_same(homes, land_night, tried, capsys, monkeypatch)


def test_a_correction_killed_at_every_commit_and_lake_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    homes = sqlite_homes(tmp_path)
    begin = homes.new()
    for day, land in ((DAY0, land_night), (DAY1, land_late)):
        land(settings_of(begin))
        finish(begin, day, capsys, monkeypatch)
    homes.begin_with(begin)

    def tried(steps: list[str]) -> list[int]:
        return [i for i, step in enumerate(steps) if step == "commit" or KO in step]

    assert_every_death_ends_the_same(homes, land_correction, tried, capsys, monkeypatch)
