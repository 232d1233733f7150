"""Summing up a day: from its lake files to aggregates, sessions and counts by position."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from csrm_tasks.errors import DataError
from csrm_tasks.ingest.aggregates.interleaved import PER_RELEASE, credit_sums
from csrm_tasks.ingest.aggregates.pairs import DAILY, PAIR, by_position, pair_sums
from csrm_tasks.ingest.aggregates.sessions import PER_SESSION, session_sums
from csrm_tasks.ingest.aggregates.shoppers import (
    busy,
    by_shopper,
    capped,
    machine_sessions,
    machines,
    traffic,
    without,
)
from csrm_tasks.ingest.aggregates.visits import with_sessions
from csrm_tasks.ingest.storage.days import (
    behaviour_files,
    files_digest,
    followed,
    position_file,
    publish,
    replace_day,
    stale_days,
    withdraw,
)
from csrm_tasks.ingest.storage.shown import Beside, beside, with_shown
from csrm_tasks.ingest.storage.window import LakeWindow
from csrm_tasks.sections import Behaviour, Ingest
from csrm_tasks.store.engine import reading, writing
from csrm_tasks.store.lake import TABLES, Lake, Stored
from csrm_tasks.store.lake_engines import Engine, frames, open_engine
from csrm_tasks.store.tables import AGGREGATES, INTERLEAVED, SESSIONS, TRAFFIC

PER_LOCALE: dict[str, Any] = {"locale": pl.String} | dict.fromkeys(
    ("events", "searches", "machines", "machine_events", "machine_searches", "over_bound"), pl.Int64
)


@dataclass(frozen=True)
class LeftOut:
    """What a day's sums do not hold, and why (:mod:`csrm_tasks.ingest.aggregates.shoppers`)."""

    by_locale: pl.DataFrame  # PER_LOCALE; over_bound: events that are too many of one shopper
    reasons: dict[str, int]  # why a shopper is a machine → shoppers
    sessionless: int  # events of shoppers without a session: in the pairs, in no session


NOTHING = Beside()


@dataclass(frozen=True)
class Sums:
    """Result files of a day, each sorted by its key, and what was left out of them."""

    pairs: Path  # csrm_tasks.ingest.aggregates.pairs.DAILY
    positions: Path  # csrm_tasks.store.lake.POSITIONS
    sessions: Path  # csrm_tasks.ingest.aggregates.sessions.PER_SESSION
    interleaved: Path  # csrm_tasks.ingest.aggregates.interleaved.PER_RELEASE
    left_out: LeftOut


def refresh_day(window: LakeWindow, config: Ingest, scratch: Path, threads: int) -> dict[str, Any]:
    """Replace what is stored of the day's sums by what its lake files say now; returns facts,
    among them ``summed``, the digest of which files these are.

    Summing takes long and holds no lock; when a file was stored meanwhile it is done again.
    """
    store, market, day = window.engine, window.market, window.day
    while True:
        with reading(store) as connection:
            files = behaviour_files(connection, market, day)
            besides = beside(connection, window)
        with open_engine(config, scratch, threads) as engine:
            sums = sum_up(engine, window.lake, files, scratch, config.behaviour, besides)
        if files:
            window.lake.put(position_file(files), sums.positions)
        with writing(store, market) as connection:
            same = behaviour_files(connection, market, day) == files
            if same and beside(connection, window).events == besides.events:
                replace_day(connection, AGGREGATES, market, day, frames(sums.pairs, DAILY))
                replace_day(connection, SESSIONS, market, day, frames(sums.sessions, PER_SESSION))
                credited = frames(sums.interleaved, PER_RELEASE)
                replace_day(connection, INTERLEAVED, market, day, credited)
                replace_day(connection, TRAFFIC, market, day, [sums.left_out.by_locale])
                facts = _facts(connection, market, day) | _left_out(sums.left_out)
                return facts | {"summed": files_digest(files)}


@contextmanager
def summed_up(
    window: LakeWindow, config: Ingest, scratch: Path, threads: int, summed: str | None = None
) -> Iterator[Connection]:
    """Hold the market's lock while the day's sums are those of the files it has.

    ``summed``: digest of the files that were summed up last. Another writer may have stored one
    since: then they are summed up again first.
    """
    while True:
        with writing(window.engine, window.market) as connection:
            files = behaviour_files(connection, window.market, window.day)
            if files_digest(files) == summed:
                yield connection
                return
        summed = refresh_day(window, config, scratch, threads)["summed"]


def follow_corrections(
    window: LakeWindow, config: Ingest, scratch: Path, threads: int
) -> list[str]:
    """Sum up and publish again the days that another day's file changed; returns them.

    One that holds too many contradictions now is published no longer, as if it had come after what
    it contradicts: :class:`DataError` says so once all are done. One that was not published before
    may be good by now.
    """
    with reading(window.engine) as connection:
        stale = stale_days(connection, window.market)
    faults: list[DataError] = []
    for day, mark in stale.items():
        of_day = replace(window, day=day)
        with summed_up(of_day, config, scratch / day, threads) as connection:
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
    counts = [AGGREGATES.c[c] for c in ("impressions", "clicks", "carts", "purchases")]

    def here(table: sa.Table, *what: sa.ColumnElement[Any]) -> tuple[Any, ...]:
        mine = (table.c.market == market, table.c.day == day)
        return tuple(connection.execute(sa.select(sa.func.count(), *what).where(*mine)).one())

    pairs, events = here(AGGREGATES, sa.func.coalesce(sa.func.sum(sum(counts)), 0))
    (sessions,) = here(SESSIONS)
    return {"pairs": pairs, "events": int(events), "sessions": sessions}


def _left_out(found: LeftOut) -> dict[str, Any]:
    sums = ("machines", "machine_events", "machine_searches", "over_bound")
    counted = {c: int(found.by_locale[c].sum()) for c in sums}
    return {"events_without_session": found.sessionless, "machine_reasons": found.reasons} | counted


def sum_up(
    engine: Engine,
    lake: Lake,
    files: Sequence[Stored],
    scratch: Path,
    bounds: Behaviour,
    besides: Beside = NOTHING,
) -> Sums:
    """Sum up the events and searches of lake files (any of them may be missing).

    Machines are set apart first, then each shopper's say is bounded by ``bounds``.
    """
    events, searches = (
        engine.read(TABLES[kind][0], _paths(lake, kind, files, scratch))
        for kind in ("ubi_events", "ubi_queries")
    )
    searches = searches.filter(searches["query"] != "")  # ignored ones have none
    events = with_shown(engine, lake, events, searches, besides, scratch)
    pairs, positions, visits, credited = (
        scratch / f"{n}.parquet" for n in ("pairs", "positions", "sessions", "interleaved")
    )
    counts = scratch / "shoppers.parquet"
    engine.write(by_shopper(events, searches), counts)
    whole = people = traffic(counts)
    found = machines(engine, events, searches, counts, bounds, scratch)
    if found.height:
        kinds = engine.give("machines", found, scratch / "machines.parquet")
        engine.write(machine_sessions((events, searches), kinds), scratch / "its.parquet")
        its = engine.read("its", [scratch / "its.parquet"])
        events, searches = (without(table, kinds, its) for table in (events, searches))
        rest = scratch / "people.parquet"
        engine.write(by_shopper(events, searches), rest)
        people = traffic(rest)
    many = engine.fetch(busy(events, bounds), scratch / "busy.parquet")
    kept = events
    if many.height:
        kept = capped(events, engine.read("busy", [scratch / "busy.parquet"]), bounds)
    engine.write(by_position(kept, events).order_by([*PAIR, "position"]), positions)
    counted = engine.read("counted", [positions])
    engine.write(pair_sums(counted, events, bounds.actions), pairs)
    if people["sessionless"].sum():
        events, searches = with_sessions(events, searches)
    engine.write(session_sums(engine, events, searches, scratch), visits)
    engine.write(credit_sums(events), credited)
    left_out = _account(whole, people, found, many, bounds, _visited(visits))
    return Sums(pairs, positions, visits, credited, left_out)


def _account(
    whole: pl.DataFrame,
    people: pl.DataFrame,
    found: pl.DataFrame,
    many: pl.DataFrame,
    bounds: Behaviour,
    visited: int,
) -> LeftOut:
    """Put the counts of all rows, of people's, of machines and of what is too many together."""
    most = pl.when(pl.col("action") == "impression").then(bounds.impressions)
    over = many.with_columns((pl.col("n") - most.otherwise(bounds.actions)).alias("over_bound"))
    table = whole
    for part in (
        people.select("locale", own_events="events", own_searches="searches"),
        found.group_by("locale").agg(pl.len().alias("machines")),
        over.group_by("locale").agg(pl.col("over_bound").sum()),
    ):  # fmt: skip
        table = table.join(part, on="locale", how="left")
    counted = table.fill_null(0).with_columns(
        (pl.col(c) - pl.col(f"own_{c}")).alias(f"machine_{c}") for c in ("events", "searches")
    )
    return LeftOut(
        counted.select(pl.col(c).cast(t) for c, t in PER_LOCALE.items()).sort("locale"),
        dict(found.group_by("reason").len().sort("reason").iter_rows()),
        int(people["events"].sum()) - visited,
    )


def _visited(visits: Path) -> int:
    """Return how many events are in the sessions of a table of them."""
    counts = pl.read_parquet(visits, columns=["impressions", "clicks", "carts", "purchases"])
    return int(counts.sum().sum_horizontal().item() or 0)


def _paths(lake: Lake, kind: str, files: Sequence[Stored], scratch: Path) -> list[Path]:
    found = lake.paths([f for f in files if f.kind == kind], scratch / "lake")
    if found:
        return found
    none = scratch / f"{kind}.parquet"  # an engine needs a file to know the columns
    pl.DataFrame(schema=TABLES[kind][1]).write_parquet(none)
    return [none]
