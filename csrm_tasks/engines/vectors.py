"""``csrm export vectors``: the live release's product vectors in the files of a search engine.

Memory is bounded by :data:`~csrm_tasks.engines.changes.CHUNK` products and one file's bytes. The
same snapshots give the same bytes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from csrm_tasks.engines.changes import CHUNK, Changes, changes, vectors_of
from csrm_tasks.engines.folders import describe, replaced
from csrm_tasks.engines.formats.records import PRODUCT_ID, Engine, Field, Form
from csrm_tasks.engines.formats.registry import ENGINES
from csrm_tasks.engines.live import Live, open_before, open_live
from csrm_tasks.engines.mapping import check_mapping
from csrm_tasks.errors import ConfigError, DataError
from csrm_tasks.settings import Settings

WHAT = "vectors"
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
FILE_BYTES = 8_000_000  # of one file: engines take bodies of some ten megabytes


@dataclass(frozen=True)
class Wanted:
    """What is to be exported."""

    to: str
    out: Path
    field: str
    release: str | None = None
    since: str | None = None
    mapping: Path | None = None
    documents: str | None = None


def export_vectors(wanted: Wanted, market: str, settings: Settings) -> list[str]:
    """Write vectors into a folder; returns what to tell, in lines.

    Raises :class:`CsrmError` before anything is seen in the folder.
    """
    if not NAME.fullmatch(wanted.field) or wanted.field == PRODUCT_ID:
        raise ConfigError(
            f"--field {wanted.field!r}: use letters, digits and _, and not {PRODUCT_ID}"
        )
    if wanted.documents is not None and wanted.to != "vespa":
        raise ConfigError(f"--documents: {wanted.to} has no such identifiers; it is for vespa")
    engine = ENGINES[wanted.to]
    live = open_live(settings, market, wanted.release)
    documents = wanted.documents or f"id:{market}:product::"
    field = Field(wanted.field, live.dim, market, live.release, documents)
    if wanted.mapping is not None:
        check_mapping(engine, field, wanted.mapping)
    before = open_before(settings, market, live, wanted.since) if wanted.since else None
    found = changes(live.now, before)
    _check_ids(engine, wanted.to, live, found)
    with replaced(wanted.out, WHAT) as folder:
        name, text = engine.schema(field)
        (folder / name).write_text(text, encoding="utf-8")
        _write(folder, f"vectors-{{:05}}.{engine.suffix}", engine.upsert_form,
               _upserts(engine, field, live, found))  # fmt: skip
        _write(folder, f"deletes-{{:05}}.{engine.suffix}", engine.delete_form,
               _deletes(engine, field, found.deletes))  # fmt: skip
        about = {
            "to": wanted.to, "market": market, "release": live.release, "snapshot": live.now.ref,
            "since": wanted.since, "field": field.name, "dimension": field.dim,
            "products": len(live.now.ids), "upserts": len(found.upserts),
            "deletes": len(found.deletes),
        }  # fmt: skip
        describe(folder, WHAT, about)
    return [
        f"{wanted.out}: {len(found.upserts):,} of {len(live.now.ids):,} products to write, "
        f"{len(found.deletes):,} to delete",
        f"vectors of {live.release}, dimension {field.dim}, for {wanted.to}",
        f"snapshot: {live.now.ref}",
    ]


def _check_ids(engine: Engine, to: str, live: Live, found: Changes) -> None:
    """Raise :class:`DataError` naming the first product that the engine cannot take."""
    if engine.longest is None:
        return
    for ids in (live.now.ids[found.upserts], found.deletes):
        long = ids.filter(ids.str.len_bytes() > engine.longest)
        if len(long):
            raise DataError(
                f"{live.now.ref}: product {long[0]!r} has more than {engine.longest} bytes, which "
                f"{to} takes no identifier of; deliver it under a shorter one"
            )


def _upserts(engine: Engine, field: Field, live: Live, found: Changes) -> Iterator[list[bytes]]:
    for ids, vectors in vectors_of(live.now, found.upserts):
        yield engine.upserts(field, ids, vectors)


def _deletes(engine: Engine, field: Field, ids: pl.Series) -> Iterator[list[bytes]]:
    for start in range(0, len(ids), CHUNK):
        yield engine.deletes(field, ids[start : start + CHUNK])


def _write(folder: Path, name: str, form: Form, chunks: Iterator[list[bytes]]) -> None:
    """Write records into files of at most :data:`FILE_BYTES`, but of one record at least."""
    held: list[bytes] = []
    size = number = 0

    def flush() -> None:
        nonlocal held, size, number
        number += 1
        (folder / name.format(number)).write_bytes(form.join(held))
        held, size = [], 0

    for chunk in chunks:
        for record in chunk:
            if held and size + len(record) > FILE_BYTES:
                flush()
            held.append(record)
            size += len(record) + len(form.between)
    if held:
        flush()
