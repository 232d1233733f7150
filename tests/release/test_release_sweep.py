"""Sweeping: what killed tasks and corrections left goes, what is named or young never does."""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace
from pathlib import Path

import pytest
from filelock import FileLock

from csrm_tasks.blobs import open_blobs
from csrm_tasks.cli.main import main
from csrm_tasks.release import sweep
from csrm_tasks.settings import Settings
from csrm_tasks.store import open_store, reading
from csrm_tasks.store.digest import store_digest
from csrm_tasks.store.lake import Lake
from tests.data_fixtures import (
    DAY0,
    KO,
    event,
    ingest,
    label,
    land_lines,
    market,
    product,
    search,
    snapshot,
)
from tests.object_store import credentials, new_bucket
from tests.release_fixtures import publish, store_of

MARKET = "tiny"
SOON = time.time() + 86_400  # before which all that a test writes is written
LONG_AGO = time.time() - 86_400


@pytest.fixture(params=["folder", pytest.param("s3", marks=pytest.mark.s3)])
def stored(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, settings: Settings
) -> Settings:
    """An installation whose artifacts and lake are folders, or on S3."""
    if request.param == "folder":
        return settings
    credentials(monkeypatch, request.getfixturevalue("seaweed"))
    root = new_bucket(monkeypatch)
    return replace(settings, artifacts=f"{root}/made", lake=f"{root}/lake")


def test_data_of_attempts_that_published_nothing_goes_and_the_published_stays(
    stored: Settings, tmp_path: Path
) -> None:
    made = publish(stored, "pairs", "x", lambda f: (f / "note").write_text("kept"))
    (tmp_path / "part").write_text("12345")
    blobs = open_blobs(stored.artifacts)
    for lost in (f"{made.ref}/data-lost", f"{MARKET}/pairs/never/data-killed"):
        blobs.upload(f"{lost}/sub/part", tmp_path / "part")
    assert sweep.find(stored, MARKET, LONG_AGO).data == {}  # a task may be writing it
    left = sweep.find(stored, MARKET, SOON)
    assert left.data == {f"{made.ref}/data-lost": 5, f"{MARKET}/pairs/never/data-killed": 5}
    sweep.sweep(stored, MARKET, left)
    assert sweep.find(stored, MARKET, SOON).data == {}
    assert store_of(stored).open(made.ref).file("note").read_text() == "kept"


def test_what_a_killed_upload_left_goes_too(settings: Settings) -> None:
    part = Path(settings.artifacts) / MARKET / "pairs" / "never" / "data-killed" / ".note.1234abcd"
    part.parent.mkdir(parents=True)
    part.write_text("half")
    sweep.sweep(settings, MARKET, sweep.find(settings, MARKET, SOON))
    assert not part.parent.exists()


def work_folder(settings: Settings, name: str, days: float) -> Path:
    """A failed step's folder, last written to so many days ago."""
    folder = settings.work / MARKET / "train_llm" / name
    (folder / "out").mkdir(parents=True)
    (folder / "out" / "checkpoint").write_text("123")
    when = time.time() - days * 86_400
    for path in (folder / "out" / "checkpoint", folder / "out", folder):
        os.utime(path, (when, when))
    return folder


def test_work_folders_of_failed_steps_go_and_those_of_running_ones_never(
    settings: Settings,
) -> None:
    failed, lately, taken_up, running = (
        work_folder(settings, name, days)
        for name, days in (("failed", 9), ("lately", 1), ("taken", 9), ("running", 9))
    )
    (lately.parent / "failed.lock").write_text("")
    old = sweep.find(settings, MARKET, time.time() - 7 * 86_400)
    assert set(old.work) == {failed, taken_up, running}
    (taken_up / "out" / "checkpoint").write_text("new")
    with FileLock(running.with_name("running.lock")):
        sweep.sweep(settings, MARKET, old)
    assert [f.exists() for f in (failed, lately, taken_up, running)] == [False, True, True, True]


def deliver(settings: Settings, day: str, title: str, bought: int) -> None:
    """Land and ingest a day of one search whose first products were bought."""
    land_lines(settings, day, f"{KO}/catalogue.jsonl", [product(i, title) for i in range(4)])
    land_lines(settings, day, f"{KO}/labels.jsonl", [label(1, "우유", "p1", 2)])
    land_lines(settings, day, f"{KO}/ubi_queries.jsonl", [search(day, "우유", day)])
    actions = [*(["impression"] * 4), *(["purchase"] * bought)]
    rows = [event(day, action, f"p{n % 4}", n % 4 + 1, day) for n, action in enumerate(actions)]
    land_lines(settings, day, f"{KO}/ubi_events.jsonl", rows)
    ingest(settings, day)


def digest(settings: Settings) -> str:
    with reading(open_store(settings.db_url)) as connection:
        return store_digest(connection, Lake(settings.lake, MARKET), MARKET)


def test_lake_files_that_corrections_replaced_go_and_nothing_is_missed(stored: Settings) -> None:
    deliver(stored, DAY0, "우유 1", 1)
    assert sweep.find(stored, MARKET, SOON).lake == {}
    deliver(stored, DAY0, "우유 1", 2)  # searches and products are delivered again as they were
    before, keys = digest(stored), set(open_blobs(stored.lake).keys(MARKET))
    assert sweep.find(stored, MARKET, LONG_AGO).lake == {}  # a snapshot may be reading them
    left = sweep.find(stored, MARKET, SOON)
    tables = sorted(key.split("/")[1] for key in left.lake)
    assert tables == ["events", "positions"]
    assert all(f"/day={DAY0}/" in key for key in left.lake)
    sweep.sweep(stored, MARKET, left)
    assert set(open_blobs(stored.lake).keys(MARKET)) == keys - set(left.lake)
    assert digest(stored) == before
    assert snapshot(stored, 1, DAY0).facts


def test_a_day_in_which_something_was_replaced_lately_is_left_alone(settings: Settings) -> None:
    for bought in (1, 2):
        deliver(settings, DAY0, "우유 1", bought)
    found = sorted((Path(settings.lake) / MARKET).rglob("*.parquet"))
    for path in found:
        os.utime(path, (0, 0))
    assert len(sweep.find(settings, MARKET, LONG_AGO).lake) == 2
    os.utime(found[0])
    assert sweep.find(settings, MARKET, LONG_AGO).lake == {}


def test_a_store_that_knows_nothing_of_a_day_takes_nothing_of_the_lake(settings: Settings) -> None:
    deliver(settings, DAY0, "우유 1", 1)
    other = replace(settings, db_url=f"sqlite:///{settings.home / 'other.db'}")
    assert sweep.find(other, MARKET, SOON).lake == {}


def test_the_command_says_what_nothing_names_and_sweeps_it_when_told(
    settings: Settings, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = settings.home / "markets"
    folder.mkdir(parents=True)
    known = market().model_dump(mode="json", exclude_defaults=True)
    (folder / f"{MARKET}.yaml").write_text(json.dumps(known))
    monkeypatch.setenv("CSRM_HOME", str(settings.home))
    monkeypatch.setenv("CSRM_MARKETS", str(folder))
    failed = work_folder(settings, "failed", 99)
    for flags, there in (([], True), (["--apply"], False)):
        assert main(["release", "prune", "--market", MARKET, *flags]) == 0
        said = capsys.readouterr().out
        assert f"work: {failed}" in said and "1 left-overs that nothing names" in said
        assert failed.exists() is there
