"""Storing one validated file, its quarantined rows too, exactly once: one transaction or nothing.

A later delivery of the same name takes the place of the earlier one in the same transaction, and
where files of later days are stored already they are as if this one had come before them
(decision record 6).
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import polars as pl
import sqlalchemy as sa
from sqlalchemy.engine import Connection, RowMapping

from csrm_tasks.errors import DataError
from csrm_tasks.ingest.contract.identity import Outcome
from csrm_tasks.ingest.reading.landing import Delivery
from csrm_tasks.ingest.reading.records import RawOf
from csrm_tasks.ingest.storage.behaviour import span
from csrm_tasks.ingest.storage.corrections import Change, identifiers, in_order, supersede
from csrm_tasks.ingest.storage.resolve import About, resolve_rows
from csrm_tasks.ingest.storage.rows import identifier, unstored, write_rows
from csrm_tasks.ingest.storage.shown import mark_shown
from csrm_tasks.ingest.storage.window import LakeWindow
from csrm_tasks.ingest.validation.ignored import FOLLOWS, Notes
from csrm_tasks.ingest.validation.validate import REJECTED, ValidationResult
from csrm_tasks.store.bulk import insert
from csrm_tasks.store.engine import writing
from csrm_tasks.store.lake import TABLES, Stored
from csrm_tasks.store.tables import FILES, QUARANTINE


@dataclass(frozen=True)
class Receipt:
    """What became of a file's rows; ``rows_in == stored + quarantined + known + ignored``."""

    name: str
    locale: str
    kind: str
    digest: str
    rows_in: int
    stored: int
    quarantined: int
    known: int
    ignored: int
    fault: str | None
    notes: (
        dict[str, dict[str, int]] | None
    )  # see csrm_tasks.ingest.validation.ignored; None: nothing to say

    def as_json(self) -> dict[str, Any]:
        """Return the fields, for receipt.json."""
        return asdict(self)


def load_file(
    window: LakeWindow,
    file: Delivery,
    judged: ValidationResult,
    raw_of: RawOf,
    landed: Callable[[], bool] = lambda: True,
) -> Receipt:
    """Store one file, or return what was recorded when it was; ``raw_of`` gives rows' bytes.

    Whoever holds the market's write lock looks the file up first, so two processes that load it at
    once end as one. Raises :class:`DataError` when the name is stored with other bytes and
    ``landed`` says that ours are not what lies in the landing zone now: an attempt that was
    overtaken by a correction must not undo it.
    """
    with writing(window.engine, window.market) as connection:
        found = _live(connection, window, file.name)
        if found is not None and found["digest"] == file.digest:
            return Receipt(**{c: found[c] for c in Receipt.__annotations__})
        if found is not None and not landed():
            raise DataError(
                f"{window.market} {window.day} {file.name}: another delivery of this file was "
                "stored meanwhile; run land again"
            )
        return _Loading(connection, window, file, judged, raw_of, found).in_its_place()


@dataclass(frozen=True)
class _Loading:
    """One file on its way into the store, in one transaction."""

    connection: Connection
    window: LakeWindow
    file: Delivery
    judged: ValidationResult
    raw_of: RawOf
    earlier: RowMapping | None  # the delivery of its name whose place it takes

    def in_its_place(self) -> Receipt:
        """Store the file in place of the earlier delivery, before those behind it."""
        file, earlier = self.file, self.earlier
        gone = pl.Series([], dtype=pl.String)
        if earlier is not None:
            gone = identifiers(self.connection, self.window, earlier)
        key = identifier(file.kind)
        ids = pl.concat([self.judged.clean[key], gone.rename(key)])

        def store(_: object) -> Receipt:
            if earlier is not None:
                supersede(self.connection, self.window, earlier, gone)
            return self._store()

        change = Change(file.kind, file.locale, file.name, ids)
        return in_order(self.connection, self.window, change, store)

    def _store(self) -> Receipt:
        connection, window, file, judged = self.connection, self.window, self.file, self.judged
        about = About(file.kind, file.locale, file.name, window.day)
        outcome = resolve_rows(connection, window, about, judged.clean)
        receipt = _receipt(file, judged, outcome, judged.rejected.height + outcome.refused.height)
        part = _part(connection, window, file)
        added = connection.execute(
            sa.insert(FILES).values(
                **receipt.as_json(), **_lake_columns(file.kind, outcome, part),
                market=window.market, day=window.day, header=judged.header or None,
                supersedes=self.earlier["id"] if self.earlier else None,
            )
        )  # fmt: skip
        assert added.inserted_primary_key is not None
        file_id: int = added.inserted_primary_key[0]
        with ThreadPoolExecutor(1) as pool:
            # Refused rows' bytes are looked up, and the lake written, while the database takes the
            # others in; the commit that makes them count comes after.
            refused = pool.submit(_with_raw, outcome.refused, self.raw_of)
            place = Stored(file.kind, window.day, file.locale, part)
            in_lake = pool.submit(_write_lake, window, place, judged.clean, outcome)
            if file.kind not in TABLES:
                write_rows(connection, window, file.kind, file.locale, outcome.stored, file_id)
            rejected = pl.concat([judged.rejected, refused.result()])
            in_lake.result()
        if file.kind == "ubi_events":
            mark_shown(connection, window, file.locale, outcome.stored)
        insert(connection, QUARANTINE, rejected.with_columns(pl.lit(file_id).alias("file_id")))
        return receipt


def _live(connection: Connection, window: LakeWindow, name: str) -> RowMapping | None:
    statement = sa.select(FILES).where(
        FILES.c.market == window.market,
        FILES.c.day == window.day,
        FILES.c.name == name,
        FILES.c.live,
    )
    return connection.execute(statement).mappings().first()


def _with_raw(refused: pl.DataFrame, raw_of: RawOf) -> pl.DataFrame:
    raw = pl.Series("raw", raw_of(refused["row"].to_list()), dtype=pl.Binary)
    return refused.with_columns(raw).select(list(REJECTED))


def _receipt(
    file: Delivery, judged: ValidationResult, outcome: Outcome, quarantined: int
) -> Receipt:
    rows_in = judged.clean.height + judged.rejected.height + judged.ignored
    notes = outcome_notes(judged.notes, file.kind, outcome)
    receipt = Receipt(
        file.name, file.locale, file.kind, file.digest, rows_in, outcome.stored.height,
        quarantined, outcome.known, judged.ignored + outcome.ignored.height, judged.fault,
        notes.as_json() or None,
    )  # fmt: skip
    if rows_in != receipt.stored + receipt.quarantined + receipt.known + receipt.ignored:
        raise DataError(f"{file.name}: {rows_in} rows in, but {receipt} accounts for fewer or more")
    return receipt


def outcome_notes(notes: Notes, kind: str, outcome: Outcome) -> Notes:
    """Add what only the store could tell: which events follow an ignored search."""
    found = Notes()
    found.add(notes.counts)
    if kind == "ubi_events":
        found.count("ignored", FOLLOWS, outcome.ignored.height)
    return found


def _part(connection: Connection, window: LakeWindow, file: Delivery) -> str:
    """Return a name that no lake file of these bytes has: the digest, and how often it was here."""
    statement = sa.select(sa.func.count()).where(
        FILES.c.market == window.market, FILES.c.day == window.day, FILES.c.locale == file.locale,
        FILES.c.kind == file.kind, FILES.c.digest == file.digest,
    )  # fmt: skip
    before = connection.scalar(statement)
    return f"{file.digest[:48]}-{before}" if before else file.digest


def _lake_columns(kind: str, outcome: Outcome, part: str) -> dict[str, Any]:
    """Return what a file's row says of its part of the lake."""
    columns: dict[str, Any] = {}
    if kind in TABLES:
        first, last = span(outcome.lake, "at")
        columns = {"part": part, "first_at": first, "last_at": last}
    return columns | ({"known_part": part} if _leaves_some(outcome) else {})


def _leaves_some(outcome: Outcome) -> bool:
    return bool(outcome.known or outcome.refused.height or outcome.ignored.height)


def _write_lake(window: LakeWindow, place: Stored, clean: pl.DataFrame, outcome: Outcome) -> None:
    if place.kind in TABLES:
        window.lake.write(place, outcome.lake)
    if _leaves_some(outcome):
        window.lake.write_unstored(place, unstored(clean, outcome))
