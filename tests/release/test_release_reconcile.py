"""MLflow, a real one on SQLite, is repaired from the ledger; a hand on its champion is noticed."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from csrm_tasks import tracking
from csrm_tasks.cli.main import main
from csrm_tasks.errors import AwayError
from csrm_tasks.markets import MarketConfig
from csrm_tasks.release import ledger
from csrm_tasks.release import mlflow_aliases as registry
from csrm_tasks.release.reconcile import reconcile
from csrm_tasks.release.views import HAND
from csrm_tasks.settings import Settings, load_settings
from csrm_tasks.steps import run_step
from tests.outages import FlakyRegistry, Outage, mlflow_gone, object_store, store_gone
from tests.release_fixtures import MARKET, market, store_of
from tests.release_world import MODEL, World

REVERT = market()
ADOPT = REVERT.model_copy(
    update={"release": REVERT.release.model_copy(update={"alias_moved": "adopt"})}
)


@pytest.fixture(scope="module")
def empty_mlflow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("mlflow")
    tracking.client(load_settings({"CSRM_HOME": str(home)})).search_registered_models()
    return home / "mlflow.db"


@pytest.fixture
def world(settings: Settings, empty_mlflow: Path) -> World:
    settings.home.mkdir(parents=True)
    shutil.copy(empty_mlflow, settings.home)
    return World(settings, tracking.client(settings))


@pytest.fixture
def three(world: World) -> dict[str, Any]:
    """One release that was live, one that is, one that waits."""
    made = {}
    for key in ("was", "live", "waits"):
        made[key] = world.release(key)
        if key != "waits":
            world.promote(made[key])
    world.refresh()
    assert world.aliases() == {
        "previous": made["was"].id, "champion": made["live"].id, "challenger": made["waits"].id,
    }  # fmt: skip
    return made


def point_champion(world: World, release: str) -> None:
    """Do what a person does in MLflow's pages."""
    version = registry.versions(world.api, MODEL)[release]
    world.api.set_registered_model_alias(MODEL, "champion", version)


def settle(world: World, config: MarketConfig) -> list[str]:
    found = reconcile(world.settings, config, world.api)
    world.agrees()
    assert reconcile(world.settings, config, world.api) == []  # once is enough
    return found


def last(world: World) -> ledger.Entry:
    return ledger.verified(world.settings, MARKET)[-1]


def test_nothing_to_repair_is_nothing_done(world: World, three: dict[str, Any]) -> None:
    before = ledger.history(world.settings, MARKET)
    assert settle(world, REVERT) == []
    assert ledger.history(world.settings, MARKET) == before


def test_a_champion_moved_by_hand_is_put_back_and_recorded(
    world: World, three: dict[str, Any]
) -> None:
    for _ in range(2):  # whoever does it again is put back again
        point_champion(world, three["waits"].id)
        assert settle(world, REVERT) == ["champion: 3 → 2"]
    row = last(world)
    assert "moved by hand to version 3 and put back" in row.reason
    assert (row.action, row.release_id, row.actor) == ("reverted", three["waits"].id, HAND)
    assert "the market's policy is to put it back" in row.reason
    assert world.live() == three["live"].id


def test_a_champion_moved_while_the_views_are_looked_at_is_not_put_back_unsaid(
    world: World, three: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = registry.moved_by_hand

    def moves_next(*seen: Any) -> Any:
        found = looked(*seen)
        point_champion(world, three["waits"].id)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(registry, "moved_by_hand", moves_next)
        world.refresh()
    assert world.aliases()["champion"] == three["waits"].id  # its own event starts the next look
    assert settle(world, REVERT) == ["champion: 3 → 2"]
    assert (last(world).action, last(world).actor) == ("reverted", HAND)


def test_whatever_repairs_the_views_first_writes_the_hand_down(
    world: World, three: dict[str, Any]
) -> None:
    point_champion(world, three["waits"].id)
    world.refresh()  # as every move of a rollout does
    assert (last(world).action, last(world).actor) == ("reverted", HAND)
    world.agrees()


def test_a_waiting_release_chosen_by_hand_is_adopted_through_its_gate(
    world: World, three: dict[str, Any]
) -> None:
    point_champion(world, three["waits"].id)
    said = settle(world, ADOPT)
    assert said[0].startswith(f"champion: {three['waits'].id} was chosen by hand and is adopted")
    row = last(world)
    assert (row.action, row.actor) == ("promoted", HAND)
    assert row.payload["verdict"] == three["waits"].verdict["digest"]
    assert world.aliases() == {"champion": three["waits"].id, "previous": three["live"].id}


def test_moving_the_champion_back_by_hand_is_adopted_as_a_rollback(
    world: World, three: dict[str, Any]
) -> None:
    point_champion(world, three["was"].id)
    settle(world, ADOPT)
    row = last(world)
    assert (row.action, row.release_id, row.actor) == ("rolled_back", three["was"].id, HAND)


def test_a_hand_cannot_get_round_verdict_and_approval(world: World, three: dict[str, Any]) -> None:
    failed = world.release("failed", "FAIL")
    point_champion(world, failed.id)
    settle(world, ADOPT)
    assert "the gate said FAIL" in last(world).reason
    manual = ADOPT.model_copy(
        update={"release": ADOPT.release.model_copy(update={"approval": "manual"})}
    )
    point_champion(world, three["waits"].id)
    settle(world, manual)
    assert "waits for approval" in last(world).reason
    assert world.live() == three["live"].id
    assert [e.action for e in ledger.history(world.settings, MARKET)][-2:] == ["reverted"] * 2


@pytest.mark.parametrize("config", [REVERT, ADOPT])
def test_a_champion_that_is_no_release_or_was_removed_is_put_back(
    world: World, three: dict[str, Any], config: MarketConfig
) -> None:
    stranger = world.api.create_model_version(MODEL, "elsewhere", run_id=None)
    world.api.set_registered_model_alias(MODEL, "champion", stranger.version)
    settle(world, config)
    assert last(world).payload["version"] == str(stranger.version)
    world.api.delete_registered_model_alias(MODEL, "champion")
    settle(world, config)
    assert last(world).payload["version"] == "None"
    assert world.live() == three["live"].id


def test_aliases_that_are_behind_the_ledger_are_no_hand(
    world: World, three: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("csrm_tasks.release.promote.refresh_views", lambda *_: [])
        world.promote(three["waits"])  # killed before its views
    settle(world, ADOPT)
    assert [e.action for e in ledger.history(world.settings, MARKET)].count("reverted") == 0
    assert world.aliases()["champion"] == three["waits"].id


def test_lost_versions_and_wrong_tags_are_made_good(world: World, three: dict[str, Any]) -> None:
    world.api.set_model_version_tag(MODEL, "3", "csrm.verdict", "PASS, honestly")
    world.api.delete_model_version(MODEL, "2")
    said = settle(world, REVERT)
    assert f"version of {three['live'].id}: none → 4" in said
    assert "version 3, csrm.verdict: PASS, honestly → PASS" in said
    version = world.api.get_model_version_by_alias(MODEL, "champion")
    assert version.tags["csrm.release"] == three["live"].id
    assert version.tags["csrm.bundle"] == three["live"].bundle.ref
    experiment = world.api.get_run(version.run_id).info.experiment_id
    (made,) = world.api.search_logged_models([experiment])
    assert version.source == made.artifact_location and made.status == "READY"
    assert made.source_run_id == version.run_id
    assert json.loads(made.tags["mlflow.modelVersions"]) == [{"name": MODEL, "version": "4"}]
    files = world.api.list_logged_model_artifacts(made.model_id)
    assert "MLmodel" in {f.path for f in files}


def test_a_registry_lost_as_a_whole_is_made_again(
    world: World, three: dict[str, Any], empty_mlflow: Path, tmp_path: Path
) -> None:
    shutil.copy(empty_mlflow, tmp_path / "new.db")
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    uri = f"sqlite:///{tmp_path / 'new.db'}"
    home = {"CSRM_HOME": str(world.settings.home), "MLFLOW_TRACKING_URI": uri}
    moved = load_settings(home)
    again = World(moved, tracking.client(moved))
    said = settle(again, REVERT)
    assert sum("none →" in s for s in said) == 3
    assert set(again.aliases()) == {"champion", "previous", "challenger"}


def test_what_was_away_during_a_rollback_is_repaired_by_the_night_and_by_the_command(
    world: World, three: dict[str, Any]
) -> None:
    """MLflow fails during a rollback, then the routing store during the next one."""
    was, live, waits = (three[key].id for key in ("was", "live", "waits"))
    world.promote(three["waits"])
    true, world.api = world.api, FlakyRegistry(world.api, Outage(1, mlflow_gone))
    world.roll_back()
    world.api = true
    assert (world.doc()["stable"], world.aliases()["champion"]) == (live, waits)
    ref = run_step("repair_views", REVERT, {}, {"run": "night"}, world.settings)
    assert "champion: 3 → 2" in store_of(world.settings).open(ref).facts["repaired"]
    world.agrees()
    with object_store(Outage(1, store_gone)), pytest.raises(AwayError) as caught:
        world.roll_back(leaving=live)
    assert "what is served cannot be read" in str(caught.value)
    assert (world.live(), world.doc()["stable"]) == (was, live)
    row = last(world).seq
    assert settle(world, REVERT)[0] == f"routing: row {row - 1} → {row}"


def test_the_commands_tell_and_repair(
    world: World, three: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    world.at_the_command_line(REVERT, monkeypatch)

    def said(*args: str) -> str:
        assert main(["release", args[0], "--market", MARKET, *args[1:]]) == 0
        return str(capsys.readouterr().out)

    assert said("verify") == "5 rows verified\n"
    assert said("reconcile") == "nothing to repair\n"
    point_champion(world, three["waits"].id)
    assert said("reconcile") == "champion: 3 → 2\n"
    shown = said("show", three["waits"].id)
    assert "registered" in shown and "reverted" in shown
    assert f"bundle: {three['waits'].bundle.ref}" in shown
    assert three["was"].id not in said("show", three["waits"].id).splitlines()[0]
    rows = ledger.history(world.settings, MARKET)
    assert said("live", "--at", rows[1].at).strip() == three["was"].id
    assert "reverted" in said("history")
    assert main(["release", "show", "--market", MARKET, "tiny-nobody"]) == 2
    assert "knows no release tiny-nobody" in capsys.readouterr().err
