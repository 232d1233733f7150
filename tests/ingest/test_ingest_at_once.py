"""Nights of a backfill, and runs that are there twice, at once: as if each had run once, alone."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Barrier

import pytest

from csrm_tasks.errors import CsrmError
from csrm_tasks.settings import Settings
from csrm_tasks.steps.running import ChangedInputError
from csrm_tasks.store import open_store, reading
from csrm_tasks.store.digest import store_digest
from csrm_tasks.store.lake import Lake
from tests.data_fixtures import (
    DAY0,
    DAY1,
    DAY2,
    KO,
    ingest,
    label,
    land_lines,
    land_sessions,
    product,
    session,
)


def land_nights(settings: Settings) -> None:
    """Three nights; each says a part of what the others say, too."""
    land_lines(settings, DAY0, f"{KO}/catalogue.jsonl", [product(i, f"상품 {i}") for i in range(4)])
    for n, day in enumerate((DAY0, DAY1, DAY2)):
        grades = [label(1, "우유", "p1", 2), label(10 + n, "우유", f"p{n}", 1)]
        land_lines(settings, day, f"{KO}/labels.jsonl", grades)
        searches = [session(m, "우유", ["p0", "p1", "p2"], DAY0, click="p1") for m in (1, 20 + n)]
        land_sessions(settings, day, KO, searches)


def digest(settings: Settings) -> str:
    with reading(open_store(settings.db_url)) as connection:
        return store_digest(connection, Lake(settings.lake, "tiny"), "tiny")


def test_nights_at_once_and_twice_end_as_each_once_in_order(
    both_settings: Settings, tmp_path: Path
) -> None:
    alone = replace(
        both_settings, home=tmp_path / "alone", db_url=f"sqlite:///{tmp_path / 'alone.db'}",
        lake=str(tmp_path / "alone-lake"), artifacts=str(tmp_path / "alone-artifacts"),
    )  # fmt: skip
    land_nights(both_settings)
    for day in (DAY0, DAY1, DAY2):
        ingest(alone, day)

    # Machines have scratch and locks of their own; database, lake and artifacts are shared.
    shared = replace(both_settings, lake=str(tmp_path / "lake"), artifacts=str(tmp_path / "made"))
    machines = [replace(shared, home=tmp_path / name) for name in ("one", "other")]
    open_store(shared.db_url).dispose()
    ingest(machines[0], DAY0)  # products are there before what is said of them
    runs = [(machine, day) for machine in machines for day in (DAY0, DAY1, DAY2)]
    ready = Barrier(len(runs))

    def run(machine: Settings, day: str) -> None:
        ready.wait()
        for _ in range(4):  # as Airflow tries a task again
            try:
                ingest(machine, day)
            except ChangedInputError:
                continue
            return
        pytest.fail(f"{day} did not come to an end")

    with ThreadPoolExecutor(len(runs)) as pool:
        ended = [pool.submit(run, *given) for given in runs]
        failed = [e.exception() for e in ended if e.exception() is not None]
    assert not [e for e in failed if isinstance(e, CsrmError)] and not failed, failed
    assert digest(shared) == digest(alone)
