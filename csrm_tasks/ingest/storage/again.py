"""Rows of stored files, taken out of the store and judged again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import polars as pl
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from csrm_tasks.blobs import text_digest
from csrm_tasks.errors import DataError
from csrm_tasks.ingest.contract.contracts import CONTRACTS, Reason
from csrm_tasks.ingest.contract.identity import Outcome
from csrm_tasks.ingest.storage.behaviour import span
from csrm_tasks.ingest.storage.days import mark_stale
from csrm_tasks.ingest.storage.resolve import about, resolve_rows
from csrm_tasks.ingest.storage.rows import (
    IGNORED,
    IN_LAKE,
    SQL_TABLES,
    as_read,
    identifier,
    place_of,
    read_lake,
    read_unstored,
    table_rows,
    take_rows,
    unstored,
    write_rows,
)
from csrm_tasks.ingest.storage.shown import mark_shown
from csrm_tasks.ingest.storage.taken import Taken, same, with_raw
from csrm_tasks.ingest.storage.window import LakeWindow
from csrm_tasks.ingest.validation.ignored import followed
from csrm_tasks.ingest.validation.validate import REJECTED
from csrm_tasks.store.bulk import among, insert
from csrm_tasks.store.lake import TABLES
from csrm_tasks.store.tables import FILES, QUARANTINE, fetch

# Why a good row is refused: for what the store holds, not for what it says itself.
BY_STORE = [str(r) for r in (Reason.CONFLICT, Reason.PRODUCT, Reason.QUERY)]


@dataclass(frozen=True)
class Again:
    """Judging rows again in one transaction, for one ``cause``: it names what is written."""

    connection: Connection
    window: LakeWindow
    cause: str

    def take_out(
        self, files: Sequence[Mapping[Any, Any]], key: str, ids: pl.Series, once: bool = False
    ) -> list[Taken]:
        """Take out the rows of ``files`` (of one kind) with ``ids`` in the column ``key``.

        ``once``: of each identifier those of the first file that has it only.
        """
        taken = []
        stored = self._stored(files, key, ids)
        for file in files:
            one = self._taken(file, stored.get(file["id"]), key, ids)
            taken.append(one)
            if once:
                ids = ids.filter(~ids.is_in(one.rows[key].implode()))
        return taken

    def put_back(self, taken: Sequence[Taken]) -> None:
        """Judge what was taken out again, file by file, and have changed days published anew."""
        for one in taken:
            if not one.rows.is_empty():
                there = replace(self.window, day=one.file["day"])
                outcome = resolve_rows(self.connection, there, about(one.file), one.rows)
                if same(one, outcome):
                    self.restore(one)
                else:
                    self.settle(one, outcome)

    def settle(self, one: Taken, outcome: Outcome, dropped: int = 0, **columns: object) -> None:
        """Record what became of rows that were taken out; ``columns`` of FILES change with it.

        ``dropped`` rows of the file that were quarantined are ignored now, without a trace.
        """
        file, before = one.file, one.outcome
        refused = before.refused.height + dropped
        counts: dict[str, Any] = {
            "stored": file["stored"] - before.stored.height + outcome.stored.height,
            "quarantined": file["quarantined"] - refused + outcome.refused.height,
            "known": file["known"] - before.known + outcome.known,
            "ignored": file["ignored"] - before.ignored.height + outcome.ignored.height + dropped,
        }
        if file["rows_in"] != sum(counts.values()):
            raise DataError(
                f"{file['name']}: {file['rows_in']} rows in, but {counts} when judged again"
            )
        part = text_digest(file["part"] or file["digest"], file["known_part"] or "", self.cause)
        left = pl.concat([one.left, unstored(one.rows, outcome)]).sort("row")
        if left.height:
            self.window.lake.write_unstored(place_of(file, part), left)
        counts |= {"known_part": part if left.height else None}
        if file["kind"] == "ubi_events":
            more = outcome.ignored.height - before.ignored.height
            counts["notes"] = followed(file["notes"], more)
            told = ["search_id", "action", "at"]
            changed = pl.concat([before.stored.select(told), outcome.stored.select(told)])
            there = replace(self.window, day=file["day"])
            mark_shown(self.connection, there, file["locale"], changed)
        counts |= columns
        if file["kind"] in TABLES:
            schema = TABLES[file["kind"]][1]
            counts |= self._write_part(
                file, pl.concat([one.rest, outcome.lake.select(list(schema))]), part
            )
        else:
            self._write_rows(file, outcome.stored)
        self._refuse(file, with_raw(outcome.refused, one))
        self._update(file, counts)
        mark_stale(self.connection, self.window.market, file["day"])

    def speaking_of(
        self, files: Sequence[Mapping[Any, Any]], column: str, moved: pl.DataFrame, key: str
    ) -> pl.Series:
        """Return the ``key`` of rows whose verdict may change with when their product is known.

        ``moved``: product_id, ``day`` from which it was known and ``now``, from which it is.
        """
        found = [pl.Series(key, [], dtype=pl.String)]
        for file in files:
            until = file["judged_until"] or file["day"]
            was, known = pl.col("day") <= until, pl.col("now") <= until
            new, gone = (moved.filter(c)["product_id"] for c in (~was & known, was & ~known))
            rows = read_unstored(self.window, file)
            found.append(rows.filter(pl.col(column).is_in(pl.concat([new, gone]).implode()))[key])
            if not gone.is_empty():  # what is stored has to be looked through
                stored = self._stored([file], column, gone).get(file["id"])
                found += [] if stored is None else [as_read(file["kind"], stored)[key]]
        return pl.concat(found).unique()

    def _stored(
        self, files: Sequence[Mapping[Any, Any]], key: str, ids: pl.Series
    ) -> dict[int, pl.DataFrame]:
        """Return what files stored of some identifiers, by the files' numbers."""
        if not files or ids.is_empty():
            return {}
        if files[0]["kind"] in TABLES:
            return dict(self._stored_in_lake(files, key, ids))
        frame = table_rows(self.connection, self.window.market, files, key, ids)
        parts = frame.partition_by("file_id", as_dict=True, include_key=False)
        return {int(number): rows for (number,), rows in parts.items()}

    def _stored_in_lake(
        self, files: Sequence[Mapping[Any, Any]], key: str, ids: pl.Series
    ) -> Iterator[tuple[int, pl.DataFrame]]:
        for file in files:
            rows = _numbered(read_lake(self.window, file), file)
            chosen = rows.filter(pl.col(IN_LAKE.get(key, key)).is_in(ids.implode()))
            if not chosen.is_empty():
                yield file["id"], chosen

    def _taken(
        self, file: Mapping[Any, Any], stored: pl.DataFrame | None, key: str, ids: pl.Series
    ) -> Taken:
        kind = file["kind"]
        schema = TABLES[kind][1] if kind in TABLES else CONTRACTS[kind].schema
        stored = pl.DataFrame(schema=schema) if stored is None else stored
        stored = stored.filter(pl.col(_column(kind, key)).is_in(ids.implode()))
        stored = stored if kind in TABLES else self._renumbered(stored, file)
        aside = read_unstored(self.window, file)
        here = pl.col(key).is_in(ids.implode())
        again = as_read(kind, stored) if kind in TABLES else stored
        rows = pl.concat([again, aside.filter(here).drop(IGNORED)]).sort("row")
        ignored = [aside.filter(here & pl.col(IGNORED)).select("row")]
        if kind == "ubi_queries":
            ignored.append(stored.filter(pl.col("query") == "").select("row"))
        rest = pl.DataFrame(schema=schema)
        if kind in TABLES and not rows.is_empty():
            rest = _numbered(read_lake(self.window, file), file).join(stored, on="row", how="anti")
        if not stored.is_empty():
            self._take(file, stored, rest)
        refused = self._unrefuse(file, rows)
        return Taken(file, rows, stored, pl.concat(ignored), refused, aside.filter(~here), rest)

    def _take(self, file: Mapping[Any, Any], stored: pl.DataFrame, rest: pl.DataFrame) -> None:
        if file["kind"] in TABLES:
            part = text_digest(file["part"], self.cause, "out")
            self._update(file, self._write_part(file, rest, part))
        else:
            keys = stored[identifier(file["kind"])]
            take_rows(self.connection, self.window.market, file, keys)

    def restore(self, one: Taken) -> None:
        """Put rows back as they had been: nothing of the file has changed."""
        file = one.file
        if file["kind"] not in TABLES:
            self._write_rows(file, one.kept)
        else:
            self._update(file, {c: file[c] for c in ("part", "first_at", "last_at")})
        self._refuse(file, one.refused)

    def _write_rows(self, file: Mapping[Any, Any], stored: pl.DataFrame) -> None:
        there = replace(self.window, day=file["day"])
        write_rows(self.connection, there, file["kind"], file["locale"], stored, file["id"])

    def _write_part(self, file: Mapping[Any, Any], rows: pl.DataFrame, part: str) -> dict[str, Any]:
        """Write the lake file ``part`` of a file; returns the columns of FILES that say so."""
        frame = rows.sort("row")
        self.window.lake.write(place_of(file, part), frame)
        first, last = span(frame, "at")
        return {"part": part, "first_at": first, "last_at": last}

    def _refuse(self, file: Mapping[Any, Any], refused: pl.DataFrame) -> None:
        rows = refused.with_columns(pl.lit(file["id"]).alias("file_id"))
        insert(self.connection, QUARANTINE, rows)

    def _unrefuse(self, file: Mapping[Any, Any], rows: pl.DataFrame) -> pl.DataFrame:
        """Take rows of a file out of quarantine that the store's state had put there."""
        here = (QUARANTINE.c.file_id == file["id"], QUARANTINE.c.reason.in_(BY_STORE))
        with among(self.connection, QUARANTINE.c.row, rows["row"]) as chosen:
            statement = sa.select(*(QUARANTINE.c[c] for c in REJECTED)).where(*here, chosen)
            found = fetch(self.connection, statement.order_by(QUARANTINE.c.row), REJECTED)
            if not found.is_empty():
                self.connection.execute(sa.delete(QUARANTINE).where(*here, chosen))
        return found

    def _update(self, file: Mapping[Any, Any], columns: Mapping[str, Any]) -> None:
        statement = sa.update(FILES).where(FILES.c.id == file["id"]).values(**columns)
        self.connection.execute(statement)

    def _renumbered(self, stored: pl.DataFrame, file: Mapping[Any, Any]) -> pl.DataFrame:
        """Give rows of a version that kept no numbers some that no other row of the file has."""
        if stored.filter(pl.col("row") == 0).is_empty():
            return stored
        into = SQL_TABLES[file["kind"]]
        taken = [
            file["rows_in"],
            self.connection.scalar(
                sa.select(sa.func.max(into.c.row)).where(into.c.file_id == file["id"])
            ),
            self.connection.scalar(
                sa.select(sa.func.max(QUARANTINE.c.row)).where(QUARANTINE.c.file_id == file["id"])
            ),
            read_unstored(self.window, file)["row"].max(),
        ]
        first = 1 + max(int(n) for n in taken if n is not None)
        return stored.with_columns(pl.int_range(first, first + pl.len()).alias("row"))


def _numbered(rows: pl.DataFrame, file: Mapping[Any, Any]) -> pl.DataFrame:
    """Number rows of lake files of a version that kept no numbers, behind all the file's own."""
    place = pl.int_range(1, pl.len() + 1) + file["rows_in"]
    return rows.with_columns(pl.col("row").fill_null(place))


def _column(kind: str, key: str) -> str:
    return IN_LAKE.get(key, key) if kind in TABLES else key
