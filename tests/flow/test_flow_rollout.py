"""csrm_rollout, csrm_rollback and csrm_drill through Airflow, on releases that were made up."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
import sqlalchemy as sa
import yaml

from csrm_tasks import tracking
from csrm_tasks.release import manage
from csrm_tasks.sections import Rollout, Schedule, Step
from csrm_tasks.settings import load_settings
from csrm_tasks.store import open_store, writing
from csrm_tasks.store.tables import DAYS
from tests.flow_fixtures import run_flow
from tests.release_fixtures import MARKET, a_bundle, market
from tests.release_world import World

TODAY = datetime.now(UTC).date().isoformat()
TICK = (f"csrm_rollout__{MARKET}", {"day": TODAY})
RUNS = [
    TICK,
    TICK,
    (f"csrm_rollback__{MARKET}", {"reason": "drill"}),
    (f"csrm_drill__{MARKET}", {}),
]
CONFIG = market(rollout=Rollout(steps=(Step(weight=5),))).model_copy(
    update={"schedule": Schedule(ingest=None, retrain=None, rollout=None, drill=None)}
)

pytestmark = [pytest.mark.airflow, pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("rollout")
    (folder / "markets").mkdir()
    text = yaml.safe_dump(CONFIG.model_dump(mode="json", exclude_defaults=True))
    (folder / "markets" / f"{MARKET}.yaml").write_text(text)
    home = {"CSRM_HOME": str(folder / "home"), "CSRM_MARKETS": str(folder / "markets")}
    settings = load_settings(home)
    world = World(settings, tracking.client(settings))
    for key in ("one", "two"):
        world.promote(world.release(key, write=a_bundle(key)))
    world.release("three", write=a_bundle("three"))
    row = {"market": MARKET, "day": TODAY, "digest": "d", "rows_in": 1, "quarantined": 0,
           "share": 0.0, "stale": 0}  # fmt: skip
    with writing(open_store(settings.db_url), MARKET) as connection:
        connection.execute(sa.insert(DAYS), [row])
    return world


@pytest.fixture(scope="module")
def runs(world: World) -> list[dict[str, Any]]:
    return run_flow(world.settings, world.settings.home / "airflow", RUNS)


def states(run: dict[str, Any]) -> dict[str, str]:
    return {task: state for task, (state, _) in run["tasks"].items()}


def test_what_waits_and_is_approved_by_policy_starts_without_asking(runs: list[Any]) -> None:
    first = states(runs[0])
    assert (first["start"], first["ask"]) == ("success", "skipped")
    assert (first["evaluate"], first["apply"]) == (
        "skipped",
        "skipped",
    )  # nothing was under way yet


def test_what_is_under_way_is_looked_at_and_nothing_starts(runs: list[Any]) -> None:
    second = states(runs[1])
    assert (second["evaluate"], second["apply"]) == ("success", "success")
    assert (second["start"], second["ask"]) == ("skipped", "skipped")


def test_the_ledger_says_what_was_done(runs: list[Any], world: World) -> None:
    assert runs
    rows = manage.history(world.settings, MARKET)
    assert [e.action for e in rows if e.seq > 5] == ["started", "judged", "aborted"]
    assert rows[-2].payload["outcome"] == "ERROR"  # no session was logged: no failure
    assert (rows[-1].reason, rows[-1].payload["run"] != "") == ("drill", True)
    world.agrees()
