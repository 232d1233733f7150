"""Where deliveries are stored: a market, and one day of it."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy.engine import Engine

from csrm_tasks.store.lake import Lake


@dataclass(frozen=True)
class LakeWindow:
    """Where a file is stored: a market and one day of it, by the clocks of its time zone."""

    engine: Engine
    lake: Lake
    market: str
    day: str
    zone: str = "UTC"  # IANA name
