"""The promote step, killed after every durable write with a real MLflow, happens exactly once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from csrm_tasks import tracking
from csrm_tasks.cli.main import main
from tests.crashes import (
    END,
    Environment,
    Homes,
    deaths,
    postgres_homes,
    settings_of,
    sqlite_homes,
    together,
)
from tests.release_fixtures import MARKET, publish
from tests.release_world import AUTO, MODEL, World

ALIAS = "commit registered_model_aliases"
PROMOTION = [  # what it dies before: its durable writes in order, and the end
    "commit ledger", f"replace {MARKET}.json", ALIAS, ALIAS, ALIAS,
    "commit registered_model_tags", "link manifest.json", END,
]  # fmt: skip


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def homes(request: pytest.FixtureRequest, tmp_path: Path) -> Homes:
    if request.param == "sqlite":
        return sqlite_homes(tmp_path, AUTO)
    server = request.getfixturevalue("server")
    return postgres_homes(tmp_path, AUTO, server, request.getfixturevalue("template"))


def world_of(environment: Environment) -> World:
    settings = settings_of(environment)
    return World(settings, tracking.client(settings))


def promotion(world: World, made: Any, key: str) -> list[str]:
    """Return the arguments of the ``csrm promote`` of a release."""
    receipt = publish(world.settings, "register", key, lambda f: (f / "receipt").write_text(key))
    refs = ["--bundle", made.bundle.ref, "--gate", made.gate.ref, "--register", receipt.ref]
    return ["promote", "--market", MARKET, *refs]


def finish(args: list[str], environment: Environment, patch: pytest.MonkeyPatch) -> int:
    for name, value in environment.items():
        patch.setenv(name, value)
    return main(args)


def test_a_promotion_killed_after_any_durable_write_happens_exactly_once(
    homes: Homes, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = homes.new()
    world = world_of(begin)
    one = world.release("one")
    world.promote(one)
    two = world.release("two")
    world.refresh()  # the challenger, as register leaves it
    args = promotion(world, two, "two")
    homes.begin_with(begin)
    died = []
    for before, environment in deaths(homes, args):
        died.append(before)
        assert finish(args, environment, monkeypatch) == 0
        after = world_of(environment)
        assert after.moves() == [("promoted", one.id), ("promoted", two.id)], before
        after.agrees()
    assert died == PROMOTION


def test_an_adoption_by_reconcile_killed_after_any_durable_write_happens_exactly_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adopting = AUTO.release.model_copy(update={"alias_moved": "adopt"})
    homes = sqlite_homes(tmp_path, AUTO.model_copy(update={"release": adopting}))
    begin = homes.new()
    world = world_of(begin)
    one = world.release("one")
    world.promote(one)
    two = world.release("two")
    world.refresh()
    version = world.api.get_model_version_by_alias(MODEL, "challenger").version
    world.api.set_registered_model_alias(MODEL, "champion", version)  # by hand
    homes.begin_with(begin)
    args = ["release", "reconcile", "--market", MARKET]
    for before, environment in deaths(homes, args):
        assert finish(args, environment, monkeypatch) == 0
        after = world_of(environment)
        assert after.moves() == [("promoted", one.id), ("promoted", two.id)], before
        after.agrees()


def test_of_two_promoters_at_once_one_wins_and_the_other_says_so(
    homes: Homes,
) -> None:
    begin = homes.new()
    world = world_of(begin)
    one, two = world.release("one"), world.release("two")  # both judged while nothing was live
    args = [promotion(world, made, key) for made, key in ((one, "one"), (two, "two"))]
    ended = together((args[0], begin), (args[1], begin))
    assert sorted(code for code, _ in ended) == [0, 2]
    winner, loser, said = (one, two, ended[1][1]) if ended[0][0] == 0 else (two, one, ended[0][1])
    assert f"expected None to be live in tiny, but {winner.id} is" in said
    assert world.moves() == [("promoted", winner.id)]
    world.agrees()
    assert world.aliases()["challenger"] == loser.id
