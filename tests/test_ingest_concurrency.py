"""Two processes that take the same day in at the same time end as one."""

from __future__ import annotations

import multiprocessing

from csrm_tasks.store import open_store, reading
from csrm_tasks.store.digest import store_digest
from csrm_tasks.store.lake import Lake
from tests import ingest_processes
from tests.data_fixtures import DAY0, KO, label, land_lines
from tests.test_ingest_kill_points import Homes, homes, land_night, settings_of

__all__ = ["homes"]  # a fixture
CONTEXT = multiprocessing.get_context("forkserver")


def together(*environments: dict[str, str]) -> None:
    """Run a night in as many processes, which begin when all of them are there."""
    gate = CONTEXT.Barrier(len(environments))
    running = [
        CONTEXT.Process(target=ingest_processes.gated_night, args=(e, DAY0, gate), daemon=True)
        for e in environments
    ]
    for process in running:
        process.start()
    for process in running:
        process.join(60)
    assert [p.exitcode for p in running] == [0] * len(running)


def digest(environment: dict[str, str]) -> str:
    settings = settings_of(environment)
    with reading(open_store(settings.db_url)) as connection:
        return store_digest(connection, Lake(settings.lake, "tiny"), "tiny")


def test_two_processes_with_one_day_end_as_one(homes: Homes) -> None:
    alone, one = homes.new(), homes.new()
    for environment in (alone, one):
        land_night(settings_of(environment))
    other = one | {
        "CSRM_HOME": one["CSRM_HOME"] + "-other",
        "CSRM_LANDING": one["CSRM_HOME"] + "/landing",
        "CSRM_LAKE": one["CSRM_HOME"] + "/lake",
        "CSRM_ARTIFACTS": one["CSRM_HOME"] + "/artifacts",
    }
    together(one, other)
    together(alone)
    assert digest(one) == digest(alone)
    # and so does a correction that both of them find
    for environment in (alone, one):
        land_lines(
            settings_of(environment), DAY0, f"{KO}/labels.jsonl", [label(1, "우유", "p1", 0)]
        )
    together(one, other)
    together(alone)
    assert digest(one) == digest(alone)
