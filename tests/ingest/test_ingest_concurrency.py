"""Two processes that take the same day in at the same time end as one."""

from __future__ import annotations

from csrm_tasks.store import open_store, reading
from csrm_tasks.store.digest import store_digest
from csrm_tasks.store.lake import Lake
from tests.crashes import Homes, settings_of, together
from tests.data_fixtures import DAY0, KO, label, land_lines
from tests.ingest.test_ingest_kill_points import homes, land_night, night

__all__ = ["homes"]  # a fixture


def codes(*commands: tuple[list[str], dict[str, str]]) -> list[int]:
    return [code for code, _ in together(*commands)]


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
    assert codes((night(DAY0), one), (night(DAY0), other)) == [0, 0]
    assert codes((night(DAY0), alone)) == [0]
    assert digest(one) == digest(alone)
    # and so does a correction that both of them find
    for environment in (alone, one):
        land_lines(
            settings_of(environment), DAY0, f"{KO}/labels.jsonl", [label(1, "우유", "p1", 0)]
        )
    assert codes((night(DAY0), one), (night(DAY0), other)) == [0, 0]
    assert codes((night(DAY0), alone)) == [0]
    assert digest(one) == digest(alone)
