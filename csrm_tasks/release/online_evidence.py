"""Reading the evidence of a rollout: sessions from the store, serving figures, audits.

Everything from the rollout's first day up to one published day. What is delivered later is seen by
a later look; a session delivered on two days is one session.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import date, datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from csrm_tasks.blobs import BlobStore, open_blobs
from csrm_tasks.errors import DataError
from csrm_tasks.release.ledger import Entry
from csrm_tasks.release.online import Audit, Evidence
from csrm_tasks.release.rollout import Open
from csrm_tasks.release.sequential import Stratum
from csrm_tasks.settings import Settings
from csrm_tasks.store import open_store, reading
from csrm_tasks.store.tables import SESSIONS

SETTLE = timedelta(minutes=15)  # servers have followed the routing document by then
FIGURES = ("requests", "errors", "p99_ms")


def read(
    settings: Settings, market: str, locale: str, state: Open, entries: Sequence[Entry], day: str
) -> Evidence:
    """Gather what is known of ``state``'s release at the end of ``day``."""
    with reading(open_store(settings.db_url)) as connection:
        sessions = session_strata(connection, market, locale, state, day)
    requests, latency = serving(open_blobs(settings.routing), market, state, day)
    audit, teacher = audits(entries, state, "rater"), audits(entries, state, "teacher")
    return Evidence(sessions, audit, requests, latency, teacher)


def end_of(day: str) -> str:
    """Return when a day (YYYY-MM-DD, UTC) is over, as ISO 8601."""
    return f"{date.fromisoformat(day) + timedelta(days=1)}T00:00:00+00:00"


def days_of(state: Open, day: str) -> list[str]:
    """Return the days from the rollout's first to ``day``."""
    first = date.fromisoformat(state.windows[0].since[:10])
    number = (date.fromisoformat(day) - first).days + 1
    return [str(first + timedelta(days=n)) for n in range(number)]


def session_strata(
    connection: Connection, market: str, locale: str, state: Open, day: str
) -> tuple[Stratum, ...]:
    """Count sessions and conversions of both releases by step and day of first delivery.

    A session belongs to the step in which it began, a quarter of an hour after a change of the
    shares at the earliest, and to the release of its first search that names one.
    """
    found: list[Stratum] = []
    merged = _merged(market, locale, days_of(state, day))
    for window, following in zip(state.windows, [*state.windows[1:], None], strict=True):
        if not window.share:
            continue  # shadow answers nobody
        since = datetime.fromisoformat(window.since) + SETTLE
        until = datetime.fromisoformat(following.since if following else end_of(day))
        statement = _counts(merged, since, until, (state.release, state.control))
        found += _strata(connection.execute(statement).all(), state, window.share)
    return tuple(found)


def _merged(market: str, locale: str, days: Sequence[str]) -> sa.Subquery:
    """One row per session: when it began, its release, and whether it bought on any day."""
    rows = SESSIONS.c
    order = (rows.release == "", rows.first_at, rows.day)
    numbered = (
        sa.select(
            rows.session_id, rows.day, rows.release, rows.first_at,
            sa.cast(rows.converted, sa.Integer).label("bought"),
            sa.func.row_number().over(partition_by=rows.session_id, order_by=order).label("nth"),
        )
        .where(rows.market == market, rows.locale == locale, rows.day.in_(days))
        .subquery()
    )  # fmt: skip
    first = sa.case((numbered.c.nth == 1, numbered.c.release))
    return (
        sa.select(
            sa.func.min(numbered.c.day).label("day"),
            sa.func.max(first).label("release"),
            sa.func.min(numbered.c.first_at).label("began"),
            sa.func.max(numbered.c.bought).label("bought"),
        )
        .group_by(numbered.c.session_id)
        .subquery()
    )


def _counts(
    merged: sa.Subquery, since: datetime, until: datetime, releases: Sequence[str]
) -> sa.Select[Any]:
    s = merged.c
    return (
        sa.select(s.day, s.release, sa.func.count(), sa.func.sum(s.bought))
        .where(s.began >= since, s.began < until, s.release.in_(releases))
        .group_by(s.day, s.release)
        .order_by(s.day)
    )


def _strata(rows: Sequence[Any], state: Open, share: float) -> Iterator[Stratum]:
    by_day: dict[str, dict[str, tuple[int, int]]] = {}
    for day, release, sessions, bought in rows:
        by_day.setdefault(day, {})[release] = int(sessions), int(bought)
    for counts in by_day.values():
        treated, control = (counts.get(r, (0, 0)) for r in (state.release, state.control))
        yield Stratum(*treated, *control, share)


def serving(
    blobs: BlobStore, market: str, state: Open, day: str
) -> tuple[tuple[Stratum, ...], tuple[float, float] | None]:
    """Read what servers reported of both releases: failed requests by day, and their p99.

    Reports are ``{market}/serving/{day}.json`` beside the routing document (docs/ROUTING.md); a day
    without figures of both releases does not count. A p99 is the mean of the days', by requests.
    """
    strata, slow = [], []
    for d in days_of(state, day):
        report = _report(blobs, f"{market}/serving/{d}.json")
        both = [report.get(r) for r in (state.release, state.control)]
        if both[0] is None or both[1] is None:
            continue
        ours, theirs = both[0], both[1]
        counts = [int(x[k]) for x in (ours, theirs) for k in ("requests", "errors")]
        strata.append(Stratum(counts[0], counts[1], counts[2], counts[3], share=0.5))
        slow.append((ours, theirs))
    if not slow:
        return (), None
    return tuple(strata), (_mean_p99([o for o, _ in slow]), _mean_p99([t for _, t in slow]))


def _mean_p99(reports: Sequence[Mapping[str, float]]) -> float:
    total = sum(r["requests"] for r in reports)
    return sum(r["requests"] * r["p99_ms"] for r in reports) / total


def _report(blobs: BlobStore, key: str) -> dict[str, dict[str, float]]:
    raw = blobs.read(key)
    if raw is None:
        return {}
    try:
        found: dict[str, dict[str, float]] = json.loads(raw)
        for release, figures in found.items():
            requests, errors, p99 = (figures[k] for k in FIGURES)
            if not (requests > 0 and 0 <= errors <= requests and p99 >= 0):
                raise ValueError(f"{release}: requests, errors and p99 do not fit together")
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise DataError(
            f"{key}: {' '.join(str(e).split())}; expected an object of release → "
            "requests (above 0), errors, p99_ms (docs/ROUTING.md)"
        ) from e
    return found


def audits(entries: Sequence[Entry], state: Open, by: str) -> Audit | None:
    """Add up the audits of this rollout that are in the ledger; ``by`` rater or teacher.

    Of each audit the newest row counts: raters may have given back more, or something else.
    """
    rows = {
        e.payload["audit"]: e.payload
        for e in entries
        if e.action == "audited" and e.release_id == state.release and e.payload["by"] == by
    }
    names = ("queries", "em_lost", "em_won", "defect_new", "defect_gone")
    return Audit(*(sum(int(p[n]) for p in rows.values()) for n in names)) if rows else None
