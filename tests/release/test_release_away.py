"""The way back with MLflow, the object store or the database failing at every one of their calls.

Whatever fails, a command ends in the right served release, or in one line that says what is served
now; run again it ends as if nothing had failed, with every ledger row there once.
"""

from __future__ import annotations

import copy
import shutil
import socket
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import requests
from mlflow.exceptions import MlflowException, RestException

from csrm_tasks.blobs import LocalBlobs
from csrm_tasks.cli.main import main
from csrm_tasks.errors import AwayError
from csrm_tasks.release import away, ledger, manage, promote, routing
from csrm_tasks.release.reconcile import reconcile
from csrm_tasks.release.views import RETRIES
from csrm_tasks.sections import Rollout, Step
from csrm_tasks.settings import Settings
from tests.outages import (
    FlakyRegistry,
    Outage,
    commits,
    database,
    database_gone,
    disk_full,
    mlflow_500,
    mlflow_gone,
    object_store,
    store_gone,
    store_refuses,
)
from tests.release_fixtures import MARKET, market
from tests.release_world import AUTO, World

STEPS = market(rollout=Rollout(steps=(Step(weight=0), Step(weight=50))))
Act = Callable[[World], Any]


@dataclass(frozen=True)
class Prepared:
    """An installation as it is before a command, its copies, and the rows that it must add."""

    world: World
    act: Act
    ends: tuple[str, ...]

    def copy(self, folder: Path) -> World:
        """Return the installation once more, in a folder of its own."""
        settings = self.world.settings
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(settings.home, folder)
        moved = {
            name: str(folder / Path(getattr(settings, name)).relative_to(settings.home))
            for name in ("artifacts", "routing")
        }
        here = replace(settings, home=folder, db_url=f"sqlite:///{folder / 'csrm.db'}", **moved)
        return World(here, copy.deepcopy(self.world.api))


def back(world: World) -> tuple[Act, tuple[str, ...]]:
    for key in ("one", "two", "three"):
        world.promote(world.release(key))
    return lambda w: w.roll_back(), ("rolled_back",)


def give_up(world: World) -> tuple[Act, tuple[str, ...]]:
    world.promote(world.release("one"))
    world.start(world.release("two"), STEPS)
    return lambda w: w.roll_back(), ("aborted",)


def promotion(world: World) -> tuple[Act, tuple[str, ...]]:
    world.promote(world.release("one"))
    two = world.release("two")
    return lambda w: w.promote(two), ("promoted",)


def restoration(world: World) -> tuple[Act, tuple[str, ...]]:
    world.promote(world.release("one"))
    two = world.release("two")
    world.promote(two)
    world.roll_back()

    def act(w: World) -> Any:
        return promote.restore(w.settings, AUTO, two.id, w.api, actor="ann", reason="false alarm")

    return act, ("promoted",)


def launch(world: World) -> tuple[Act, tuple[str, ...]]:
    world.promote(world.release("one"))
    world.start(world.release("two"), STEPS)
    world.settle(world.judgement(), STEPS)
    said = world.judgement()
    return lambda w: w.settle(said, STEPS), ("judged", "advanced", "promoted")


def failure(world: World) -> tuple[Act, tuple[str, ...]]:
    world.promote(world.release("one"))
    world.start(world.release("two"), STEPS)
    said = world.judgement("FAILURE")
    return lambda w: w.settle(said, STEPS), ("judged", "aborted")


def no_steps(world: World) -> tuple[Act, tuple[str, ...]]:
    world.promote(world.release("one"))
    world.start(world.release("two"), STEPS)
    said = world.judgement()
    return lambda w: w.settle(said, AUTO), ("aborted",)


@pytest.fixture(params=[back, give_up, promotion, restoration, launch, failure, no_steps])
def prepared(settings: Settings, request: pytest.FixtureRequest) -> Prepared:
    world = World(settings)
    return Prepared(world, *request.param(world))


def followed(world: World) -> bool:
    """Whether servers follow what the ledger says."""
    rows = ledger.verified(world.settings, MARKET)
    return world.doc() == routing.document(MARKET, rows)


def ended_well(prepared: Prepared, world: World, before: int) -> None:
    """Assert that the command, run again, did once what it does where nothing fails."""
    prepared.act(world)
    rows = manage.history(world.settings, MARKET)[before:]
    assert tuple(e.action for e in rows) == prepared.ends
    world.agrees()


def in_one_line(world: World, error: AwayError) -> None:
    """Assert that a person reads what is served, and nothing that is nobody's business."""
    said = str(error)
    assert "\n" not in said and "secret-host" not in said
    stable = world.doc()["stable"]
    assert f"served now: {stable} to " in said or "what is served cannot be read" in said, said


@pytest.mark.parametrize(("error", "lasting"), [(mlflow_gone, True), (mlflow_500, False)])
def test_mlflow_failing_at_any_call_keeps_nobody_on_the_wrong_release(
    prepared: Prepared, tmp_path: Path, error: Any, lasting: bool
) -> None:
    before = len(manage.history(prepared.world.settings, MARKET))
    nth, failed = 0, True
    while failed:
        nth += 1
        world = prepared.copy(tmp_path / "copy")
        true, outage = world.api, Outage(nth, error, late=not lasting, lasting=lasting)
        world.api = FlakyRegistry(true, outage)
        prepared.act(world)
        failed = outage.calls >= nth
        assert followed(world), nth
        world.api = true
        world.refresh()  # whatever moves a release next, or the night
        world.agrees()
        ended_well(prepared, world, before)
    assert nth > 3


Down = Callable[[Outage], AbstractContextManager[None]]


def at_every_call(
    prepared: Prepared, folder: Path, down: Down, errors: Sequence[Any], late: bool
) -> None:
    """Fail one call after the other, once or from then on, and run the command again after it."""
    before = len(manage.history(prepared.world.settings, MARKET))
    nth, failed = 0, True
    while failed:
        nth += 1
        world = prepared.copy(folder)
        outage = Outage(nth, errors[nth % len(errors)], late, lasting=nth % 2 == 0)
        with down(outage):
            said = tried(prepared, world)
        failed = outage.calls >= nth
        told(world, said)
        ended_well(prepared, world, before)
    assert nth > 2


def test_an_object_store_failing_at_any_call_is_told_of_or_harmless(
    prepared: Prepared, tmp_path: Path
) -> None:
    for late in (False, True):
        errors = (store_gone, store_refuses, disk_full)
        at_every_call(prepared, tmp_path / "copy", object_store, errors, late)


def test_a_database_failing_at_any_statement_or_commit_is_told_of_or_harmless(
    prepared: Prepared, tmp_path: Path
) -> None:
    at_every_call(prepared, tmp_path / "copy", database, (database_gone,), late=False)
    at_every_call(prepared, tmp_path / "copy", commits, (database_gone,), late=True)


def tried(prepared: Prepared, world: World) -> AwayError | None:
    try:
        prepared.act(world)
    except AwayError as e:
        return e
    return None


def told(world: World, said: AwayError | None) -> None:
    """Assert that ledger and routing are not apart without a word."""
    if said is not None:
        in_one_line(world, said)
    else:
        assert followed(world)


def test_a_predecessor_whose_bundle_cannot_be_looked_at_is_gone_back_to(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Artifacts lie on another store than routing; servers keep the predecessors loaded."""
    world = World(settings)
    one, _ = promoted(world, "one", "two")

    def away(*_: Any) -> Any:
        raise store_gone()

    monkeypatch.setattr("csrm_tasks.artifacts.ArtifactStore.manifest", away)
    assert world.roll_back().release_id == one
    assert f"the bundle of {one} is not verified" in caplog.text
    assert world.doc()["stable"] == one


def promoted(world: World, *keys: str) -> list[str]:
    """Promote releases one after another; returns their ids."""
    made = []
    for key in keys:
        made.append(world.release(key))
        world.promote(made[-1])
    return [m.id for m in made]


def test_reconcile_says_that_mlflow_is_away_and_puts_routing_right_before(
    settings: Settings,
) -> None:
    world = World(settings)
    one, _ = promoted(world, "one", "two")
    with object_store(Outage(1, disk_full)), pytest.raises(AwayError, match="No space left"):
        world.roll_back()
    away = FlakyRegistry(world.api, Outage(1, mlflow_gone))
    with pytest.raises(AwayError, match=f"could not be brought up .* served now: {one} to 100 %"):
        reconcile(settings, AUTO, away)
    assert world.doc()["stable"] == one


def test_a_command_with_the_database_or_the_inputs_away_is_one_line(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    world = World(settings)
    (one,) = promoted(world, "one")
    two = world.release("two")
    world.at_the_command_line(AUTO, monkeypatch)
    who = ["--market", MARKET, "--actor", "ann", "--reason", "bad"]
    refs = ["--bundle", two.bundle.ref, "--gate", two.gate.ref, "--register", two.gate.ref]
    commands = (
        (database, ["release", "rollback", *who]),
        (database, ["release", "approve", *who, two.id]),
        (database, ["promote", "--market", MARKET, *refs]),
        (object_store, ["promote", "--market", MARKET, *refs]),
    )
    for outage, command in commands:
        with outage(Outage(1, store_gone if outage is object_store else database_gone)):
            assert main(command) == 2
        said = capsys.readouterr().err
        line = [text for text in said.splitlines() if text.startswith("csrm: ")]
        assert len(line) == 1 and "does not answer" in line[0] and "Traceback" not in said
        assert (f"served now: {one} to 100 %" in line[0]) is (outage is database)
    assert world.doc()["stable"] == one


def test_registering_with_mlflow_away_is_one_line_and_registers_when_it_answers(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A real client, and a port that nobody listens at."""
    world = World(settings)
    (one,) = promoted(world, "one")
    two = world.release("two", registered=False)
    world.at_the_command_line(AUTO, monkeypatch)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{unused.getsockname()[1]}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    monkeypatch.setenv(RETRIES, "0")
    command = ["register", "--market", MARKET, "--bundle", two.bundle.ref, "--gate", two.gate.ref]
    for args in (command, ["drill", "--market", MARKET, "--run", "r"]):
        assert main(args) == 2
        said = capsys.readouterr().err
        lines = [text for text in said.splitlines() if text.startswith("csrm: ")]
        assert len(lines) == 1 and "Traceback" not in said and address not in lines[0]
        assert "MLflow does not answer (MlflowException)" in lines[0]
        assert f"served now: {one} to 100 %" in lines[0]
    rows = [e.release_id for e in ledger.verified(settings, MARKET) if e.action == "registered"]
    assert rows == [one]


@pytest.mark.parametrize(
    ("error", "who"),
    [
        (mlflow_gone(), "MLflow"),
        (mlflow_500(), "MLflow"),
        (RestException({"error_code": "TEMPORARILY_UNAVAILABLE", "message": ""}), "MLflow"),
        (RestException({"error_code": "PERMISSION_DENIED", "message": ""}), "MLflow"),
        (RestException({"error_code": "RESOURCE_DOES_NOT_EXIST", "message": ""}), None),
        (MlflowException("nobody was asked"), None),
        (requests.ConnectionError(), "MLflow"),
        (ValueError(), None),
    ],
)
def test_what_does_not_answer_is_named(error: Exception, who: str | None) -> None:
    assert away.which(error) == who


def test_routing_that_is_not_written_for_whatever_reason_is_told_of(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(settings)
    _, two = promoted(world, "one", "two")

    def broken(*_: Any) -> Any:
        raise RuntimeError("something new")

    monkeypatch.setattr(LocalBlobs, "replace", broken)
    with pytest.raises(AwayError, match=rf"\(RuntimeError\); served now: {two} to 100 %.*, but"):
        world.roll_back()


def test_damaged_routing_is_no_obstacle_on_the_way_back(settings: Settings) -> None:
    world = World(settings)
    one, _ = promoted(world, "one", "two")
    path = Path(settings.routing) / f"{MARKET}.json"
    path.write_text("{")
    world.roll_back()
    assert world.doc()["stable"] == one
    world.agrees()
