"""Promotion and rollback: every guard, and every place where a process can be killed."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import sqlalchemy as sa

from csrm_tasks.errors import CsrmError, RefusedError
from csrm_tasks.release import manage, promote, verdicts
from csrm_tasks.settings import Settings
from csrm_tasks.store import open_store, writing
from csrm_tasks.store.models import LedgerEntry
from tests.release_fixtures import MARKET, market, publish, store_of
from tests.release_world import AUTO, Killed, World, kill_after

MANUAL = market(approval="manual")


@pytest.fixture
def world(settings: Settings) -> World:
    return World(settings)


def test_a_passed_release_goes_live_everywhere(world: World) -> None:
    one = world.release("one")
    assert world.aliases() == {}
    world.promote(one)
    two = world.release("two")
    row = world.promote(two)
    assert (row.release_id, row.previous, row.reason) == (two.id, one.id, "because")
    assert world.aliases() == {"champion": two.id, "previous": one.id}
    world.agrees()


def test_promoting_again_changes_nothing(world: World) -> None:
    one = world.release("one")
    first = world.promote(one)
    assert world.promote(one) == first
    assert world.moves() == [("promoted", one.id)]


@pytest.mark.parametrize("outcome", ["FAIL", "INCONCLUSIVE"])
def test_any_other_verdict_is_refused(world: World, outcome: str) -> None:
    with pytest.raises(RefusedError, match=f"the gate said {outcome}"):
        world.promote(world.release("one", outcome))
    assert world.live() is None


def test_no_policy_is_refused(world: World) -> None:
    with pytest.raises(RefusedError, match="no gate policy"):
        world.promote(world.release("one"), AUTO.model_copy(update={"gate": None}))


def test_another_bundles_verdict_is_refused(world: World) -> None:
    one, two = world.release("one"), world.release("two")
    with pytest.raises(RefusedError, match="judged another bundle"):
        world.promote(SimpleNamespace(bundle=one.bundle, gate=two.gate))


def test_an_unregistered_release_is_refused(world: World) -> None:
    with pytest.raises(RefusedError, match="not registered with this verdict"):
        world.promote(world.release("one", registered=False))


def test_a_tampered_verdict_is_refused(world: World) -> None:
    made = world.release("one", "FAIL")
    path = made.gate.file(verdicts.FILE)
    forged = {**json.loads(path.read_text()), "outcome": "PASS"}
    path.write_text(json.dumps(forged))
    with pytest.raises(RefusedError, match="changed after the gate wrote it"):
        world.promote(made)
    resealed = verdicts.seal({k: v for k, v in forged.items() if k != "digest"})
    path.write_text(json.dumps(resealed))
    with pytest.raises(RefusedError, match="changed after the gate wrote it"):
        world.promote(made)  # its digest is not the one that the gate published
    both = replace(made.gate, facts={"digest": resealed["digest"]})
    with pytest.raises(RefusedError, match="not registered with this verdict"):
        world.promote(SimpleNamespace(bundle=made.bundle, gate=both))
    assert world.live() is None


def test_a_tampered_ledger_row_stops_promotion(world: World) -> None:
    made = world.release("one")
    with writing(open_store(world.settings.db_url), MARKET) as connection:
        connection.execute(sa.update(LedgerEntry).values(actor="somebody"))
    with pytest.raises(RefusedError, match="does not verify"):
        world.promote(made)


def test_a_verdict_against_another_champion_is_refused(world: World) -> None:
    one, two = world.release("one"), world.release("two")  # both judged while nothing was live
    world.promote(one)
    with pytest.raises(RefusedError, match=f"expected None to be live in tiny, but {one.id} is"):
        world.promote(two)


def test_manual_approval_is_waited_for_and_belongs_to_one_verdict(world: World) -> None:
    made = world.release("one")
    with pytest.raises(
        RefusedError,
        match=f"csrm release approve --market tiny --actor NAME --reason WHY {made.id}",
    ):
        world.promote(made, MANUAL)
    old = made.verdict
    sealed = verdicts.seal({**{k: v for k, v in old.items() if k != "digest"}, "reasons": ["x"]})
    manage.approve(world.settings, MARKET, made.id, "ann", "looks right")
    world.register(made.bundle, sealed)  # judged anew after the approval
    gate = publish(
        world.settings, "gate", "again",
        lambda f: (f / verdicts.FILE).write_text(json.dumps(sealed)),
        facts={"digest": sealed["digest"]},
    )  # fmt: skip
    with pytest.raises(RefusedError, match="waits for approval"):
        world.promote(SimpleNamespace(bundle=made.bundle, gate=gate), MANUAL)
    row = manage.approve(world.settings, MARKET, made.id, "ann", "still right")
    assert (row.actor, row.reason) == ("ann", "still right")
    world.promote(SimpleNamespace(bundle=made.bundle, gate=gate), MANUAL)
    assert manage.live(world.settings, MARKET) == made.id


def test_only_a_registered_pass_can_be_approved(world: World) -> None:
    with pytest.raises(RefusedError, match="no registered release tiny-none"):
        manage.approve(world.settings, MARKET, "tiny-none", "ann", "")
    failed = world.release("one", "FAIL")
    with pytest.raises(RefusedError, match="the gate said FAIL"):
        manage.approve(world.settings, MARKET, failed.id, "ann", "")


def test_rollback_goes_back_one_release_and_then_no_further(world: World) -> None:
    made = []
    for key in ("one", "two", "three"):
        made.append(world.release(key))
        world.promote(made[-1])
    one, two, three = (m.id for m in made)
    row = world.roll_back()
    assert (row.release_id, row.previous, row.reason) == (two, three, "drill")
    world.agrees()
    assert world.roll_back(leaving=two).release_id == one
    assert world.aliases() == {"champion": one}
    with pytest.raises(RefusedError, match="no earlier release"):
        world.roll_back(leaving=one)
    assert manage.verify(world.settings, MARKET) == 8


def test_rollback_names_what_it_leaves_and_needs_sound_artifacts(world: World) -> None:
    one = world.release("one")
    world.promote(one)
    two = world.release("two")
    world.promote(two)
    with pytest.raises(RefusedError, match=f"{one.id} is not live in tiny: {two.id} is"):
        world.roll_back(leaving=one.id)
    (one.bundle.path / "note").write_text("something else")
    with pytest.raises(CsrmError, match="changed after it was published"):
        world.roll_back(leaving=two.id)
    assert world.live() == two.id


def test_aliases_moved_by_hand_are_put_back(world: World) -> None:
    one = world.release("one")
    world.promote(one)
    two = world.release("two")
    world.promote(two)
    world.api.aliases = {"champion": 1, "challenger": 2}
    repairs = promote.refresh_views(world.settings, AUTO, world.api)
    assert repairs == ["champion: 1 → 2", "previous: None → 1", "challenger: 2 → None"]
    world.agrees()
    assert promote.refresh_views(world.settings, AUTO, world.api) == []


def test_the_challenger_is_the_newest_pass_that_never_was_live(world: World) -> None:
    one = world.release("one")
    world.promote(one)
    two = world.release("two")
    world.release("three", "FAIL")
    promote.refresh_views(world.settings, AUTO, world.api)
    assert world.aliases() == {"champion": one.id, "challenger": two.id}


def test_a_release_that_mlflow_lost_is_named_and_served(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    one = world.release("one")
    world.api.versions.clear()
    world.promote(one)
    assert f"has no version of {one.id}; run csrm release reconcile" in caplog.text
    assert world.doc()["stable"] == one.id


@pytest.mark.parametrize("kill", [1, 2, 3, 4])  # ledger, routing, champion, previous
def test_rollback_killed_after_any_write_goes_back_exactly_one(world: World, kill: int) -> None:
    made = []
    for key in ("one", "two", "three"):
        made.append(world.release(key))
        world.promote(made[-1])
    with pytest.MonkeyPatch.context() as patch:
        kill_after(patch, kill)
        with pytest.raises(Killed):
            world.roll_back()
    world.roll_back()  # the same command again
    world.roll_back(leaving=made[2].id)
    assert world.live() == made[1].id
    assert world.moves()[3:] == [("rolled_back", made[1].id)]
    world.agrees()


def test_history_lists_every_row(world: World) -> None:
    made = world.release("one")
    world.promote(made)
    assert [e.action for e in manage.history(world.settings, MARKET)] == ["registered", "promoted"]
    assert store_of(world.settings).open(made.bundle.ref).digest == made.bundle.digest
