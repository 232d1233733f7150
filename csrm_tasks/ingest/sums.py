"""Summing up a day: from its lake files to aggregates, sessions and counts by position."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from csrm_tasks.errors import DataError
from csrm_tasks.ingest.aggregate import DAILY, PAIR, by_position, pair_sums
from csrm_tasks.ingest.days import (
    behaviour_files,
    followed,
    position_file,
    publish,
    replace_day,
    stale_days,
    withdraw,
)
from csrm_tasks.ingest.engines import Engine, frames, open_engine
from csrm_tasks.ingest.sessions import PER_SESSION, session_sums
from csrm_tasks.ingest.shown import Beside, beside, with_shown
from csrm_tasks.ingest.visits import with_sessions
from csrm_tasks.ingest.window import Window
from csrm_tasks.sections import Ingest
from csrm_tasks.store.engine import reading, writing
from csrm_tasks.store.lake import TABLES, Lake, Stored
from csrm_tasks.store.tables import AGGREGATES, SESSIONS

NOTHING = Beside()


@dataclass(frozen=True)
class Sums:
    """Result files of a day, each sorted by its key."""

    pairs: Path  # csrm_tasks.ingest.aggregate.DAILY
    positions: Path  # csrm_tasks.store.lake.POSITIONS
    sessions: Path  # csrm_tasks.ingest.sessions.PER_SESSION


def refresh_day(window: Window, config: Ingest, scratch: Path, threads: int) -> dict[str, Any]:
    """Replace what is stored of the day's sums by what its lake files say now; returns facts.

    Summing takes long and holds no lock; when a file was stored meanwhile it is done again.
    """
    store, market, day = window.engine, window.market, window.day
    while True:
        with reading(store) as connection:
            files = behaviour_files(connection, market, day)
            besides = beside(connection, window)
        with open_engine(config, scratch, threads) as engine:
            sums = sum_up(engine, window.lake, files, scratch, besides)
        if files:
            window.lake.put(position_file(files), sums.positions)
        with writing(store, market) as connection:
            same = behaviour_files(connection, market, day) == files
            if same and beside(connection, window).events == besides.events:
                replace_day(connection, AGGREGATES, market, day, frames(sums.pairs, DAILY))
                replace_day(connection, SESSIONS, market, day, frames(sums.sessions, PER_SESSION))
                return _facts(connection, market, day)


def follow_corrections(window: Window, config: Ingest, scratch: Path, threads: int) -> list[str]:
    """Sum up and publish again the days that another day's file changed; returns them.

    One that holds too many contradictions now is published no longer, as if it had come after what
    it contradicts: :class:`DataError` says so once all are done. One that was not published before
    may be good by now.
    """
    with reading(window.engine) as connection:
        stale = stale_days(connection, window.market)
    faults: list[DataError] = []
    for day, mark in stale.items():
        refresh_day(replace(window, day=day), config, scratch / day, threads)
        with writing(window.engine, window.market) as connection:
            if followed(connection, window.market, day, mark):  # else the next one sees to it
                faults += _published_anew(connection, window.market, day, config.tolerance)
    if faults:
        raise faults[0]
    return list(stale)


def _published_anew(
    connection: Connection, market: str, day: str, tolerance: float
) -> list[DataError]:
    """Publish a day, or take it back; returns why, if it had been published."""
    try:
        publish(connection, market, day, tolerance)
    except DataError as e:
        return [e] if withdraw(connection, market, day) else []
    return []


def _facts(connection: Connection, market: str, day: str) -> dict[str, Any]:
    counts = ("impressions", "clicks", "carts", "purchases")

    def totals(table: sa.Table) -> tuple[int, int]:
        events = sa.func.coalesce(sa.func.sum(sum(table.c[c] for c in counts)), 0)
        here = (table.c.market == market, table.c.day == day)
        rows, found = connection.execute(sa.select(sa.func.count(), events).where(*here)).one()
        return rows, int(found)

    (pairs, events), (sessions, visited) = totals(AGGREGATES), totals(SESSIONS)
    return {
        "pairs": pairs, "events": events, "sessions": sessions,
        "events_without_session": events - visited,
    }  # fmt: skip


def sum_up(
    engine: Engine, lake: Lake, files: Sequence[Stored], scratch: Path, besides: Beside = NOTHING
) -> Sums:
    """Sum up the events and searches of lake files (any of them may be missing)."""
    sums = Sums(*(scratch / f"{n}.parquet" for n in ("pairs", "positions", "sessions")))
    events, searches = (
        engine.read(TABLES[kind][0], _paths(lake, kind, files, scratch))
        for kind in ("ubi_events", "ubi_queries")
    )
    searches = searches.filter(searches["query"] != "")  # ignored ones have none
    events = with_shown(engine, lake, events, searches, besides, scratch)
    engine.write(by_position(events).order_by([*PAIR, "position"]), sums.positions)
    counted = engine.read("counted", [sums.positions])
    engine.write(pair_sums(counted, events), sums.pairs)
    engine.write(session_sums(*with_sessions(engine, events, searches)), sums.sessions)
    return sums


def _paths(lake: Lake, kind: str, files: Sequence[Stored], scratch: Path) -> list[Path]:
    found = lake.paths([f for f in files if f.kind == kind], scratch / "lake")
    if found:
        return found
    none = scratch / f"{kind}.parquet"  # an engine needs a file to know the columns
    pl.DataFrame(schema=TABLES[kind][1]).write_parquet(none)
    return [none]
