"""Routing documents are a view of the ledger; assignment is stable, monotone and published."""

from __future__ import annotations

import ast
import json
import sqlite3
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from csrm_tasks.errors import RefusedError
from csrm_tasks.release import assignment, away, interleaving, ledger, routing
from csrm_tasks.sections import Rollout, Step
from csrm_tasks.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
VECTORS = json.loads((ROOT / "docs/routing-vectors.json").read_text())


@pytest.mark.parametrize(("seed", "session", "bucket"), VECTORS["buckets"])
def test_buckets_are_those_that_other_languages_must_get(
    seed: str, session: str, bucket: int
) -> None:
    assert assignment.bucket(session, seed) == bucket


@pytest.mark.parametrize(("session", "arm"), VECTORS["arms"])
def test_arms_are_those_that_other_languages_must_get(session: str, arm: str) -> None:
    document = VECTORS["document"]
    assert assignment.arm(session, document) == arm
    assert assignment.assign(session, document) == document[arm]


@pytest.mark.parametrize(("session", "arm"), VECTORS["interleaving"]["arms"])
def test_interleaved_sessions_are_those_that_other_languages_must_get(
    session: str, arm: str
) -> None:
    document = VECTORS["interleaving"]["document"]
    assert assignment.arm(session, document) == arm
    serves = document["stable" if arm == "interleaved" else arm]
    assert assignment.assign(session, document) == serves


@pytest.mark.parametrize("vector", VECTORS["interleaving"]["lists"])
def test_lists_are_those_that_other_languages_must_get(vector: dict[str, Any]) -> None:
    seed = VECTORS["interleaving"]["document"]["seed"]
    flips = interleaving.coins(seed, vector["session"], vector["query"])
    found = interleaving.draft(vector["stable"], vector["next"], flips)
    assert [list(pair) for pair in found.items()] == vector["list"]


def test_a_step_that_interleaves_is_in_the_document_and_no_other_is(settings: Settings) -> None:
    promote(settings, "r1")
    steps = (Step(weight=0), Step(weight=0, interleave=20), Step(weight=5))
    plan = Rollout(steps=steps).model_dump_json()
    made = {"bundle": "b/r2", "embeddings": "e/r2", "plan": plan}
    ledger.append(settings, "m", "started", "r2", actor="t", reason="", payload=made)
    seen = [routing.publish(settings, "m")]
    for step in ("1", "2"):
        payload = {"step": step, "evidence": ""}
        ledger.append(settings, "m", "advanced", "r2", actor="t", reason="", payload=payload)
        seen.append(routing.publish(settings, "m"))
    found = [(d["version"], d["shadow"], d["weights"]) for d in seen if d is not None]
    assert found == [
        (2, True, {"stable": 100, "next": 0, "holdout": 0}),
        (3, False, {"stable": 80, "next": 0, "holdout": 0, "interleaved": 20}),
        (2, False, {"stable": 95, "next": 5, "holdout": 0}),
    ]
    ledger.append(settings, "m", "aborted", "r2", actor="t", reason="", payload={})
    after = routing.publish(settings, "m")
    assert after is not None and (after["version"], after["next"]) == (2, None)


def test_interleaved_sessions_meet_the_new_release_alone_last() -> None:
    sessions = [f"session-{i}" for i in range(5_000)]
    held = doc(20) | {"weights": {"stable": 50, "next": 20, "holdout": 0, "interleaved": 30}}
    mixed = {s for s in sessions if assignment.arm(s, held) == "interleaved"}
    assert abs(len(mixed) / 5_000 - 0.3) < 0.03
    assert not mixed & {s for s in sessions if assignment.arm(s, doc(70)) == "next"}


def doc(share: int, holdout: int = 0) -> dict[str, object]:
    weights = {"stable": 100 - share - holdout, "next": share, "holdout": holdout}
    return {
        "stable": "old", "next": "new", "holdout": "older", "weights": weights, "seed": "demo",
    }  # fmt: skip


def test_who_is_held_out_has_never_met_the_release_before_it_was_launched() -> None:
    sessions = [f"session-{i}" for i in range(5_000)]
    met = {s for s in sessions if assignment.arm(s, doc(80)) == "next"}
    held = {s for s in sessions if assignment.arm(s, doc(0, holdout=20)) == "holdout"}
    assert 0.17 < len(held) / len(sessions) < 0.23
    assert not met & held


def test_shares_are_kept_and_raising_one_moves_nobody_back() -> None:
    sessions = [f"session-{i}" for i in range(20_000)]
    before: set[str] = set()
    for share in (0, 1, 10, 50, 100):
        chosen = {s for s in sessions if assignment.assign(s, doc(share)) == "new"}
        assert abs(len(chosen) / len(sessions) - share / 100) < 0.01
        assert before <= chosen
        before = chosen


def test_without_a_next_release_everybody_gets_the_stable_one() -> None:
    alone = {**doc(0), "next": None}
    assert {assignment.assign(str(i), alone) for i in range(100)} == {"old"}


@pytest.mark.parametrize("module", [assignment, interleaving])
def test_assignment_needs_only_the_standard_library(module: ModuleType) -> None:
    tree = ast.parse(Path(module.__file__).read_text())
    found = [n for n in ast.walk(tree) if isinstance(n, ast.Import | ast.ImportFrom)]
    names = {n.module if isinstance(n, ast.ImportFrom) else n.names[0].name for n in found}
    assert {str(name).split(".")[0] for name in names} <= {*sys.stdlib_module_names}


def promote(settings: Settings, release: str) -> None:
    payload = {"bundle": f"b/{release}", "embeddings": f"e/{release}"}
    ledger.append(settings, "m", "promoted", release, actor="t", reason="", payload=payload)


def test_the_document_follows_the_ledger(settings: Settings) -> None:
    assert routing.publish(settings, "m") is None
    assert routing.read(settings, "m") is None
    promote(settings, "r1")
    promote(settings, "r2")
    found = routing.publish(settings, "m")
    assert found == routing.read(settings, "m")
    assert found is not None
    assert (found["stable"], found["ledger_seq"]) == ("r2", 2)
    assert found["predecessors"] == ["r1"]  # kept loadable
    assert found["bundles"] == {"r1": "b/r1", "r2": "b/r2"}
    assert found["embeddings"] == {"r1": "e/r1", "r2": "e/r2"}
    assert assignment.assign("anybody", found) == "r2"


def test_publishing_again_leaves_the_bytes_alone(settings: Settings) -> None:
    promote(settings, "r1")
    routing.publish(settings, "m")
    path = Path(settings.routing) / "m.json"
    before = path.stat()
    routing.publish(settings, "m")
    assert path.stat().st_mtime_ns == before.st_mtime_ns


def test_a_slow_publisher_never_undoes_a_newer_document(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    promote(settings, "r1")
    routing.publish(settings, "m")
    promote(settings, "r2")
    true, reads = ledger.verified, iter([1])

    def slow(settings: Settings, market: str) -> list[ledger.Entry]:
        old = true(settings, market)
        if next(reads, None):  # while the slow one looks at it, r3 is promoted and published
            promote(settings, "r3")
            routing.publish(settings, market)
        return old

    monkeypatch.setattr(ledger, "verified", slow)
    found = routing.publish(settings, "m")
    assert found is not None and found["stable"] == "r3"
    again = routing.read(settings, "m")
    assert again is not None and again["stable"] == "r3"


@pytest.mark.parametrize("kept", [0, 1, 2, 3])
def test_a_ledger_that_is_older_than_the_document_says_so_and_publishes_nothing(
    settings: Settings, kept: int
) -> None:
    """A backup of the database was brought back; registrations since make its rows no newer."""
    backup = settings.home / "backup.db"
    ledger.history(settings, "m")  # the schema is there
    for n in range(4):
        if n == kept:
            with sqlite3.connect(settings.home / "csrm.db") as db, sqlite3.connect(backup) as to:
                db.backup(to)
        promote(settings, f"r{n + 1}")
    routing.publish(settings, "m")
    restored = replace(settings, db_url=f"sqlite:///{backup}")
    path = Path(settings.routing) / "m.json"
    before = path.read_bytes()
    for registered in range(5 - kept):
        rows = ledger.history(restored, "m")
        end = f"ends with row {len(rows)} of {rows[-1].at}" if rows else "is empty"
        with pytest.raises(RefusedError) as e:
            routing.publish(restored, "m")
        said = str(e.value)
        assert "row 4 of the ledger, which this ledger does not have" in said and end in said
        assert f"move {path} away" in said and "csrm release reconcile --market m" in said
        assert path.read_bytes() == before
        assert "(row 4 of the ledger); this ledger is older" in away.served(restored, "m")
        release = f"n{registered}"
        ledger.append(restored, "m", "registered", release, actor="t", reason="", payload={})
    path.unlink()  # what the line says
    found = routing.publish(restored, "m")
    assert (found and found["stable"]) == (f"r{kept}" if kept else None)


def test_a_document_that_nobody_could_follow_is_refused() -> None:
    for weights, following in (
        ({"stable": 99, "next": 0, "holdout": 0}, "r"),
        ({"stable": 90, "next": 10, "holdout": 0}, None),
        ({"stable": 90, "next": 0, "holdout": 10}, "r"),
        ({"stable": 110, "next": -10, "holdout": 0}, "r"),
    ):
        bad = {"market": "m", "next": following, "holdout": None, "weights": weights}
        with pytest.raises(RefusedError):
            routing.check(bad)
