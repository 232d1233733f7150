"""The ledger: what was done to which release, append-only, each row hashing the one before.

It is the truth about which release is live; MLflow aliases and routing documents are views of it.
Rows are only ever inserted, inside one transaction that holds the market's write lock and re-reads
the chain, so two promoters cannot both succeed. Appending is idempotent by what the row says.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Literal

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from csrm_tasks.artifacts import json_digest
from csrm_tasks.errors import RefusedError
from csrm_tasks.settings import Settings
from csrm_tasks.store import open_store, reading, writing
from csrm_tasks.store.models import LedgerEntry

Action = Literal[
    "registered", "approved", "rejected", "promoted", "rolled_back",
    # a rollout's
    "started", "asked", "audited", "judged", "held", "resumed", "advanced", "aborted", "closed",
    "reverted",  # a champion alias that somebody moved by hand in MLflow
]  # fmt: skip
LIVE_ACTIONS = ("promoted", "rolled_back")  # the actions that change what is live
SERVING_ACTIONS = (
    *LIVE_ACTIONS,
    "started",
    "advanced",
    "aborted",
    "closed",
)  # … and who is served what
# A release does this once, or once per value of these (absent is a value); whatever else it says.
ONCE: Mapping[str, tuple[str, ...]] = {
    "promoted": ("again",), "started": (), "aborted": (), "closed": (),
    "advanced": ("step",), "held": ("step", "after"), "judged": ("step", "day"),
    "asked": ("day",), "audited": ("by", "audit", "grades"),
}  # fmt: skip
GENESIS = "0" * 64


@dataclass(frozen=True)
class Entry:
    """One row. For a rollback ``release_id`` is what became live and ``previous`` what was left."""

    market: str
    seq: int  # 1, 2, … per market
    at: str  # ISO 8601, UTC
    actor: str
    action: str
    release_id: str
    previous: str | None  # the live release when the row was written
    reason: str
    payload: Mapping[str, str]  # bundle ref and digest, verdict digest, …
    prev_hash: str
    hash: str

    def expected_hash(self) -> str:
        """Return the digest of every field but ``hash``."""
        return json_digest({k: v for k, v in asdict(self).items() if k != "hash"})


@dataclass(frozen=True)
class Precondition:
    """What must hold for a row to be appended."""

    live: str | None  # this release is live; None: nothing is
    turn: int | None = None  # the newest of SERVING_ACTIONS is this row; None: not asked


def history(settings: Settings, market: str) -> list[Entry]:
    """Return the market's rows, oldest first."""
    with reading(open_store(settings.db_url)) as connection:
        return _entries(connection, market)


def verified(settings: Settings, market: str) -> list[Entry]:
    """Return the market's rows after checking the chain; raises :class:`RefusedError`."""
    entries = history(settings, market)
    verify(entries)
    return entries


def including(settings: Settings, entries: list[Entry], row: Entry) -> list[Entry]:
    """Return the ledger up to a row that was found in ``entries`` or appended after them.

    It is read again only where others have written in between.
    """
    if row.seq > len(entries) + 1:
        return verified(settings, row.market)
    return [*entries, row] if row.seq > len(entries) else entries


def verify(entries: Sequence[Entry]) -> None:
    """Check sequence, links and hashes; raises :class:`RefusedError` naming the first bad row."""
    last = GENESIS
    for number, entry in enumerate(entries, start=1):
        where = f"the ledger of {entry.market} does not verify: row {number}"
        if entry.seq != number:
            raise RefusedError(f"{where} is missing (found {entry.seq}); restore it from a backup")
        if entry.prev_hash != last or entry.hash != entry.expected_hash():
            raise RefusedError(f"{where} was changed after it was written; restore it")
        last = entry.hash


def live_stack(entries: Sequence[Entry]) -> list[str]:
    """Return the releases that led to the live one, which is last; a rollback takes one off."""
    stack: list[str] = []
    for entry in entries:
        if entry.action == "promoted":
            stack.append(entry.release_id)
        elif entry.action == "rolled_back":
            while stack and stack[-1] != entry.release_id:
                stack.pop()
    return stack


def taken_back(entries: Sequence[Entry], release_id: str) -> Entry | None:
    """Return the row by which a release was rolled back or given up, if it still is."""
    gone: dict[str, Entry] = {}
    for number, entry in enumerate(entries):
        if entry.action == "promoted":
            gone.pop(entry.release_id, None)
        elif entry.action == "aborted":
            gone[entry.release_id] = entry
        elif entry.action == "rolled_back":
            stayed = live_stack(entries[: number + 1])
            gone |= {r: entry for r in live_stack(entries[:number]) if r not in stayed}
    return gone.get(release_id)


def left_by(row: Entry) -> str:
    """Return the release that a rollback or the end of a rollout left."""
    return row.release_id if row.action == "aborted" else str(row.previous)


def live(entries: Sequence[Entry], at: str | None = None) -> str | None:
    """Return the release that is live, or was at ``at`` (ISO 8601; a naive time is UTC)."""
    limit = None if at is None else moment(at)
    stack = live_stack([e for e in entries if limit is None or moment(e.at) <= limit])
    return stack[-1] if stack else None


def find(entries: Sequence[Entry], action: str, release_id: str, **payload: str) -> Entry | None:
    """Return the first row that says ``action`` of ``release_id`` with these payload values."""
    same = (e for e in entries if (e.action, e.release_id) == (action, release_id))
    return next((e for e in same if payload.items() <= e.payload.items()), None)


def last_live_row(entries: Sequence[Entry]) -> Entry | None:
    """Return the row that made the live release live."""
    return next((e for e in reversed(entries) if e.action in LIVE_ACTIONS), None)


def last_serving_row(entries: Sequence[Entry]) -> Entry | None:
    """Return the newest row that changed who is served what."""
    return next((e for e in reversed(entries) if e.action in SERVING_ACTIONS), None)


def require_head(entries: Sequence[Entry], seen: str) -> None:
    """Raise :class:`RefusedError` where the ledger has grown since the row with the hash ``seen``.

    Whoever decides by a page decides about what it showed.
    """
    head = entries[-1] if entries else None
    if head is not None and head.hash != seen:
        raise RefusedError(
            f"nothing was done: the page is out of date, {head.release_id} was {head.action} by "
            f"{head.actor} since (row {head.seq}); look again and decide anew"
        )


def registration(entries: Sequence[Entry], release_id: str) -> Mapping[str, str]:
    """Return what the newest registration of a release says; :class:`RefusedError` where none."""
    rows = [e for e in entries if (e.action, e.release_id) == ("registered", release_id)]
    if not rows or "gate" not in rows[-1].payload:
        raise RefusedError(f"{release_id} is not registered with its gate; run the register step")
    return rows[-1].payload


def append(
    settings: Settings,
    market: str,
    action: Action,
    release_id: str,
    *,
    actor: str,
    reason: str,
    payload: Mapping[str, str],
    expected: Precondition | None = None,
    check: Callable[[Sequence[Entry]], None] | None = None,
) -> Entry:
    """Append one row, or return the row that already says the same.

    ``check`` raises where the rows so far forbid this one. Raises :class:`RefusedError` when the
    chain does not verify or ``expected`` does not hold.
    """
    with writing(open_store(settings.db_url), market) as connection:
        entries = _entries(connection, market)
        verify(entries)
        now_live = live(entries)
        known = _already(entries, action, release_id, payload)
        if known is not None:
            return known
        if check is not None:
            check(entries)
        if expected is not None:
            _require(expected, entries, market, f"{action} {release_id}")
        head = entries[-1].hash if entries else GENESIS
        at = datetime.now(UTC).isoformat()
        draft = Entry(
            market, len(entries) + 1, at, actor, action, release_id, now_live, reason,
            dict(payload), head, "",
        )  # fmt: skip
        row = asdict(draft) | {"hash": draft.expected_hash()}
        connection.execute(sa.insert(LedgerEntry).values(**row))
        return Entry(**row)


def _require(expected: Precondition, entries: Sequence[Entry], market: str, what: str) -> None:
    now_live, turn = live(entries), last_serving_row(entries)
    if expected.live != now_live:
        raise RefusedError(
            f"{what}: expected {expected.live} to be live in {market}, but {now_live} is; "
            "stale decision, re-evaluate"
        )
    if expected.turn is not None and (turn is None or turn.seq != expected.turn):
        done = f"{turn.release_id} was {turn.action} by row {turn.seq}" if turn else "nothing is"
        raise RefusedError(
            f"{what}: decided after row {expected.turn}, but since then {done}; re-evaluate"
        )


def _already(
    entries: Sequence[Entry], action: Action, release_id: str, payload: Mapping[str, str]
) -> Entry | None:
    """Find the row that says the same.

    A release is promoted once, whatever was known then: one that was rolled back stays back, unless
    a person makes it live ``again`` (once per rollback). It is registered once per verdict, and can
    be rolled back *to* more than once.
    """
    if action != "rolled_back":
        keys = ONCE.get(action, tuple(payload))
        same = [e for e in entries if (e.action, e.release_id) == (action, release_id)]
        return next(
            (e for e in same if all(e.payload.get(k) == payload.get(k) for k in keys)), None
        )
    move = last_live_row(entries)
    again = move is not None and (move.action, move.release_id) == (action, release_id)
    return move if again else None


def moment(at: str) -> datetime:
    """Return an ISO 8601 time, a naive one as UTC; raises :class:`RefusedError` for other text."""
    try:
        time = datetime.fromisoformat(at)
    except ValueError as e:
        raise RefusedError(f"{at!r} is not a time; write it as 2026-01-31T12:00:00+00:00") from e
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def _entries(connection: Connection, market: str) -> list[Entry]:
    table = LedgerEntry.__table__
    query = sa.select(table).where(table.c.market == market).order_by(table.c.seq)
    return [Entry(**row) for row in connection.execute(query).mappings()]
