"""Rows that were set aside: counted, shown, and written out for mending."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from csrm_tasks.errors import ConfigError
from csrm_tasks.ingest.contract.contracts import Reason
from csrm_tasks.spreadsheets import BOM
from csrm_tasks.store.tables import FILES, QUARANTINE

JSON_ROW = b'{"'  # begins it
AGAIN = "deliver the file again"  # what to do about a file that nobody could read


@dataclass(frozen=True)
class Chosen:
    """Which quarantined rows are meant: ``""`` stands for any day, any reason."""

    market: str
    day: str = ""
    reason: str = ""

    def of(self, *columns: sa.ColumnElement[Any]) -> sa.Select[Any]:
        """Return the selection of ``columns`` of the chosen rows; superseded files have none."""
        statement = (
            sa.select(*columns)
            .join_from(QUARANTINE, FILES, FILES.c.id == QUARANTINE.c.file_id)
            .where(FILES.c.market == self.market, FILES.c.live)
        )
        if self.day:
            statement = statement.where(FILES.c.day == self.day)
        return statement.where(QUARANTINE.c.reason == self.reason) if self.reason else statement


@dataclass(frozen=True)
class Row:
    """One quarantined row; number 0 stands for a whole file, of which the first bytes are kept."""

    day: str
    file: str
    number: int
    reason: str
    detail: str
    raw: bytes
    header: bytes | None  # of its CSV file


def check_reason(reason: str) -> str:
    """Return ``reason``; raises :class:`ConfigError` with the known ones."""
    if reason and reason not in set(Reason):
        raise ConfigError(f"{reason!r} is no reason; there are {', '.join(Reason)}")
    return reason


def counts(connection: Connection, chosen: Chosen) -> list[tuple[str, str, str, int]]:
    """Return (day, kind, reason, rows), by day, then most rows first."""
    n = sa.func.count().label("n")
    by = (FILES.c.day, FILES.c.kind, QUARANTINE.c.reason)
    statement = chosen.of(*by, n).group_by(*by).order_by(by[0], n.desc(), *by[1:])
    return [(day, kind, reason, rows) for day, kind, reason, rows in connection.execute(statement)]


def rows(connection: Connection, chosen: Chosen, limit: int | None = None) -> Iterator[Row]:
    """Yield the chosen rows by day, file and number."""
    columns = (QUARANTINE.c.row, QUARANTINE.c.reason, QUARANTINE.c.detail, QUARANTINE.c.raw)
    statement = chosen.of(FILES.c.day, FILES.c.name, *columns, FILES.c.header)
    ordered = statement.order_by(FILES.c.day, FILES.c.id, QUARANTINE.c.row).limit(limit)
    for row in connection.execute(ordered.execution_options(yield_per=1000)):
        yield Row(*row)


def printable(raw: bytes) -> str:
    """Return bytes as text that cannot move a cursor, turn a direction or hide anything."""
    text = raw.decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def write_raw(connection: Connection, chosen: Chosen, folder: Path) -> dict[Path, int]:
    """Write the chosen rows as delivered, to be mended and delivered; returns rows by file.

    ``{folder}/{day}/{locale}/{file}`` for each delivered file, CSV with its header and, where it
    is UTF-8, a byte order mark: spreadsheets show other letters without one. Rows that are kept as
    JSON, of whatever file, are a file of JSON lines. The names are new ones: a delivery of the same
    name would take the place of the whole earlier file.
    """
    written: dict[Path, int] = {}
    for (day, file), found in groupby(rows(connection, chosen), key=lambda r: (r.day, r.file)):
        kept: dict[bool, list[Row]] = {}
        for row in found:
            if row.number > 0:
                kept.setdefault(_is_json(row), []).append(row)
        for as_json, its in kept.items():
            path = folder / day / _mended_name(file, "jsonl" if as_json else "csv")
            path.parent.mkdir(parents=True, exist_ok=True)
            header = b"" if as_json else its[0].header or b""
            raw = header + b"".join(row.raw + b"\n" for row in its)
            path.write_bytes(BOM + raw if not as_json and _is_utf8(raw) else raw)
            written[path] = len(its)
    return written


def _is_json(row: Row) -> bool:
    """Whether a row is kept as JSON: of a CSV file that is one which was refused for what else is
    stored, when its file may be gone (decision record 6).
    """
    return ".csv" not in row.file or row.raw.startswith(JSON_ROW)


def _is_utf8(raw: bytes) -> bool:
    try:
        raw.decode()
    except UnicodeDecodeError:
        return False
    return True


def _mended_name(file: str, written: str) -> str:
    """Return ``ko-KR/labels-a.csv.mended.csv`` for ``ko-KR/labels-a.csv``; Parquet becomes JSON."""
    locale, _, name = file.partition("/")
    kind = name.replace(".", "-").split("-")[0]
    return f"{locale}/{kind}-{name[len(kind) + 1 :]}.mended.{written}"
