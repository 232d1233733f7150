"""Releases, the rollout under way and the gate's verdict, as the ledger and its evidence say."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from csrm_tasks.artifacts import ArtifactStore
from csrm_tasks.release import approval, ledger, rollout, verdicts
from csrm_tasks.release.ledger import Entry

SHOWN = 20  # ledger rows


@dataclass(frozen=True)
class Release:
    """One release and the row that made it what it is here."""

    id: str
    row: Entry
    word: str = ""  # what was last decided of one that waits
    report: bool = False  # its gate wrote a report

    @property
    def short(self) -> str:
        """The end of its id, which tells it from others of the market."""
        return self.id.rsplit("-", 1)[-1]


@dataclass(frozen=True)
class Releases:
    """Who is served, who may be next, and where a rollback leads."""

    live: Release | None
    next: Release | None  # rolled out now, or the newest that passed and waits
    waiting: Release | None  # behind what is rolled out
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
    checks: tuple[Check, ...]  # of the newest look

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
    under_way = state is not None and not state.launched
    waits = waiting(entries)
    following = state.release if state is not None and under_way else None

    def of(release: str) -> Release:
        return Release(release, rows[release], report=has_report(store, entries, release))

    candidate = None
    if waits is not None:
        word = approval.decided(entries, waits.release_id, waits.payload["verdict"]).word
        report = has_report(store, entries, waits.release_id)
        candidate = Release(waits.release_id, waits, word, report)
    return Releases(
        of(lives[-1]) if lives else None,
        of(following) if following else candidate,
        candidate if following else None,
        of(lives[-2]) if len(lives) > 1 else None,
    )


def waiting(entries: Sequence[Entry]) -> Entry | None:
    """Return the registration of the newest release that passed the gate and never began."""
    rows = rollout.passed(entries)
    return rows[0] if rows and rollout.used(entries, rows[0].release_id) is None else None


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
    return RolloutNow(state, looks, _evidence(store, looks[0].evidence) if looks else ())


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
    manifest = store.manifest(gate) if gate else None
    return manifest is not None and any(f["path"] == REPORT for f in manifest["files"])


REPORT = "report.html"


def gate_of(entries: Sequence[Entry], release: str) -> str:
    """Return the newest gate artifact of a release, or ""."""
    rows = [e for e in entries if (e.action, e.release_id) == ("registered", release)]
    return rows[-1].payload.get("gate", "") if rows else ""


def metrics(store: ArtifactStore, evaluation: str) -> dict[str, Any]:
    """Return the figures of an evaluation."""
    found: dict[str, Any] = json.loads(store.read(evaluation, "metrics.json"))
    return found
