"""What came in during the last nights: rows, quarantine, and how old the newest day is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime, timedelta

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from csrm_tasks import clocks
from csrm_tasks.settings import Settings
from csrm_tasks.store import open_store, reading
from csrm_tasks.store.tables import DAYS, FILES, QUARANTINE

NIGHTS = 14


@dataclass(frozen=True)
class Night:
    """One day of the market."""

    day: str
    files: int  # that count
    rows_in: int
    quarantined: int
    state: str  # published, changed since, not published, nothing delivered

    @property
    def share(self) -> float:
        """Share of its rows that are in quarantine."""
        return self.quarantined / self.rows_in if self.rows_in else 0.0


@dataclass(frozen=True)
class Nights:
    """The nights, newest first, why rows were set aside in them, and the newest published day."""

    nights: tuple[Night, ...]
    reasons: Mapping[str, int]  # most frequent first
    newest: str | None
    age: int | None  # days from the newest published day to yesterday by the market's clocks


def nights(settings: Settings, market: str, zone: str, now: datetime) -> Nights:
    """Read the last :data:`NIGHTS` days up to yesterday by the market's clocks.

    A market that nothing was delivered to for longer shows those up to its newest day.
    """
    yesterday = clocks.day_of(now, zone) - timedelta(days=1)
    with reading(open_store(settings.db_url)) as connection:
        newest = _newest(connection, market)
        last = date.fromisoformat(newest) if newest else yesterday
        if (yesterday - last).days < NIGHTS:
            last = max(last, yesterday)
        days = [str(last - timedelta(days=n)) for n in range(NIGHTS)]
        found = _stored(connection, market, days)
        reasons = _reasons(connection, market, days)
    listed = tuple(found.get(day) or Night(day, 0, 0, 0, "nothing delivered") for day in days)
    age = max((yesterday - date.fromisoformat(newest)).days, 0) if newest else None
    return Nights(listed, reasons, newest, age)


def _newest(connection: Connection, market: str) -> str | None:
    statement = sa.select(sa.func.max(DAYS.c.day)).where(
        DAYS.c.market == market, DAYS.c.digest != ""
    )
    found: str | None = connection.scalar(statement)
    return found


def _stored(connection: Connection, market: str, days: list[str]) -> dict[str, Night]:
    f, d = FILES.c, DAYS.c
    counts = (
        sa.select(f.day, sa.func.count(), sa.func.sum(f.rows_in), sa.func.sum(f.quarantined))
        .where(f.market == market, f.day.in_(days), f.live)
        .group_by(f.day)
    )
    about = sa.select(d.day, d.digest, d.stale).where(d.market == market, d.day.in_(days))
    states = {row.day: _state(row.digest, row.stale) for row in connection.execute(about)}
    return {
        day: Night(day, int(n), int(rows), int(aside), states.get(day, "not published"))
        for day, n, rows, aside in connection.execute(counts)
    }


def _state(digest: str, stale: int) -> str:
    if not digest:
        return "not published"
    return "changed since" if stale else "published"


def _reasons(connection: Connection, market: str, days: list[str]) -> dict[str, int]:
    q, f = QUARANTINE.c, FILES.c
    count = sa.func.count()
    statement = (
        sa.select(q.reason, count)
        .join(FILES, q.file_id == f.id)
        .where(f.market == market, f.day.in_(days), f.live)
        .group_by(q.reason)
        .order_by(count.desc(), q.reason)
    )
    return {reason: int(n) for reason, n in connection.execute(statement)}
