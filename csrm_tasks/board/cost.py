"""Task hours by week: what steps spent, as noted beside their outputs."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache

from csrm_tasks import clocks
from csrm_tasks.artifacts import MANIFEST, ArtifactStore
from csrm_tasks.blobs import open_blobs
from csrm_tasks.board.trend import WEEKS
from csrm_tasks.settings import Settings


@dataclass(frozen=True)
class Week:
    """What the steps of one ISO week spent, of the attempts that ended."""

    name: str  # YYYY-Www
    steps: int
    hours: float  # wall clock
    cpu_hours: float
    dearest: str  # step that took longest in total
    dearest_hours: float


@dataclass(frozen=True)
class _Spent:
    step: str
    at: float  # seconds since 1970
    wall: float  # seconds
    cpu: float


def weeks(settings: Settings, market: str, zone: str, now: datetime) -> tuple[Week, ...]:
    """Return the last :data:`WEEKS` ISO weeks by the market's clocks in which anything ran."""
    since = (now - timedelta(weeks=WEEKS)).timestamp()
    by_week: defaultdict[str, list[_Spent]] = defaultdict(list)
    for ref in _published(settings, market):
        spent = _spent(settings, ref)
        if spent is not None and since <= spent.at <= now.timestamp():
            day = clocks.day_of(datetime.fromtimestamp(spent.at, UTC), zone)
            year, week, _ = day.isocalendar()
            by_week[f"{year}-W{week:02}"].append(spent)
    return tuple(_week(name, by_week[name]) for name in sorted(by_week, reverse=True))


def _week(name: str, rows: list[_Spent]) -> Week:
    wall: defaultdict[str, float] = defaultdict(float)
    for row in rows:
        wall[row.step] += row.wall
    dearest = max(wall, key=lambda step: (wall[step], step))
    total, cpu = sum(r.wall for r in rows), sum(r.cpu for r in rows)
    return Week(name, len(rows), total / 3600, cpu / 3600, dearest, wall[dearest] / 3600)


def _published(settings: Settings, market: str) -> list[str]:
    keys = open_blobs(settings.artifacts).keys(market)
    return [k.removesuffix(f"/{MANIFEST}") for k in keys if k.endswith(f"/{MANIFEST}")]


@lru_cache(maxsize=20_000)
def _spent(settings: Settings, ref: str) -> _Spent | None:
    """Read what one step spent; an output never changes, so a page reads only what is new."""
    manifest = ArtifactStore(settings.artifacts, settings.cache).manifest(ref)
    if manifest is None:
        return None
    spent = manifest.get("spent", {})
    wall, cpu = spent.get("wall_seconds", 0.0), spent.get("cpu_seconds", 0.0)
    return _Spent(ref.split("/")[1], manifest["created_at"], wall, cpu)
