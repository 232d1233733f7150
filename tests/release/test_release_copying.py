"""A release taken to another environment's model, once, in a real MLflow on SQLite."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from csrm_tasks import tracking
from csrm_tasks.cli.main import main
from csrm_tasks.release import mlflow_aliases as registry
from csrm_tasks.settings import Settings, load_settings
from tests.release_fixtures import MARKET
from tests.release_world import AUTO, MODEL, World

PROD = "prod.csrm-tiny"


@pytest.fixture(scope="module")
def empty_mlflow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("mlflow")
    tracking.client(load_settings({"CSRM_HOME": str(home)})).search_registered_models()
    return home / "mlflow.db"


@pytest.fixture
def world(settings: Settings, empty_mlflow: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    settings.home.mkdir(parents=True)
    shutil.copy(empty_mlflow, settings.home)
    found = World(settings, tracking.client(settings))
    found.at_the_command_line(AUTO, monkeypatch)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", settings.mlflow_uri)
    return found


def copy(*args: str, to: str = PROD) -> int:
    return main(["release", "copy", "--market", MARKET, "--to", to, *args])


def test_the_live_release_is_copied_once_and_is_the_champion_there(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    one = world.release("one")
    world.promote(one)
    for _ in range(2):
        assert copy() == 0
        assert capsys.readouterr().out == f"{one.id} is version 1 of {PROD}, its champion\n"
    two = world.release("two")
    world.promote(two)
    assert copy() == 0
    there = registry.versions(world.api, PROD)
    assert there == {one.id: "1", two.id: "2"}
    assert registry.read_aliases(world.api, PROD).aliases == {"champion": "2"}
    ours = registry.versions(world.api, MODEL)
    for release, number in there.items():
        made = world.api.get_model_version(PROD, number)
        source = world.api.get_model_version(MODEL, ours[release])
        assert made.source == f"models:/{MODEL}/{source.version}"
        assert made.tags == source.tags and made.run_id == source.run_id

    assert copy(one.id) == 0  # the other environment's way back
    assert registry.read_aliases(world.api, PROD).aliases == {"champion": "1"}
    assert registry.versions(world.api, PROD) == there
    assert registry.read_aliases(world.api, MODEL).aliases["champion"] == ours[two.id]


def test_a_copy_that_was_killed_before_its_alias_is_found_again(world: World) -> None:
    one = world.release("one")
    world.promote(one)
    world.api.copy_model_version(f"models:/{MODEL}/1", PROD)
    assert copy() == 0
    assert registry.versions(world.api, PROD) == {one.id: "1"}
    assert registry.read_aliases(world.api, PROD).aliases == {"champion": "1"}


def test_what_may_not_go_live_here_goes_nowhere(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(why: str, *args: str, to: str = PROD) -> None:
        assert copy(*args, to=to) == 2
        assert why in capsys.readouterr().err

    refused("no live release to copy")
    failed = world.release("failed", outcome="FAIL")
    refused(f"the verdict of {failed.id} is FAIL", failed.id)
    refused("no registered release tiny-none", "tiny-none")
    world.promote(world.release("one"))
    refused("is the market's own model", to=MODEL)
    waits = world.release("waits")
    number = registry.versions(world.api, MODEL)[waits.id]
    world.api.delete_model_version(MODEL, number)
    refused("run csrm release reconcile", waits.id)
    assert registry.versions(world.api, PROD) == {}
