"""A rollout's sessions as the store holds them: by release, what they preferred, what was known.

A session is interleaved, or of the release of its first search that names one. Of its shopper is
known what the store holds of the time before the rollout: a session's own release cannot change it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import date, datetime, timedelta
from typing import Any

import numpy as np
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from csrm_tasks.release.online.cuped import Groups
from csrm_tasks.release.online.preference import Preferences
from csrm_tasks.release.online.sequential import Stratum
from csrm_tasks.release.online.span import Span
from csrm_tasks.release.rollout import CurrentRollout
from csrm_tasks.store.tables import INTERLEAVED, SESSIONS

OF_BOTH = "interleaved"  # the arm whose sessions belong to no release alone
SETTLE = timedelta(minutes=15)  # servers have followed the routing document by then
BEFORE = timedelta(days=28)  # of which a shopper's visits are known


def session_strata(
    connection: Connection, market: str, locale: str, state: CurrentRollout, span: Span
) -> tuple[Stratum, ...]:
    """Count sessions and conversions of both releases by step and day of first delivery.

    A session belongs to the step in which it began, a quarter of an hour after a change of the
    shares at the earliest, and to the release of its first search that names one.
    """
    strata: list[Stratum] = []
    merged = _merged(market, locale, span.market_days())
    for share, since, until in _windows(state, span):
        statement = _counts(merged, since, until, (state.release, state.control))
        strata += _strata(connection.execute(statement).all(), state, share)
    return tuple(strata)


def _windows(state: CurrentRollout, span: Span) -> Iterator[tuple[float, datetime, datetime]]:
    """Yield share, beginning and end of each time in which the shares did not change."""
    for window, following in zip(state.windows, [*state.windows[1:], None], strict=True):
        if window.share:  # shadow answers nobody
            since = datetime.fromisoformat(window.since) + SETTLE
            end = span.until if following is None else datetime.fromisoformat(following.since)
            yield window.share, since, end


def session_groups(
    connection: Connection, market: str, locale: str, state: CurrentRollout, span: Span
) -> Groups:
    """Count the same sessions by what was known of their shoppers when the rollout began (A59):
    visits of the 28 days before, and those in which something was bought; none without a client.
    """
    merged = _merged(market, locale, span.market_days())
    first = date.fromisoformat(span.first)
    before = _before(market, locale, str(first - BEFORE), str(first))
    rows: list[tuple[int, ...]] = []
    strata: dict[tuple[datetime, str], int] = {}
    for _, since, until in _windows(state, span):
        statement = _grouped(merged, before, since, until, (state.release, state.control))
        for day, release, bought, visits, purchases, count in connection.execute(statement):
            stratum = strata.setdefault((since, day), len(strata))
            treated = int(release == state.release)
            rows.append((stratum, treated, int(bought), int(visits), int(purchases), int(count)))
    table = np.array(rows, np.float64).reshape(-1, 6)
    return Groups(
        table[:, 5], table[:, 2], table[:, 1] > 0, table[:, 0].astype(np.int64),
        np.log1p(table[:, 3:5]),
    )  # fmt: skip


def _before(market: str, locale: str, since: str, until: str) -> sa.Subquery:
    """Visits, and those with a purchase, of each client on the days before ``until``."""
    rows = SESSIONS.c
    return (
        sa.select(
            rows.client_id, sa.func.count(sa.distinct(rows.session_id)).label("visits"),
            sa.func.sum(sa.cast(rows.converted, sa.Integer)).label("purchases"),
        )
        .where(
            rows.market == market, rows.locale == locale, rows.client_id != "",
            rows.day >= since, rows.day < until,
        )
        .group_by(rows.client_id)
        .subquery()
    )  # fmt: skip


def _grouped(
    merged: sa.Subquery, before: sa.Subquery, since: datetime, until: datetime,
    releases: Sequence[str],
) -> sa.Select[Any]:  # fmt: skip
    s, b = merged.c, before.c
    known = [sa.func.coalesce(b.visits, 0), sa.func.coalesce(b.purchases, 0)]
    keys = [s.day, s.release, s.bought, *known]
    return (
        sa.select(*keys, sa.func.count())
        .select_from(merged.outerjoin(before, s.client_id == b.client_id))
        .where(s.began >= since, s.began < until, s.release.in_(releases))
        .group_by(*keys)
        .order_by(*keys)
    )


def _merged(market: str, locale: str, among: Sequence[str]) -> sa.Subquery:
    """One row per session: when it began, its release, and whether it bought on any day."""
    rows = SESSIONS.c
    order = (rows.release == "", rows.first_at, rows.day)
    numbered = (
        sa.select(
            rows.session_id, rows.day, rows.release, rows.first_at, rows.client_id,
            sa.cast(rows.converted, sa.Integer).label("bought"),
            sa.func.row_number().over(partition_by=rows.session_id, order_by=order).label("nth"),
        )
        .where(
            rows.market == market, rows.locale == locale, rows.day.in_(among),
            rows.bucket != OF_BOTH,
        )
        .subquery()
    )  # fmt: skip
    first = sa.case((numbered.c.nth == 1, numbered.c.release))
    return (
        sa.select(
            sa.func.min(numbered.c.day).label("day"),
            sa.func.max(first).label("release"),
            sa.func.min(numbered.c.first_at).label("began"),
            sa.func.max(numbered.c.client_id).label("client_id"),
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


def _strata(rows: Sequence[Any], state: CurrentRollout, share: float) -> Iterator[Stratum]:
    by_day: dict[str, dict[str, tuple[int, int]]] = {}
    for day, release, sessions, bought in rows:
        by_day.setdefault(day, {})[release] = int(sessions), int(bought)
    for counts in by_day.values():
        treated, control = (counts.get(r, (0, 0)) for r in (state.release, state.control))
        yield Stratum(*treated, *control, share)


def preferences(
    connection: Connection, market: str, locale: str, state: CurrentRollout, span: Span
) -> Preferences:
    """Sum up what interleaved sessions preferred since the rollout began (A57).

    Every product's events name the release that picked it, so no time has to be left out when
    shares change; a session delivered on two days has one preference.
    """
    rows = INTERLEAVED.c

    def of(release: str) -> sa.ColumnElement[Any]:
        return sa.func.sum(sa.case((rows.release == release, rows.credits), else_=0))

    statement = (
        sa.select(of(state.release), of(state.control))
        .where(
            rows.market == market, rows.locale == locale, rows.day.in_(span.market_days()),
            rows.release.in_((state.release, state.control)),
            rows.first_at >= span.since, rows.first_at < span.until,
        )
        .group_by(rows.session_id)
        .order_by(rows.session_id)  # sums of floating point depend on it
    )  # fmt: skip
    return Preferences.of((int(a), int(b)) for a, b in connection.execute(statement))
