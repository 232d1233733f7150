"""Quarantined rows, judged again by today's contracts and by what the store holds today.

A row goes in once the product it speaks of was delivered, or a vocabulary was widened: as if it had
been good at once, so its file's receipt stays balanced, and files behind it are judged again where
they say something else of the same.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import polars as pl
import sqlalchemy as sa
from sqlalchemy.engine import Connection, RowMapping

from csrm_tasks.blobs import text_digest
from csrm_tasks.ingest.contract.contracts import CONTRACTS, Contract, Reason, contract_of
from csrm_tasks.ingest.reading.readers import read_stream
from csrm_tasks.ingest.reading.records import Records, UnreadableError
from csrm_tasks.ingest.storage.again import Again
from csrm_tasks.ingest.storage.corrections import Change, in_order
from csrm_tasks.ingest.storage.resolve import about, resolve_rows
from csrm_tasks.ingest.storage.rows import IGNORED, identifier, read_lake, read_unstored
from csrm_tasks.ingest.storage.taken import Taken, same
from csrm_tasks.ingest.storage.window import LakeWindow
from csrm_tasks.ingest.validation.ignored import Notes
from csrm_tasks.ingest.validation.quarantine import JSON_ROW
from csrm_tasks.ingest.validation.validate import REJECTED, ValidationResult, validate_batch
from csrm_tasks.sections import Ingest
from csrm_tasks.store.bulk import among, insert
from csrm_tasks.store.engine import writing
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


def replay(window: LakeWindow, terms: Ingest, reason: str, apply: bool) -> list[Replayed]:
    """Judge a day's quarantined rows again: those of one reason, or of any (``""``).

    Everything happens in one transaction under the market's write lock. Without ``apply`` it is
    rolled back, so that what is told is what would happen; it may leave lake files that no row
    lists and the next attempt overwrites. The rows of one file are held in memory together.
    """
    with writing(window.engine, window.market) as connection:
        chosen = {
            f["id"]: _quarantined(connection, f, reason) for f in _files(connection, window, reason)
        }
        # What the ones bring may let rows of the others in.
        ignored = {n: _replay_file(connection, window, n, terms, reason) for n in chosen}
        found = [_told(connection, window, n, rows, ignored[n]) for n, rows in chosen.items()]
        if not apply:
            connection.rollback()
    return found


def _files(connection: Connection, window: LakeWindow, reason: str) -> list[RowMapping]:
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


def _file(connection: Connection, number: int) -> RowMapping:
    return connection.execute(sa.select(FILES).where(FILES.c.id == number)).mappings().one()


def _replay_file(
    connection: Connection, window: LakeWindow, number: int, terms: Ingest, reason: str
) -> int:
    """Judge a file's rows again; returns how many are ignored now, without a trace."""
    file = _file(connection, number)
    chosen = _quarantined(connection, file, reason)
    good = read_unstored(window, file).filter(pl.col("row").is_in(chosen["row"].implode()))
    wrong = chosen.join(good, on="row", how="anti", maintain_order="left")
    judged = judge_again(wrong, file["kind"], file["header"], window.day, terms, window.zone)
    key = identifier(file["kind"])
    change = Change(
        file["kind"], file["locale"], file["name"], pl.concat([good[key], judged.clean[key]])
    )

    def settle(own: list[Taken]) -> None:
        mended = wrong.join(judged.clean, on="row", how="semi")
        _rewrite(connection, number, wrong, judged.rejected)
        taken = replace(
            own[0],
            rows=pl.concat([own[0].rows, judged.clean]).sort("row"),
            refused=pl.concat([own[0].refused, mended]),
        )
        _settle(connection, window, taken, judged)

    in_order(connection, window, change, settle, [file])
    return judged.ignored


def _quarantined(connection: Connection, file: Mapping[Any, Any], reason: str) -> pl.DataFrame:
    here = (QUARANTINE.c.file_id == file["id"], *_chosen(reason))
    columns = [QUARANTINE.c[c] for c in REJECTED]
    return fetch(connection, sa.select(*columns).where(*here).order_by(QUARANTINE.c.row), REJECTED)


def _rewrite(
    connection: Connection, file_id: int, wrong: pl.DataFrame, rejected: pl.DataFrame
) -> None:
    """Keep of rows that were ``wrong`` those that still are, with today's reasons."""
    with among(connection, QUARANTINE.c.row, wrong["row"]) as rows:
        connection.execute(sa.delete(QUARANTINE).where(QUARANTINE.c.file_id == file_id, rows))
    insert(connection, QUARANTINE, rejected.with_columns(pl.lit(file_id).alias("file_id")))


def _settle(
    connection: Connection, window: LakeWindow, taken: Taken, judged: ValidationResult
) -> None:
    """Judge a file's rows by all that was delivered so far, and have that hold from now on."""
    file = taken.file
    last = sa.select(sa.func.max(FILES.c.day)).where(FILES.c.market == window.market, FILES.c.live)
    until = max(connection.scalar(last), file["judged_until"] or "")
    outcome = resolve_rows(connection, window, replace(about(file), until=until), taken.rows)
    faults = sa.select(sa.func.count()).where(
        QUARANTINE.c.file_id == file["id"], QUARANTINE.c.reason == str(Reason.MISSING_COLUMN)
    )
    fault = file["fault"] if connection.scalar(faults) else None
    cause = text_digest("replay", until, *map(str, taken.rows["row"]))
    again = Again(connection, window, cause)
    if same(taken, outcome) and fault == file["fault"] and not judged.ignored:
        again.restore(taken)
        return
    again.settle(taken, outcome, judged.ignored, judged_until=until, fault=fault)
    if judged.notes.counts:
        notes = Notes()
        for counts in (judged.notes.counts, _file(connection, file["id"])["notes"] or {}):
            notes.add(counts)
        told = sa.update(FILES).where(FILES.c.id == file["id"]).values(notes=notes.as_json())
        connection.execute(told)


def _told(
    connection: Connection, window: LakeWindow, number: int, chosen: pl.DataFrame, dropped: int
) -> Replayed:
    """Say what became of the chosen rows of a file, ``dropped`` of them without a trace."""
    file = _file(connection, number)
    mine = pl.col("row").is_in(chosen["row"].implode())
    left = _quarantined(connection, file, "").filter(mine)
    aside = read_unstored(window, file).filter(mine).join(left, on="row", how="anti")
    known = aside.filter(~pl.col(IGNORED)).height
    ignored = aside.height - known + dropped
    if file["kind"] == "ubi_queries":
        ignored += read_lake(window, file).filter(mine, pl.col("query") == "").height
    stored = chosen.height - left.height - known - ignored
    counts = left["reason"].value_counts().sort("count", "reason", descending=[True, False])
    return Replayed(
        file["name"], file["kind"], chosen.height, stored, known, ignored,
        dict(counts.iter_rows()),
    )  # fmt: skip


def judge_again(
    rows: pl.DataFrame, kind: str, header: bytes | None, day: str, terms: Ingest, zone: str
) -> ValidationResult:
    """Judge quarantined rows (REJECTED) by their bytes; ``header`` is that of their CSV file.

    A row that cannot be read by itself keeps the reason it has; so does one whose quotes are
    ambiguous, for without the rows around it it may look certain.
    """
    contract = contract_of(kind, terms.columns, kept=True)
    ambiguous = pl.col("reason") == str(Reason.QUOTES)
    held, rows = rows.filter(ambiguous), rows.filter(~ambiguous)
    # What was refused for what else is stored is kept as JSON (decision record 6), of CSV, too.
    as_json = pl.col("raw").bin.starts_with(JSON_ROW) if header else pl.lit(True)
    parts = [
        judged
        for part, head in ((rows.filter(as_json), b""), (rows.filter(~as_json), header or b""))
        for judged in _judge(part, head, contract, day, terms, zone)
    ]
    clean = pl.concat([pl.DataFrame(schema=contract.schema), *(p.clean for p in parts)])
    rejected = pl.concat([held, *(p.rejected for p in parts)])
    notes = Notes()
    for part in parts:
        notes.add(part.notes.counts)
    ignored = sum(p.ignored for p in parts)
    return ValidationResult(clean.sort("row"), rejected.sort("row"), ignored=ignored, notes=notes)


def _judge(
    rows: pl.DataFrame, header: bytes, contract: Contract, day: str, terms: Ingest, zone: str
) -> Iterator[ValidationResult]:
    if rows.is_empty():
        return
    batches = _read(rows["raw"].to_list(), header, contract)
    if batches is not None:
        for judged in (validate_batch(b, contract, day, terms, zone) for b in batches):
            yield replace(
                judged,
                clean=_numbered(judged.clean, rows),
                rejected=_numbered(judged.rejected, rows),
            )
    elif rows.height == 1:
        yield ValidationResult(pl.DataFrame(schema=contract.schema), rows)
    else:
        half = rows.height // 2
        yield from _judge(rows[:half], header, contract, day, terms, zone)
        yield from _judge(rows[half:], header, contract, day, terms, zone)


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
