"""A market's days: they begin and end by the clocks of its time zone (``schedule.timezone``)."""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo


def begins(day: date, zone: str) -> datetime:
    """Return the moment (UTC) at which a day begins in ``zone``, whatever its clocks do then."""
    return datetime.combine(day, time(), ZoneInfo(zone)).astimezone(UTC)


def ends(day: date, zone: str) -> datetime:
    """Return the moment (UTC) at which a day is over; it may have had 23 or 25 hours."""
    return begins(day + timedelta(days=1), zone)


def day_of(moment: datetime, zone: str) -> date:
    """Return the day in ``zone`` that an aware moment belongs to."""
    return moment.astimezone(ZoneInfo(zone)).date()
