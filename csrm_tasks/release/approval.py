"""What was last decided of a release: one function that every door asks.

The doors: Airflow's question (``dags/csrm_approval.py``), ``csrm release approve`` and ``reject``,
the guard of promotion and of a rollout's start, and the graph's own short cut. A decision is about
one verdict: a release that was judged anew is decided anew.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from csrm_tasks.release import ledger
from csrm_tasks.release.ledger import Entry
from csrm_tasks.settings import Settings

Word = Literal["approved", "rejected", "timed out", "nothing"]
TIMEOUT = "timeout"  # the actor of a row that says that nobody answered


@dataclass(frozen=True)
class Decision:
    """What was last decided, and the ledger row that says so (None: nothing was)."""

    word: Word
    row: Entry | None = None

    def allows(self, policy: str) -> bool:
        """Whether the release may go on. A person's no holds whatever the policy."""
        return self.word == "approved" or (policy == "auto" and self.word != "rejected")

    def asks(self, policy: str) -> bool:
        """Whether a person is to be asked: nobody has been yet, and the policy wants it."""
        return policy != "auto" and self.word == "nothing"


def decided(entries: Sequence[Entry], release_id: str, verdict: str) -> Decision:
    """Return what was last decided of a release under a verdict (its digest).

    A person's last word counts. An answer that is recorded late (its task ran again) is no newer
    than when it was given. A timeout counts only where no person has said anything.
    """
    said = [
        e
        for e in entries
        if e.action in ("approved", "rejected")
        and (e.release_id, e.payload.get("verdict")) == (release_id, verdict)
    ]
    last: Entry | None = None
    for row in said:
        late = last is not None and _when(row) < _when(last)
        if row.actor != TIMEOUT and not (row.payload.get("said") and late):
            last = row
    if last is not None:
        return Decision("approved" if last.action == "approved" else "rejected", last)
    return Decision("timed out", said[-1]) if said else Decision("nothing")


def overrules(entries: Sequence[Entry], release_id: str, verdict: str, said: str) -> bool:
    """Whether a person's answer that was given at ``said`` (empty: now) would be the last word."""
    row = decided(entries, release_id, verdict).row
    return not said or row is None or row.actor == TIMEOUT or ledger.moment(said) >= _when(row)


def _when(row: Entry) -> datetime:
    return ledger.moment(row.payload.get("said") or row.at)


def say(
    settings: Settings, market: str, entries: Sequence[Entry], release_id: str, verdict: str, *,
    approved: bool, actor: str, reason: str, check: Callable[[Sequence[Entry]], None],
) -> Entry:  # fmt: skip
    """Record a person's word, whatever was said before; saying the same again is no new row.

    ``entries``: the ledger as the caller has just read it. ``check`` raises where it is too late;
    it sees the rows as they are when this one is written.
    """
    now = decided(entries, release_id, verdict)
    action: ledger.Action = "approved" if approved else "rejected"
    if now.row is not None and now.word == action:
        return now.row
    payload = {"verdict": verdict, "after": now.row.hash if now.row else ""}
    return ledger.append(
        settings, market, action, release_id, actor=actor, reason=reason, payload=payload,
        check=check,
    )  # fmt: skip
