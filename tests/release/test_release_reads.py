"""How often a command reads the whole ledger: once to decide, once within each transaction that
writes a row (it holds the market's lock), and once after MLflow's aliases were looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import sqlalchemy as sa

from csrm_tasks.release import ledger, manage, reconcile, rollback, rollout_moves, routing
from csrm_tasks.release import promote as promotion
from csrm_tasks.release.views import refresh_views
from csrm_tasks.sections import Rollout, Step
from csrm_tasks.settings import Settings
from csrm_tasks.store import open_store
from csrm_tasks.store.models import LedgerEntry
from tests.release_fixtures import MARKET, market
from tests.release_world import World

STEPS = market(rollout=Rollout(steps=(Step(weight=10), Step(weight=50))))
WHO = {"actor": "ann", "reason": "why"}
Command = Callable[[], Any]


class Statements:
    """What was asked of the database."""

    def __init__(self) -> None:
        self.reads = 0  # of the whole ledger
        self.locks = 0  # transactions that hold the write lock from their start
        self.rows = 0  # written to the ledger

    def hear(self, _connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        text, table = " ".join(statement.split()), LedgerEntry.__tablename__
        self.reads += f"FROM {table}" in text
        self.locks += text == "BEGIN IMMEDIATE"
        self.rows += text.startswith(f"INSERT INTO {table}")


@contextmanager
def heard(settings: Settings) -> Iterator[Statements]:
    made, engine = Statements(), open_store(settings.db_url)
    sa.event.listen(engine, "before_cursor_execute", made.hear)
    try:
        yield made
    finally:
        sa.event.remove(engine, "before_cursor_execute", made.hear)


def promote(world: World) -> Command:
    made = world.release("three")
    return lambda: world.promote(made, market())


def roll_back(world: World) -> Command:
    return lambda: rollback.roll_back(world.settings, STEPS, world.api, **WHO)


def roll_back_within_a_rollout(world: World) -> Command:
    """The live release is named: what is rolled out against it is given up, too; two rows."""
    world.start(world.release("three"), STEPS)
    live = world.live()
    return lambda: rollback.roll_back(world.settings, STEPS, world.api, leaving=live, **WHO)


def roll_back_once_more(world: World) -> Command:
    roll_back(world)()
    return roll_back(world)


def restore(world: World) -> Command:
    roll_back(world)()
    made = world.release("two")  # judged again, against what is live now
    return lambda: promotion.restore(world.settings, STEPS, made.id, world.api, **WHO)


def begin(world: World) -> Command:
    made = world.release("three")
    return lambda: rollout_moves.begin(world.settings, STEPS, world.api, made.id)


def decide(world: World, outcome: str = "SUCCESS") -> Command:
    world.start(world.release("three"), STEPS)
    judgement = world.judgement(outcome)
    return lambda: world.settle(judgement, STEPS)


def decide_to_launch(world: World) -> Command:
    decide(world)()
    judgement = world.judgement()
    return lambda: world.settle(judgement, STEPS)


def decide_to_wait(world: World) -> Command:
    return decide(world, "INCONCLUSIVE")


def answer(world: World) -> Command:
    made = world.release("three")
    return lambda: rollout_moves.record_answer(
        world.settings, STEPS, world.api, made.id, approved=True, actor="ann", run="r"
    )


def approve(world: World, decide: Callable[..., Any] = manage.approve) -> Command:
    made = world.release("three")

    def command() -> None:
        decide(world.settings, MARKET, made.id, "ann", "why")
        refresh_views(world.settings, STEPS, world.api)  # as csrm release does next

    return command


def reject(world: World) -> Command:
    return approve(world, manage.reject)


def repair(world: World) -> Command:
    patched: Any = world.api  # what a version carries beside is not our subject
    patched.get_model_version = lambda name, version: patched.versions[int(version) - 1]
    return lambda: reconcile.reconcile(world.settings, STEPS, world.api)


@pytest.mark.parametrize(
    ("prepare", "reads", "rows"),
    [
        (promote, 4, 1),  # a market without steps looks first whether some are to be given up
        (roll_back, 3, 1),
        (roll_back_within_a_rollout, 5, 2),  # two rows: what is published is read after the second
        (roll_back_once_more, 2, 0),
        (restore, 3, 1),
        (begin, 3, 1),
        (decide, 4, 2),
        (decide_to_wait, 3, 1),
        (decide_to_launch, 8, 3),  # judged, advanced; promotion is a command by itself
        (answer, 3, 1),
        (approve, 4, 1),  # approve, then let the views follow
        (reject, 4, 1),  # reject, then let the views follow
        (repair, 3, 0),  # versions are repaired before aliases are looked at again
    ],
)
def test_reads_of_the_ledger(
    settings: Settings, prepare: Callable[[World], Command], reads: int, rows: int
) -> None:
    world = World(settings)
    for name in ("one", "two"):
        world.promote(world.release(name))
    command = prepare(world)
    with heard(settings) as made:
        command()
    assert (made.reads, made.locks, made.rows) == (reads, rows, rows)
    world.agrees()


def test_the_ledger_is_read_again_only_where_others_wrote_in_between(settings: Settings) -> None:
    world = World(settings)
    world.promote(world.release("one"))
    before = ledger.verified(settings, MARKET)
    world.release("two")
    (third,) = ledger.verified(settings, MARKET)[len(before) :]
    world.release("three")
    fourth = ledger.verified(settings, MARKET)[-1]
    with heard(settings) as made:
        assert ledger.including(settings, before, before[0]) == before
        assert ledger.including(settings, before, third) == [*before, third]
        assert made.reads == 0
        assert ledger.including(settings, before, fourth) == [*before, third, fourth]
        assert made.reads == 1


def test_an_older_state_of_the_ledger_is_not_published_over_a_newer_one(settings: Settings) -> None:
    world = World(settings)
    world.promote(world.release("one"))
    before = ledger.verified(settings, MARKET)
    world.promote(world.release("two"))
    newer = world.doc()
    assert routing.publish(settings, MARKET, before) == newer == world.doc()
    refresh_views(settings, market(), world.api, before)
    world.agrees()
