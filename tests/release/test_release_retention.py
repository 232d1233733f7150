"""Retention: nothing that the ledger's window, the live releases or recent work need is lost."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from csrm_tasks.cli.main import main
from csrm_tasks.errors import ArtifactError
from csrm_tasks.release import ledger, retention, rollout, rollout_moves, snapshots
from csrm_tasks.release.bundle.manifest import BEHIND
from csrm_tasks.release.ledger import GENESIS, Entry
from csrm_tasks.release.snapshots import Snapshot
from csrm_tasks.sections import Retention, Rollout
from csrm_tasks.settings import Settings
from tests.release_fixtures import MARKET, market, publish, store_of
from tests.release_world import World

NOW = datetime(2026, 6, 1, tzinfo=UTC)
POLICY = Retention(recent_days=30, rollback_days=90)
CONFIG = market().model_copy(update={"retention": POLICY})
ACTIONS = ("promoted", "started", "advanced", "aborted", "rolled_back", "registered", "judged")


def entry(seq: int, action: str, release: int, days: float, previous: int | None) -> Entry:
    payload = {
        "bundle": f"m/bundle/{release}", "verdict": "x", "outcome": "PASS", "step": "1",
        "plan": Rollout().model_dump_json(),
    }  # fmt: skip
    at = (NOW - timedelta(days=days)).isoformat()
    before = None if previous is None else f"r{previous}"
    return Entry("m", seq, at, "a", action, f"r{release}", before, "", payload, GENESIS, "")


def manifests(releases: int, ages: list[float]) -> dict[str, dict[str, Any]]:
    """Bundles of an LLM that names the one it was chosen from, which was made from data; and of
    titles and towers that a retraining takes up.
    """
    found: dict[str, dict[str, Any]] = {}
    for n in range(releases):
        links = {
            "bundle": ({k: f"m/{k}/{n}" for k in ("llm", "rqa", "export")}, {}),
            "rqa": ({"bm25": f"m/bm25/{n}"}, {}),
            "bm25": ({}, {}),
            "export": ({"towers": f"m/towers/{n}"}, {}),
            "towers": ({"scored": f"m/pairs/{n}"}, {}),
            "llm": ({"pairs": f"m/pairs/{n}"}, {"chosen": {"ref": f"m/chosen/{n}"}}),
            "chosen": ({"pairs": f"m/pairs/{n}"}, {}),
            "pairs": ({}, {}),
        }
        created = (NOW - timedelta(days=ages[n])).timestamp()
        for kind, (inputs, facts) in links.items():
            found[f"m/{kind}/{n}"] = {"inputs": inputs, "facts": facts, "created_at": created}
    return found


def loadable(release: int) -> set[str]:
    needs = ("bundle", "llm", "chosen", "rqa", "export", *BEHIND)
    return {f"m/{kind}/{release}" for kind in needs}


rows = st.lists(
    st.tuples(st.sampled_from(ACTIONS), st.integers(0, 5), st.floats(0, 400)), max_size=12
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # cores may be busy
@given(rows, st.lists(st.floats(0, 400), min_size=6, max_size=6))
def test_what_a_rollback_needs_is_never_collected(
    said: list[tuple[str, int, float]], ages: list[float]
) -> None:
    ordered = sorted(said, key=lambda r: -r[2])
    entries: list[Entry] = []
    for n, (action, release, days) in enumerate(ordered, start=1):
        now_live = ledger.live(entries)
        previous = None if now_live is None else int(now_live[1:])
        entries.append(entry(n, action, release, days, previous))
    known = manifests(6, ages)
    keep = set(retention.needed(known, entries, POLICY, NOW, rollout.next_candidate(entries)))
    for row in entries:
        if datetime.fromisoformat(row.at) >= NOW - timedelta(days=90):
            assert loadable(int(row.release_id[1:])) <= keep, row
    for release in ledger.live_stack(entries)[-3:]:
        assert loadable(int(release[1:])) <= keep
    for ref, manifest in known.items():
        if manifest["created_at"] >= (NOW - timedelta(days=30)).timestamp():
            assert ref in keep
    named = {r.release_id[1:] for r in entries}
    horizon = (NOW - timedelta(days=30)).timestamp()
    unnamed = {r for r in known if r.split("/")[2] not in named}
    assert not {r for r in unnamed if known[r]["created_at"] < horizon} & keep


def test_three_releases_stay_loadable_whatever_their_age_and_training_data_goes() -> None:
    entries = [entry(n + 1, "promoted", n, 400 - n, n - 1 if n else None) for n in range(5)]
    keep = set(retention.needed(manifests(5, [399.0] * 5), entries, POLICY, NOW, None))
    assert keep == loadable(2) | loadable(3) | loadable(4)


@pytest.fixture
def world(settings: Settings) -> World:
    world = World(settings)
    for key in ("one", "two", "three", "four", "five"):
        world.promote(world.release(key))
    return world


def old(plan_days: float = 400) -> datetime:
    """A year on: everything that was made in this test is old."""
    return datetime.now(UTC) + timedelta(days=plan_days)


def test_collecting_is_planned_first_and_leaves_a_way_back(world: World) -> None:
    stray = publish(world.settings, "pairs", "x", lambda f: (f / "note").write_text("x" * 10))
    found = retention.plan(world.settings, CONFIG, old())
    assert found.delete[stray.ref] == 10
    assert store_of(world.settings).manifest(stray.ref) is not None  # planning deletes nothing
    kept = {r for r in found.keep if "/bundle/" in r}
    assert kept == {f"{MARKET}/bundle/{k}" for k in ("three", "four", "five")}
    retention.prune(world.settings, found.delete)
    with pytest.raises(ArtifactError, match="does not exist"):
        store_of(world.settings).open(stray.ref)
    for _ in range(2):
        world.roll_back(leaving=world.live())
    assert [m[0] for m in world.moves()[-2:]] == ["rolled_back"] * 2
    world.agrees()


def test_vectors_that_servers_may_take_up_stay_with_those_before_them(world: World) -> None:
    def refreshed(key: str) -> Snapshot:
        ref = publish(world.settings, "refresh", key, lambda f: (f / "v").write_text(key)).ref
        return Snapshot(
            ref=ref, day="2026-01-01", products=1, encoded=1, coverage=1.0, stale=1.0
        )  # fmt: skip

    made = [refreshed(key) for key in ("gone", "before", "now")]
    for one in made:
        snapshots.publish(world.settings, MARKET, {"tiny-x": one})
    found = retention.plan(world.settings, CONFIG, old())
    assert made[0].ref in found.delete
    assert {one.ref for one in made[1:]} <= set(found.keep)


def test_the_window_keeps_everything_that_the_ledger_names(world: World) -> None:
    found = retention.plan(world.settings, CONFIG, old(60))
    assert {r for r in found.keep if "/bundle/" in r} == {
        f"{MARKET}/bundle/{k}" for k in ("one", "two", "three", "four", "five")
    }


@pytest.mark.parametrize(("policy", "kept"), [("auto", True), ("manual", False)])
def test_what_waits_by_the_markets_own_policy_is_kept(
    world: World, policy: str, kept: bool
) -> None:
    """Asked in Airflow without an answer, then the market asked nobody any more, or still does."""
    made = world.release("six")
    manual = market(approval="manual")
    rollout_moves.record_answer(
        world.settings, manual, world.api, made.id, approved=False, actor="", run="run1"
    )
    config = CONFIG.model_copy(update={"release": market(approval=policy).release})
    found = retention.plan(world.settings, config, old())
    assert (made.bundle.ref in found.keep) is kept
    assert (made.bundle.ref in found.delete) is not kept


def test_the_command_deletes_only_when_told(
    world: World, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = world.settings.home / "markets"
    folder.mkdir()
    policy = market().model_copy(update={"retention": Retention(recent_days=1, rollback_days=1)})
    text = yaml.safe_dump(policy.model_dump(mode="json", exclude_defaults=True))
    (folder / f"{MARKET}.yaml").write_text(text)
    monkeypatch.setenv("CSRM_HOME", str(world.settings.home))
    monkeypatch.setenv("CSRM_MARKETS", str(folder))
    stray = publish(world.settings, "pairs", "x", lambda f: (f / "note").write_text("x" * 10))
    monkeypatch.setattr(retention, "needed", lambda found, *_: set(found) - {stray.ref})
    for flags, there in ((["--market", MARKET], True), (["--market", MARKET, "--apply"], False)):
        assert main(["release", "prune", *flags]) == 0
        assert "1 artifacts, 10 bytes" in capsys.readouterr().out
        assert (store_of(world.settings).manifest(stray.ref) is not None) is there


def test_a_reference_is_found_wherever_it_stands() -> None:
    document = {"a": ["m/x/1", {"b": "m/x/2"}], "c": 3, "d": None, "e": "m/x/3#fact"}
    known = {f"m/x/{n}": {} for n in range(4)}
    assert retention._named(known, [document]) == {"m/x/1", "m/x/2"}


def test_the_llm_that_passed_last_stays_with_a_market_that_releases_nothing() -> None:
    found: dict[str, dict[str, Any]] = {}
    for n, (verdict, days) in enumerate([("PASS", 300), ("PASS", 200), ("FAIL", 100)]):
        at = (NOW - timedelta(days=days)).timestamp()
        for kind, inputs, facts in (
            ("gate_tasks", {"evaluation": f"m/evaluate_tasks/{n}"},
             {"verdict": verdict, "llm": f"m/train_llm/{n}"}),
            ("evaluate_tasks", {"llm": f"m/train_llm/{n}", "snapshot": f"m/snapshot/{n}"}, {}),
            ("train_llm", {"snapshot": f"m/snapshot/{n}"}, {}), ("snapshot", {}, {}),
        ):  # fmt: skip
            found[f"m/{kind}/{n}"] = {"inputs": inputs, "facts": facts, "created_at": at}
    kept = retention._last_passed(found)
    assert kept == {f"m/{k}/1" for k in ("gate_tasks", "evaluate_tasks", "train_llm", "snapshot")}
    assert retention._last_passed({"m/bundle/0": {}}) == set()


def test_a_plan_keeps_it(world: World) -> None:
    llm = publish(world.settings, "train_llm", "l", lambda f: (f / "x").write_text("x"))
    facts = {"verdict": "PASS", "llm": llm.ref}
    gate = publish(world.settings, "gate_tasks", "g", lambda f: (f / "x").write_text("x"), facts)
    late = datetime.now(UTC) + timedelta(days=1000)
    plan = retention.plan(world.settings, CONFIG, late)
    assert {plan.keep[ref] for ref in (llm.ref, gate.ref)} == {"the tasks' last PASS"}
