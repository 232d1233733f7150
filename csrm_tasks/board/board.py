"""All that the page of a market shows, read from store, ledger and artifacts.

Each part is read by itself: one that cannot be is a :class:`.Notice`, and the others stand.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TypeVar

from csrm_tasks.artifacts import ArtifactStore
from csrm_tasks.board import cost, nights, registry, releases, trend
from csrm_tasks.board.actions import Offer, offers
from csrm_tasks.board.notices import Notice, part
from csrm_tasks.board.releases import Releases, RolloutNow, Verdict
from csrm_tasks.markets import MarketConfig, load_market
from csrm_tasks.release import away, ledger
from csrm_tasks.release.ledger import Entry
from csrm_tasks.settings import Settings

SHOWN = 20  # ledger rows
NO_MLFLOW = "MLflow: CSRM_MLFLOW_UI is not set, so there are no links to it"
Found = TypeVar("Found")


@dataclass(frozen=True)
class Board:
    """One market at one moment."""

    market: str
    at: datetime
    zone: str  # of its days and weeks
    config: MarketConfig | Notice
    served: str  # what servers follow now, in words
    releases: Releases | Notice
    rollout: RolloutNow | Notice | None
    verdict: Verdict | Notice | None
    offers: tuple[Offer, ...]
    seen: str  # hash of the ledger's newest row
    history: Sequence[Entry] | Notice  # newest first
    trend: tuple[trend.Judged, ...] | Notice
    nights: nights.Nights | Notice
    weeks: tuple[cost.Week, ...] | Notice
    registry: registry.Registry | Notice


def board(settings: Settings, market: str, now: datetime, mlflow_ui: str = "") -> Board:
    """Read a market; raises nothing that a part can say. ``mlflow_ui``: where browsers find it."""
    config = part("market file", lambda: load_market(market, settings.markets))
    zone = "UTC" if isinstance(config, Notice) else config.schedule.timezone
    entries = part("ledger", lambda: verified(settings, market))
    store = part("artifacts", lambda: ArtifactStore(settings.artifacts, settings.cache))

    def of_both(
        what: str, read: Callable[[ArtifactStore, Sequence[Entry]], Found]
    ) -> Found | Notice:
        for given in (entries, store):
            if isinstance(given, Notice):
                return given
        return part(what, lambda: read(store, entries))  # type: ignore[arg-type]  # looked at above

    rows: Sequence[Entry] = [] if isinstance(entries, Notice) else entries
    decided = () if isinstance(config, Notice) else offers(rows)
    return Board(
        market, now, zone, config,
        away.served(settings, market, rows if rows else None),
        of_both("releases", releases.releases),
        of_both("evidence", releases.rollout_now),
        of_both("gate", releases.verdict),
        decided,
        rows[-1].hash if rows else "",
        entries if isinstance(entries, Notice) else rows[::-1][:SHOWN],
        of_both("trend", lambda s, e: trend.trend(s, e, now)),
        part("nights", lambda: nights.nights(settings, market, zone, now)),
        part("task hours", lambda: cost.weeks(settings, market, zone, now)),
        _registry(config, mlflow_ui),
    )  # fmt: skip


def _registry(config: MarketConfig | Notice, base: str) -> registry.Registry | Notice:
    if isinstance(config, Notice):
        return config
    if not base:
        return Notice(NO_MLFLOW)
    return part("MLflow", lambda: registry.registry(base.rstrip("/"), config.model_name))


@away.one_line
def verified(settings: Settings, market: str) -> list[Entry]:
    """Return the ledger; a database that is away is told of in one line."""
    return ledger.verified(settings, market)


@dataclass(frozen=True)
class Summary:
    """One line of the list of markets."""

    market: str
    releases: Releases | Notice
    offers: tuple[Offer, ...]


def summary(settings: Settings, market: str) -> Summary:
    """Read what the list of markets says of one."""
    entries = part("ledger", lambda: verified(settings, market))
    if isinstance(entries, Notice):
        return Summary(market, entries, ())
    store = ArtifactStore(settings.artifacts, settings.cache)
    found = part("releases", lambda: releases.releases(store, entries))
    return Summary(market, found, offers(entries))
