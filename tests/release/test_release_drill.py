"""The rehearsed way back touches nothing, and notices when the way is broken."""

from __future__ import annotations

from pathlib import Path

import pytest

from csrm_tasks import tracking
from csrm_tasks.errors import CsrmError
from csrm_tasks.release import drill, manage, routing
from csrm_tasks.release.bundle.manifest import TOWERS
from csrm_tasks.sections import Rollout, Step
from csrm_tasks.settings import Settings
from csrm_tasks.steps import run_step
from tests.release_fixtures import MARKET, a_bundle, market, store_of
from tests.release_world import AUTO, World


@pytest.fixture
def world(settings: Settings) -> World:
    world = World(settings)
    for key in ("one", "two", "three", "four"):
        world.promote(world.release(key, write=a_bundle(key)))
    return world


def test_both_predecessors_are_reached_and_nothing_that_is_served_changes(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = manage.history(world.settings, MARKET), world.doc(), world.aliases()
    path = Path(world.settings.routing) / f"{MARKET}.json"
    written = path.stat().st_mtime_ns
    monkeypatch.setattr(tracking, "client", lambda _: world.api)
    ref = run_step("drill", AUTO, {}, {"run": "r1"}, world.settings)
    found = store_of(world.settings).open(ref).facts
    lives = [e.release_id for e in before[0] if e.action == "promoted"]
    assert (found["live"], found["reached"]) == (lives[3], [lives[2], lives[1]])
    assert len(found["seconds"]) == routing.KEPT
    assert (manage.history(world.settings, MARKET), world.doc(), world.aliases()) == before
    assert path.stat().st_mtime_ns == written


def test_a_rollout_under_way_is_taken_back_first_and_goes_on_in_truth(world: World) -> None:
    config = market(rollout=Rollout(steps=(Step(weight=5),)))
    made = world.release("five", write=a_bundle("five"))
    world.start(made, config)
    found = drill.rehearse(world.settings, config, world.api, world.settings.work)
    assert len(found["reached"]) == 2
    assert world.doc()["next"] == made.id


def test_a_predecessor_that_does_not_load_fails_the_drill(world: World) -> None:
    lives = [e for e in manage.history(world.settings, MARKET) if e.action == "promoted"]
    bundle = store_of(world.settings).open(lives[1].payload["bundle"])
    tower = bundle.path / TOWERS / "query.onnx"
    whole = tower.read_bytes()
    tower.write_bytes(b"damaged")
    with pytest.raises(CsrmError, match="changed after it was published"):
        drill.rehearse(world.settings, AUTO, world.api, world.settings.work)
    tower.write_bytes(whole)  # from the backup
    drill.rehearse(world.settings, AUTO, world.api, world.settings.work)


def test_without_a_predecessor_there_is_nothing_to_rehearse(settings: Settings) -> None:
    world = World(settings)
    nothing = drill.rehearse(settings, AUTO, world.api, settings.work)
    assert nothing == {"live": None, "reached": [], "seconds": []}
    world.promote(world.release("one"))
    assert drill.rehearse(settings, AUTO, world.api, settings.work)["reached"] == []
