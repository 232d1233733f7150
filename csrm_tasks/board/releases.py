"""Releases, the rollout under way and the gate's verdict, as the ledger and its evidence say."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from csrm_tasks.artifacts import ArtifactStore
from csrm_tasks.board.notices import Notice, part
from csrm_tasks.release import approval, ledger, rollout, verdicts
from csrm_tasks.release.ledger import Entry

REPORT = "report.html"  # of a gate


@dataclass(frozen=True)
class Release:
    """One release and the row that made it what it is here."""

    id: str
    row: Entry
    word: str = ""  # what was last decided of one that waits
    report: bool = False  # its gate wrote a report


@dataclass(frozen=True)
class Releases:
    """Who is served, who may be next, and where a rollback leads."""

    live: Release | None
    next: Release | None  # rolled out now, or the first that waits
    waiting: tuple[Release, ...]  # the others that wait
    previous: Release | None


@dataclass(frozen=True)
class Check:
    """One claim about a release; ``found`` is the difference with its interval, where there is."""

    name: str
    outcome: str
    text: str
    found: tuple[float, float, float] | None = None  # value, lower and upper end


@dataclass(frozen=True)
class Look:
    """One evaluation of a rollout step."""

    day: str
    outcome: str
    reasons: str
    evidence: str  # artifact


@dataclass(frozen=True)
class RolloutNow:
    """The rollout that is under way, or launched with its hold-out open."""

    state: rollout.CurrentRollout
    looks: tuple[Look, ...]  # of this step, newest first
    checks: tuple[Check, ...] | Notice  # of the newest look

    @property
    def where(self) -> str:
        """The step in words."""
        state = self.state
        if state.launched:
            return f"live, {state.plan.holdout} % held out for {state.plan.holdout_days} days"
        if state.passed:
            return "every step has passed; it goes live with the next run"
        share = f"{state.weight} % of sessions" if state.weight else "shadow, nobody is served"
        return f"step {state.step + 1} of {len(state.plan.steps)}: {share}"


@dataclass(frozen=True)
class Verdict:
    """The newest verdict of the gate, and every claim that it rests on."""

    release: str
    outcome: str
    reasons: str
    row: Entry
    champion: str | None
    checks: tuple[Check, ...]


def releases(store: ArtifactStore, entries: Sequence[Entry]) -> Releases:
    """Return the releases that matter now."""
    lives, state = ledger.live_stack(entries), rollout.current_rollout(entries)
    rows = {e.release_id: e for e in entries if e.action in ("promoted", "started")}
    move = ledger.last_live_row(entries)

    def of(row: Entry, word: str = "") -> Release:
        release = row.release_id
        return Release(release, row, word, has_report(store, entries, release))

    following = [of(rows[state.release])] if state is not None and not state.launched else []
    for row in waiting(entries):
        decision = approval.decided(entries, row.release_id, row.payload["verdict"])
        following.append(of(row, decision.word))
    return Releases(
        of(move) if move is not None else None,
        following[0] if following else None,
        tuple(following[1:]),
        of(rows[lives[-2]]) if len(lives) > 1 else None,
    )


def waiting(entries: Sequence[Entry]) -> list[Entry]:
    """Return the registrations of releases that wait for their rollout, or for a decision on it.

    The one that may be rolled out next comes first; another is the newest that passed the gate and
    never began, where a person rejected it.
    """
    candidate, rows = rollout.next_candidate(entries), rollout.passed(entries)
    found = [candidate] if candidate is not None else []
    newest = rows[0] if rows and rollout.used(entries, rows[0].release_id) is None else None
    return found if newest is None or newest in found else [*found, newest]


def rollout_now(store: ArtifactStore, entries: Sequence[Entry]) -> RolloutNow | None:
    """Return the rollout under way with what its step's evaluations found."""
    state = rollout.current_rollout(entries)
    if state is None:
        return None
    judged = [
        Look(e.payload["day"], e.payload["outcome"], e.reason, e.payload.get("evidence", ""))
        for e in entries
        if e.action == "judged" and e.release_id == state.release and e.seq > state.turn
    ]
    looks = tuple(sorted(judged, key=lambda look: look.day, reverse=True))
    checks: tuple[Check, ...] | Notice = ()
    if looks:
        checks = part("evidence", lambda: _evidence(store, looks[0].evidence))
    return RolloutNow(state, looks, checks)


def verdict(store: ArtifactStore, entries: Sequence[Entry]) -> Verdict | None:
    """Return the newest verdict; raises :class:`RefusedError` where it was changed since."""
    rows = [e for e in entries if e.action == "registered"]
    if not rows:
        return None
    row = rows[-1]
    said = sealed(store, ledger.registration(entries, row.release_id)["gate"])
    checks = tuple(Check(c["name"], c["outcome"], c["reason"]) for c in said.get("checks", ()))
    return Verdict(
        row.release_id, said["outcome"], "; ".join(said["reasons"]), row, said["champion"], checks
    )


def _evidence(store: ArtifactStore, ref: str) -> tuple[Check, ...]:
    checks = sealed(store, ref)["checks"]
    return tuple(
        Check(c["name"], c["outcome"], c["text"], _interval(c.get("found"))) for c in checks
    )


def _interval(found: Mapping[str, Any] | None) -> tuple[float, float, float] | None:
    return None if found is None else (found["value"], found["lo"], found["hi"])


def sealed(store: ArtifactStore, ref: str) -> dict[str, Any]:
    """Return the sealed document of a gate or of an evaluation; nothing else of it is fetched."""
    facts = store.require(ref)["facts"]
    return verdicts.parse(ref, store.read(ref, verdicts.FILE), facts.get("digest"))


def has_report(store: ArtifactStore, entries: Sequence[Entry], release: str) -> bool:
    """Whether the gate that judged a release wrote a report."""
    gate = gate_of(entries, release)
    if not gate:
        return False
    files = part("report", lambda: store.require(gate)["files"])
    return not isinstance(files, Notice) and any(f["path"] == REPORT for f in files)


def gate_of(entries: Sequence[Entry], release: str) -> str:
    """Return the newest gate artifact of a release, or ""."""
    rows = [e for e in entries if (e.action, e.release_id) == ("registered", release)]
    return rows[-1].payload.get("gate", "") if rows else ""


def metrics(store: ArtifactStore, evaluation: str) -> dict[str, Any]:
    """Return the figures of an evaluation."""
    found: dict[str, Any] = json.loads(store.read(evaluation, "metrics.json"))
    return found
