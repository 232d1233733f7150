"""The time that a look at a rollout covers, by the market's clocks."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Self

from csrm_tasks import clocks
from csrm_tasks.release.ledger import moment
from csrm_tasks.release.rollout import CurrentRollout


@dataclass(frozen=True)
class Span:
    """From a rollout's beginning to the end of one day of the market."""

    since: datetime  # UTC
    until: datetime  # UTC: when the day is over by the market's clocks
    first: str  # the market's day (YYYY-MM-DD) in which the rollout began
    last: str

    @classmethod
    def of(cls, state: CurrentRollout, day: str, zone: str) -> Self:
        """Return the span of ``state`` up to ``day``; ``zone``: the market's time zone."""
        since = moment(state.windows[0].since).astimezone(UTC)
        until = clocks.ends(date.fromisoformat(day), zone)
        return cls(since, until, str(clocks.day_of(since, zone)), day)

    def market_days(self) -> list[str]:
        """Return the market's days, by which its store is filled."""
        return _dates(date.fromisoformat(self.first), date.fromisoformat(self.last))

    def utc_days(self) -> list[str]:
        """Return the UTC days that have a part in it, by which servers report."""
        return _dates(self.since.date(), (self.until - timedelta(microseconds=1)).date())


def _dates(first: date, last: date) -> list[str]:
    return [str(first + timedelta(days=n)) for n in range((last - first).days + 1)]
