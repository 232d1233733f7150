"""What the last days brought: the traffic that a rollout is planned with."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from csrm_tasks.errors import DataError
from csrm_tasks.ingest.storage.days import UNPUBLISHED
from csrm_tasks.release.online.planning import Traffic
from csrm_tasks.store.tables import DAYS, SESSIONS

RECENT = 14  # published days at most


def recent(connection: Connection, market: str, locale: str) -> Traffic:
    """Return the mean of the last published days that have sessions.

    Raises :class:`DataError` where there is none.
    """
    rows = SESSIONS.c
    done = sa.case((rows.clicks + rows.carts > 0, 1), else_=0)
    counts = (
        sa.select(
            rows.day, sa.func.count(), sa.func.sum(sa.cast(rows.converted, sa.Integer)),
            sa.func.sum(done),
        )
        .join(DAYS, sa.and_(DAYS.c.market == rows.market, DAYS.c.day == rows.day))
        .where(rows.market == market, rows.locale == locale, DAYS.c.digest != UNPUBLISHED)
        .group_by(rows.day)
        .order_by(rows.day.desc())
        .limit(RECENT)
    )  # fmt: skip
    days = connection.execute(counts).all()
    if not days:
        raise DataError(
            f"{market} has no published day with sessions in {locale}: a rollout is planned by "
            "what its last days brought; run csrm_ingest first"
        )
    sessions, bought, clicked = (sum(int(day[i]) for day in days) for i in (1, 2, 3))
    return Traffic(sessions / len(days), bought / sessions, clicked / sessions)
