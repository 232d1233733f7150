"""Quarantined rows, judged again by today's contracts and by what the store holds today.

A row goes in once the product it speaks of was delivered, or a vocabulary was widened: as if it had
been good at once, so its file's receipt stays balanced. Nothing that is stored is ever replaced.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import polars as pl
import sqlalchemy as sa
from sqlalchemy.engine import Connection, RowMapping

from csrm_tasks.blobs import text_digest
from csrm_tasks.errors import DataError
from csrm_tasks.ingest.contracts import CONTRACTS, Contract, Reason
from csrm_tasks.ingest.corrections import BALANCED, REPLAYED, add_to_lake, place_of
from csrm_tasks.ingest.days import mark_stale
from csrm_tasks.ingest.identity import Outcome
from csrm_tasks.ingest.ignored import Notes
from csrm_tasks.ingest.load import outcome_notes
from csrm_tasks.ingest.readers import read_stream
from csrm_tasks.ingest.records import Records, UnreadableError
from csrm_tasks.ingest.resolve import resolve_again
from csrm_tasks.ingest.rows import known_rows, write_rows
from csrm_tasks.ingest.validate import REJECTED, Judged, judge
from csrm_tasks.ingest.window import Window
from csrm_tasks.sections import Ingest
from csrm_tasks.store.bulk import insert
from csrm_tasks.store.engine import writing
from csrm_tasks.store.lake import TABLES
from csrm_tasks.store.tables import FILES, QUARANTINE, fetch


@dataclass(frozen=True)
class Replayed:
    """What became of one file's quarantined rows.

    ``rows == stored + known + ignored + sum(reasons)``.
    """

    name: str
    kind: str
    rows: int
    stored: int
    known: int
    ignored: int
    reasons: dict[str, int]  # of the rows that stay, as they are judged today

    def __str__(self) -> str:
        left = ", ".join(f"{n} {reason}" for reason, n in self.reasons.items())
        ignored = f"{self.ignored} ignored, " if self.ignored else ""
        return (
            f"{self.name}: {self.rows} rows, {self.stored} stored, {self.known} known, {ignored}"
            f"left: {left or 'none'}"
        )


def replay(window: Window, terms: Ingest, reason: str, apply: bool) -> list[Replayed]:
    """Judge a day's quarantined rows again: those of one reason, or of any (``""``).

    Everything happens in one transaction under the market's write lock. Without ``apply`` it is
    rolled back, so that what is told is what would happen; it may leave lake files that no row
    lists and the next attempt overwrites. The rows of one file are held in memory together.
    """
    with writing(window.engine, window.market) as connection:
        files = _files(connection, window, reason)
        found = [_replay_file(connection, window, f, terms, reason) for f in files]
        if any(f.stored + f.known + f.ignored for f in found):
            mark_stale(connection, window.market, window.day)
        if not apply:
            connection.rollback()
    return found


def _files(connection: Connection, window: Window, reason: str) -> list[RowMapping]:
    """List live files that have such rows, in the order in which a day is stored."""
    statement = (
        sa.select(FILES)
        .where(FILES.c.market == window.market, FILES.c.day == window.day, FILES.c.live)
        .where(FILES.c.id.in_(sa.select(QUARANTINE.c.file_id).where(*_chosen(reason))))
    )
    order = list(CONTRACTS)
    found = connection.execute(statement).mappings().all()
    return sorted(found, key=lambda f: (order.index(f["kind"]), f["id"]))


def _chosen(reason: str) -> list[sa.ColumnElement[bool]]:
    rows = QUARANTINE.c.row > 0  # 0 is a whole file, of which only the first bytes are kept
    return [rows, QUARANTINE.c.reason == reason] if reason else [rows]


def _replay_file(
    connection: Connection, window: Window, file: RowMapping, terms: Ingest, reason: str
) -> Replayed:
    here = (QUARANTINE.c.file_id == file["id"], *_chosen(reason))
    columns = [QUARANTINE.c[c] for c in REJECTED]
    rows = fetch(connection, sa.select(*columns).where(*here).order_by(QUARANTINE.c.row), REJECTED)
    judged = judge_again(rows, file["kind"], file["header"], window.day, terms)
    outcome = resolve_again(connection, window, file, judged.clean)
    refused = outcome.refused.join(rows.select("row", "raw"), on="row", maintain_order="left")
    left = pl.concat([judged.rejected, refused.select(list(REJECTED))])
    connection.execute(sa.delete(QUARANTINE).where(*here))
    insert(connection, QUARANTINE, left.with_columns(pl.lit(file["id"]).alias("file_id")))
    if left.height < rows.height:
        _record(connection, window, file, judged, outcome)
    counts = left["reason"].value_counts().sort("count", "reason", descending=[True, False])
    return Replayed(
        file["name"], file["kind"], rows.height, outcome.stored.height, outcome.known,
        judged.ignored + outcome.ignored.height, dict(counts.iter_rows()),
    )  # fmt: skip


def judge_again(
    rows: pl.DataFrame, kind: str, header: bytes | None, day: str, terms: Ingest
) -> Judged:
    """Judge quarantined rows (REJECTED) by their bytes; ``header`` is that of their CSV file.

    A row that cannot be read by itself keeps the reason it has.
    """
    contract = CONTRACTS[kind]
    # What a correction refused is kept as JSON (decision record 6), also of a CSV file.
    as_json = pl.col("raw").bin.starts_with(b'{"') if header else pl.lit(True)
    parts = [
        judged
        for part, head in ((rows.filter(as_json), b""), (rows.filter(~as_json), header or b""))
        for judged in _judge(part, head, contract, day, terms)
    ]
    clean = pl.concat([pl.DataFrame(schema=contract.schema), *(p.clean for p in parts)])
    rejected = pl.concat([pl.DataFrame(schema=REJECTED), *(p.rejected for p in parts)])
    notes = Notes()
    for part in parts:
        notes.add(part.notes.counts)
    ignored = sum(p.ignored for p in parts)
    return Judged(clean.sort("row"), rejected.sort("row"), ignored=ignored, notes=notes)


def _judge(
    rows: pl.DataFrame, header: bytes, contract: Contract, day: str, terms: Ingest
) -> Iterator[Judged]:
    if rows.is_empty():
        return
    batches = _read(rows["raw"].to_list(), header, contract)
    if batches is not None:
        for judged in (judge(b, contract, day, terms) for b in batches):
            yield replace(
                judged,
                clean=_numbered(judged.clean, rows),
                rejected=_numbered(judged.rejected, rows),
            )
    elif rows.height == 1:
        yield Judged(pl.DataFrame(schema=contract.schema), rows)
    else:
        half = rows.height // 2
        yield from _judge(rows[:half], header, contract, day, terms)
        yield from _judge(rows[half:], header, contract, day, terms)


def _read(raws: list[bytes], header: bytes, contract: Contract) -> list[Records] | None:
    """Read rows as one file; None when they would be cut elsewhere (an open quote does that)."""
    text = io.BytesIO(header + b"\n".join(raws))
    try:
        found = list(read_stream(text, "csv" if header else "jsonl", contract))
    except UnreadableError:
        return None
    again = [raw for records in found for raw in records.raw_of(records.frame["row"].to_list())]
    return found if again == raws else None


def _numbered(judged: pl.DataFrame, rows: pl.DataFrame) -> pl.DataFrame:
    return judged.with_columns(rows["row"].gather(judged["row"] - 1))


def _record(
    connection: Connection, window: Window, file: RowMapping, judged: Judged, outcome: Outcome
) -> None:
    """Store what is good now, and balance the receipt."""
    clean = judged.clean
    notes = outcome_notes(judged.notes, file["kind"], outcome)
    notes.add(file["notes"] or {})
    count = sa.select(sa.func.count()).where(QUARANTINE.c.file_id == file["id"])
    missing = count.where(QUARANTINE.c.reason == str(Reason.MISSING_COLUMN))
    columns: dict[str, Any] = {
        "stored": file["stored"] + outcome.stored.height,
        "known": file["known"] + outcome.known,
        "ignored": file["ignored"] + judged.ignored + outcome.ignored.height,
        "notes": notes.as_json() or None,
        "quarantined": connection.scalar(count),
        "fault": file["fault"] if connection.scalar(missing) else None,
    }
    if file["rows_in"] != sum(columns[c] for c in BALANCED):
        raise DataError(f"{file['name']}: {file['rows_in']} rows in, but {columns} after a replay")
    moved = ",".join(map(str, clean["row"]))
    part = text_digest(file["part"] or file["digest"], file["known_part"] or "", moved)
    if outcome.known:
        columns["known_part"] = f"{REPLAYED}{part}"
        _keep_known(window, file, known_rows(clean, outcome), columns["known_part"])
    if file["kind"] in TABLES:
        columns |= add_to_lake(connection, window, file, outcome.lake, part)
    else:
        kind, locale = file["kind"], file["locale"]
        write_rows(connection, window, kind, locale, outcome.stored, file["id"])
    connection.execute(sa.update(FILES).where(FILES.c.id == file["id"]).values(**columns))


def _keep_known(window: Window, file: RowMapping, known: pl.DataFrame, part: str) -> None:
    before = [window.lake.read_known(place_of(file, p)) for p in [file["known_part"]] if p]
    window.lake.write_known(place_of(file, part), pl.concat([*before, known]).sort("row"))
