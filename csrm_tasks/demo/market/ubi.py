"""Write searches as User Behavior Insights 1.3 records: queries and events.

Identifiers are digests of what they identify, so that they are stable and unlike any other's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from csrm_tasks.blobs import text_digest
from csrm_tasks.demo.market.queries import QuerySet
from csrm_tasks.demo.market.shoppers import ACTIONS, Search
from csrm_tasks.demo.market.world import Catalogue

APPLICATION = "demo-shop"
LEGACY = "legacy"  # the release field before anything of ours was live

Record = dict[str, Any]


@dataclass(frozen=True)
class LogWindow:
    """When the sessions of one delivery happened."""

    name: str  # of the delivery; part of every identifier
    first: datetime
    days: int
    sessions: int

    def start(self, session: int) -> datetime:
        """Return when a session starts: evenly over the window."""
        share = (session + 0.5) / self.sessions
        return self.first + timedelta(seconds=int(share * self.days * 86_400))


def day_window(name: str, day: str, days: int, sessions: int) -> LogWindow:
    """Return the window of ``days`` days that ends with ``day`` (YYYY-MM-DD), UTC."""
    last = datetime.fromisoformat(day).replace(tzinfo=UTC)
    return LogWindow(name, last - timedelta(days=days - 1), days, sessions)


def _stamp(moment: datetime) -> str:
    return moment.isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"


def query_records(
    searches: list[Search], queries: QuerySet, shop: Catalogue, window: LogWindow
) -> Iterator[Record]:
    """Yield the UBI query record of each search."""
    for number, search in enumerate(searches):
        yield _query(number, search, queries, shop, window)


def event_records(
    searches: list[Search], shop: Catalogue, window: LogWindow
) -> Iterator[list[Record]]:
    """Yield the UBI events of each search: the impressions, then what was done with them."""
    for number, search in enumerate(searches):
        yield _events(number, search, shop, window)


def _ids(number: int, search: Search, window: LogWindow) -> Record:
    return {
        "query_id": text_digest(window.name, "query", str(number)),
        "client_id": text_digest(window.name, "client", str(search.session))[:16],
        "session_id": text_digest(window.name, "session", str(search.session)),
    }


def _query(
    number: int, search: Search, queries: QuerySet, shop: Catalogue, window: LogWindow
) -> Record:
    moment = window.start(search.session) + timedelta(seconds=search.second)
    ids = _ids(number, search, window)
    return {
        "application": APPLICATION,
        **ids,
        "user_query": queries.queries[search.query].text,
        "timestamp": _stamp(moment),
        "query_response_id": text_digest(ids["query_id"], "response"),
        "query_response_hit_ids": [shop.products[row].product_id for row in search.rows],
        "query_attributes": {"bucket": search.bucket, "release": LEGACY},
    }


def _events(number: int, search: Search, shop: Catalogue, window: LogWindow) -> list[Record]:
    ids = _ids(number, search, window)
    began = window.start(search.session) + timedelta(seconds=search.second)
    shown = [("impression", position, _stamp(began)) for position in range(len(search.rows))]
    acted = [
        (action, position, _stamp(began + timedelta(seconds=4 * (position + 1) + 9 * (step + 1))))
        for step, (action, positions) in enumerate(zip(ACTIONS, search.done, strict=True))
        for position in positions
    ]
    return [
        {
            "application": APPLICATION,
            "action_name": action,
            **ids,
            "timestamp": moment,
            "message_type": "INFO",
            "message": action,
            "event_attributes": {
                "object": {
                    "object_id": shop.products[search.rows[position]].product_id,
                    "object_id_field": "product_id",
                },
                "position": {"ordinal": position + 1},
                "bucket": search.bucket,
                "release": LEGACY,
            },
        }
        for action, position, moment in shown + acted
    ]
