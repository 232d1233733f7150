"""Days: summed up after their files are stored, and published when they may be built upon."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from operator import attrgetter, itemgetter

import polars as pl
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from csrm_tasks.artifacts import json_digest
from csrm_tasks.errors import DataError
from csrm_tasks.ingest.validation.ignored import Notes
from csrm_tasks.store.bulk import insert
from csrm_tasks.store.lake import TABLES, Stored
from csrm_tasks.store.tables import DAYS, FILES, QUARANTINE

COUNTED = ("name", "locale", "kind", "digest", "rows_in", "stored", "quarantined", "known", "fault")
UNPUBLISHED = ""  # digest of a day that was changed and is not published
LOOK = "see csrm quarantine show --market {} --day {}"


@dataclass(frozen=True)
class DayState:
    """What the store holds of one day; the digest changes when a file is added or replaced."""

    day: str
    digest: str
    rows_in: int
    quarantined: int
    ignored: int
    files: int
    faults: tuple[str, ...]  # "file: reason" of files that are wrong as a whole
    notes: dict[str, dict[str, int]]  # topic → "kind: name" → rows

    @property
    def share(self) -> float:
        """Share of the rows that are in quarantine, of those that are not ignored."""
        judged = self.rows_in - self.ignored
        return self.quarantined / judged if judged else 0.0


def day_state(connection: Connection, market: str, day: str) -> DayState:
    """Read what the store holds of a day."""
    statement = sa.select(*(FILES.c[c] for c in COUNTED), FILES.c.ignored, FILES.c.notes).where(
        FILES.c.market == market, FILES.c.day == day, FILES.c.live
    )
    # Sorted here: two databases order texts by two collations, and the digest must not differ
    keys = itemgetter("kind", "locale", "name", "digest")
    rows = sorted((dict(r) for r in connection.execute(statement).mappings()), key=keys)
    notes = Notes()
    for row in rows:
        for topic, counts in (row["notes"] or {}).items():
            notes.add({topic: {f"{row['kind']}: {name}": n for name, n in counts.items()}})
    return DayState(
        day,
        json_digest([{c: r[c] for c in COUNTED} for r in rows]),
        sum(r["rows_in"] for r in rows),
        sum(r["quarantined"] for r in rows),
        sum(r["ignored"] for r in rows),
        len(rows),
        tuple(f"{r['name']}: {r['fault']}" for r in rows if r["fault"]),
        notes.as_json(),
    )


def behaviour_files(connection: Connection, market: str, day: str) -> list[Stored]:
    """List the lake files of a day's events and searches."""
    statement = (
        sa.select(FILES.c.kind, FILES.c.day, FILES.c.locale, FILES.c.part)
        .where(FILES.c.market == market, FILES.c.day == day, FILES.c.kind.in_(TABLES))
        .where(FILES.c.live)
    )
    found = [Stored(*row) for row in connection.execute(statement)]
    return sorted(found, key=attrgetter("kind", "locale", "digest"))


def files_digest(files: Sequence[Stored]) -> str:
    """Return the digest of which files a day's :func:`behaviour_files` are."""
    return json_digest([f"{f.kind}/{f.locale}/{f.digest}" for f in files])


def position_file(files: Sequence[Stored]) -> Stored:
    """Return where the counts by position are that belong to a day's :func:`behaviour_files`."""
    return Stored("positions", files[0].day, "all", files_digest(files))


def replace_day(
    connection: Connection, into: sa.Table, market: str, day: str, frames: Iterable[pl.DataFrame]
) -> None:
    """Make the rows of ``frames`` those of a day, and of no other."""
    connection.execute(sa.delete(into).where(into.c.market == market, into.c.day == day))
    here = (pl.lit(market).alias("market"), pl.lit(day).alias("day"))
    for frame in frames:
        insert(connection, into, frame.with_columns(here))


def publish(connection: Connection, market: str, day: str, tolerance: float) -> DayState:
    """Let snapshots use a day.

    Raises :class:`DataError` when it has no files, a file that is wrong as a whole, or more rows
    in quarantine than the market tolerates; all rows stay where they are.
    """
    state = day_state(connection, market, day)
    if state.files == 0:
        raise DataError(f"{market} {day}: nothing is stored for this day; ingest it first")
    if state.faults:
        raise DataError(
            f"{market} {day}: {state.faults[0]}; deliver the file again, mended "
            f"({LOOK.format(market, day)})"
        )
    if state.share > tolerance:
        raise DataError(
            f"{market} {day}: {state.quarantined} of {state.rows_in - state.ignored} rows are in "
            f"quarantine "
            f"({state.share:.1%}; ingest.tolerance is {tolerance:.1%}): "
            f"{_reasons(connection, market, day)}; mend the files or raise the tolerance "
            f"({LOOK.format(market, day)})"
        )
    found = {
        "digest": state.digest, "rows_in": state.rows_in, "quarantined": state.quarantined,
        "share": state.share,
    }  # fmt: skip
    here = (DAYS.c.market == market, DAYS.c.day == day)
    if connection.execute(sa.update(DAYS).where(*here).values(**found)).rowcount == 0:
        connection.execute(sa.insert(DAYS).values(market=market, day=day, **found))
    return state


def mark_stale(connection: Connection, market: str, day: str) -> None:
    """Have a day summed up and published again: another day's file changed what it holds.

    So is one that could not be published before: what it lacked may be there now.
    """
    here = (DAYS.c.market == market, DAYS.c.day == day)
    marked = connection.execute(sa.update(DAYS).where(*here).values(stale=DAYS.c.stale + 1))
    if marked.rowcount == 0:
        new = {"digest": UNPUBLISHED, "rows_in": 0, "quarantined": 0, "share": 0.0, "stale": 1}
        connection.execute(sa.insert(DAYS).values(market=market, day=day, **new))


def withdraw(connection: Connection, market: str, day: str) -> bool:
    """Take a day back that may not be built upon any more; returns whether it was published."""
    here = (DAYS.c.market == market, DAYS.c.day == day)
    digest = connection.scalar(sa.select(DAYS.c.digest).where(*here))
    connection.execute(sa.delete(DAYS).where(*here))
    return digest != UNPUBLISHED


def stale_days(connection: Connection, market: str) -> dict[str, int]:
    """Return day → mark of the days that another day's file changed."""
    statement = sa.select(DAYS.c.day, DAYS.c.stale).where(DAYS.c.market == market, DAYS.c.stale > 0)
    return {day: mark for day, mark in connection.execute(statement.order_by(DAYS.c.day))}


def followed(connection: Connection, market: str, day: str, mark: int) -> bool:
    """Note that the sums of a stale day are right again; False when it was changed meanwhile."""
    here = (DAYS.c.market == market, DAYS.c.day == day, DAYS.c.stale == mark)
    return connection.execute(sa.update(DAYS).where(*here).values(stale=0)).rowcount == 1


def quarantine_counts(connection: Connection, market: str, day: str) -> list[tuple[str, str, int]]:
    """Return (reason, kind, rows) of a day's quarantine, most rows first; live files only."""
    n = sa.func.count().label("n")
    statement = (
        sa.select(QUARANTINE.c.reason, FILES.c.kind, n)
        .join(FILES, FILES.c.id == QUARANTINE.c.file_id)
        .where(FILES.c.market == market, FILES.c.day == day, FILES.c.live)
        .group_by(QUARANTINE.c.reason, FILES.c.kind)
        .order_by(n.desc(), QUARANTINE.c.reason, FILES.c.kind)
    )
    return [(reason, kind, count) for reason, kind, count in connection.execute(statement)]


def _reasons(connection: Connection, market: str, day: str) -> str:
    counts = quarantine_counts(connection, market, day)
    return ", ".join(f"{n} {reason} in {kind}" for reason, kind, n in counts[:3])
