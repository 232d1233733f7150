"""A launch and a rollback, killed after every durable write with a real MLflow, happen once.

``test_release_rollout`` does so with every transition on both databases, within one process; here
the command itself is killed, one on each database.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from csrm_tasks import tracking
from csrm_tasks.cli.main import main
from csrm_tasks.release import manage, verdicts
from csrm_tasks.sections import Rollout, Step
from tests.crashes import Environment, Homes, deaths, postgres_homes, settings_of, sqlite_homes
from tests.release_fixtures import MARKET, market, publish
from tests.release_world import World

CONFIG = market(rollout=Rollout(steps=(Step(weight=50),)))
ALIAS = "commit registered_model_aliases"
VIEWS = [f"replace {MARKET}.json", ALIAS, ALIAS, "commit registered_model_tags"]


def world_of(environment: Environment) -> World:
    settings = settings_of(environment)
    return World(settings, tracking.client(settings))


def every_death(
    homes: Homes, begin: Environment, args: list[str], patch: pytest.MonkeyPatch, ends: list[str]
) -> list[str]:
    """Kill ``csrm ARGS`` everywhere, run it again, and assert that the rows ``ends`` came once."""
    before = len(manage.history(settings_of(begin), MARKET))
    homes.begin_with(begin)
    died = []
    for write, environment in deaths(homes, args):
        died.append(write)
        for name, value in environment.items():
            patch.setenv(name, value)
        assert main(args) == 0
        after = world_of(environment)
        rows = manage.history(after.settings, MARKET)[before:]
        assert [e.action for e in rows] == ends, write
        assert manage.verify(after.settings, MARKET) == before + len(ends)
        after.agrees()
    return died


def test_a_launch_killed_after_any_durable_write_happens_exactly_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    homes = sqlite_homes(tmp_path, CONFIG)
    begin = homes.new()
    world = world_of(begin)
    world.promote(world.release("one"))
    world.start(world.release("two"), CONFIG)
    args = ["rollout-apply", "--market", MARKET, "--look", look(world)]
    died = every_death(homes, begin, args, monkeypatch, ["judged", "advanced", "promoted"])
    assert died[:3] == ["commit ledger"] * 3
    assert died.count(f"replace {MARKET}.json") == 1


def look(world: World) -> str:
    sealed = verdicts.seal(world.judgement())

    def write(folder: Path) -> Any:
        (folder / verdicts.FILE).write_text(json.dumps(sealed))

    return publish(world.settings, "rollout_evaluate", "x", write, {"digest": sealed["digest"]}).ref


@pytest.mark.postgres
def test_a_rollback_killed_after_any_durable_write_goes_back_exactly_one(
    tmp_path: Path, server: str, template: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    homes = postgres_homes(tmp_path, CONFIG, server, template)
    begin = homes.new()
    world = world_of(begin)
    for key in ("one", "two", "three"):
        made = world.release(key)
        world.promote(made, market())
    about = {"--reason": "bad", "--actor": "ann", "--run": "manual__1"}
    args = ["roll-back", "--market", MARKET, *(x for pair in about.items() for x in pair)]
    died = every_death(homes, begin, args, monkeypatch, ["rolled_back"])
    assert died[0] == "commit ledger" and died[1:5] == VIEWS
