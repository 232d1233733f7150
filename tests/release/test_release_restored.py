"""A database brought back from an older backup: no command adds a row to it that servers would
follow, or the row would in the end have the number of one that was lost.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from dataclasses import replace

import pytest

from csrm_tasks.errors import RefusedError
from csrm_tasks.release import ledger, rollout_moves
from csrm_tasks.release import promote as promotion
from csrm_tasks.sections import Rollout, Step
from csrm_tasks.settings import Settings
from tests.release_fixtures import MARKET, market
from tests.release_world import AUTO, World

STEPS = market(rollout=Rollout(steps=(Step(weight=10), Step(weight=50))))
WHO = {"actor": "ann", "reason": "why"}


@pytest.fixture
def restored(settings: Settings) -> World:
    """Rows 1 to 8 by now; the backup ends with row 6, where a third release waits."""
    world = World(settings)
    for key in ("one", "two"):
        world.promote(world.release(key))
    waiting = world.release("three")
    world.start(waiting, STEPS)
    backup = settings.home / "backup.db"
    with sqlite3.connect(settings.home / "csrm.db") as db, sqlite3.connect(backup) as to:
        db.backup(to)
    world.settle(world.judgement("FAILURE", day=2), STEPS)
    assert world.doc()["ledger_seq"] > len(
        ledger.verified(replace(settings, db_url=f"sqlite:///{backup}"), MARKET)
    )
    return World(replace(settings, db_url=f"sqlite:///{backup}"), world.api)


@pytest.mark.parametrize("command", ["rollback", "start", "promote", "restore", "advance"])
def test_no_command_adds_a_row_to_an_older_ledger(restored: World, command: str) -> None:
    settings, api = restored.settings, restored.api
    release = restored.release("four", registered=False)
    before, document = ledger.verified(settings, MARKET), restored.doc()
    commands: dict[str, Callable[[], object]] = {
        "rollback": restored.roll_back,
        "start": lambda: restored.start(release, STEPS),
        "promote": lambda: restored.promote(release),
        "restore": lambda: promotion.restore(settings, AUTO, release.id, api, **WHO),
        "advance": lambda: rollout_moves.advance_held(settings, STEPS, api, **WHO),
    }
    with pytest.raises(RefusedError, match="which this ledger does not have"):
        commands[command]()
    assert ledger.verified(settings, MARKET) == before
    assert restored.doc() == document


def test_a_way_back_needs_no_document_that_can_be_read(
    restored: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the routing store is away nothing is known of the lost row: the ledger decides."""
    from csrm_tasks.release import routing

    def away(_: str) -> object:
        raise ConnectionError("away")

    monkeypatch.setattr(routing, "open_blobs", away)
    assert routing.ledger_to_add_to(restored.settings, MARKET)
