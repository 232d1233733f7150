"""A corrected file takes the place of the one it corrects (decision record 6).

The earlier file's rows are taken out, the new file is judged as any other, and rows that other
files had delivered too, and that counted as known because of the earlier file, are judged again:
they are stored by the file that delivered them, stay known, or contradict the correction.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import polars as pl
import sqlalchemy as sa
from sqlalchemy.engine import Connection, RowMapping

from csrm_tasks.blobs import text_digest
from csrm_tasks.dataset.text import normalised, query_ids
from csrm_tasks.errors import DataError
from csrm_tasks.ingest.behaviour import SESSION, span, stored_rows, stretches
from csrm_tasks.ingest.days import mark_stale
from csrm_tasks.ingest.identity import Outcome
from csrm_tasks.ingest.resolve import resolve_again
from csrm_tasks.ingest.rows import identifier, known_rows, take_rows, write_rows
from csrm_tasks.ingest.shown import mark_shown
from csrm_tasks.ingest.validate import REJECTED
from csrm_tasks.ingest.window import Window
from csrm_tasks.store.bulk import insert
from csrm_tasks.store.lake import EVENTS, TABLES, Stored
from csrm_tasks.store.tables import FILES, QUARANTINE

# Known rows lie in a later file than the one that stored them, unless a replay found them known.
REPLAYED = "replayed-"
BALANCED = ("stored", "quarantined", "known", "ignored")  # columns of FILES: together all rows in


@dataclass(frozen=True)
class Retired:
    """A file that counts no longer, and what it had stored."""

    id: int
    kind: str
    locale: str
    keys: pl.Series  # identifiers, see rows.identifier
    searches: pl.DataFrame | None  # of ubi_queries: search_id, query, at


def retire(connection: Connection, window: Window, file: RowMapping) -> Retired:
    """Take out what ``file`` (a live row of FILES) stored; its receipt and quarantine stay."""
    kind, locale = file["kind"], file["locale"]
    searches = None
    if kind in TABLES:
        place = [Stored(kind, window.day, locale, file["part"])]
        keys = window.lake.read(kind, place, ["search_id"])["search_id"].unique()
        if kind == "ubi_events":
            columns = ["search_id", "action", "at"]
            mark_shown(connection, window, locale, window.lake.read(kind, place, columns))
        if kind == "ubi_queries":
            texts = pl.col("query") != ""
            searches = window.lake.read(kind, place, ["search_id", "query", "at"], texts)
    else:
        keys = take_rows(connection, window, kind, locale, file["id"])
    connection.execute(sa.update(FILES).where(FILES.c.id == file["id"]).values(live=False))
    return Retired(file["id"], kind, locale, keys, searches)


def rejudge(connection: Connection, window: Window, retired: Retired, successor: int) -> None:
    """Judge again what depended on the retired file, once its successor is stored."""
    statement = (
        sa.select(FILES)
        .where(FILES.c.market == window.market, FILES.c.locale == retired.locale)
        .where(FILES.c.kind == retired.kind, FILES.c.live, FILES.c.known_part.is_not(None))
        .where(
            FILES.c.id != successor,
            sa.or_(FILES.c.id > retired.id, FILES.c.known_part.startswith(REPLAYED)),
        )
        .order_by(FILES.c.id)
    )
    for file in connection.execute(statement).mappings().all():
        there = replace(window, day=file["day"])
        known = window.lake.read_known(place_of(file, file["known_part"]))
        concerned = known.filter(pl.col(identifier(retired.kind)).is_in(retired.keys.implode()))
        outcome = resolve_again(connection, there, file, concerned)
        if outcome.known < concerned.height:
            _revise(connection, there, file, known, outcome, successor)
    if retired.searches is not None:
        _follow_searches(connection, window, retired.locale, retired.searches, successor)


def _revise(
    connection: Connection,
    window: Window,
    file: RowMapping,
    known: pl.DataFrame,
    outcome: Outcome,
    successor: int,
) -> None:
    """Record that rows of ``file`` that had been known are stored or refused now."""
    part = text_digest(file["known_part"], str(successor))
    if file["known_part"].startswith(REPLAYED):
        part = f"{REPLAYED}{part}"
    left = known_rows(known, outcome)
    columns: dict[str, Any] = {
        "stored": file["stored"] + outcome.stored.height,
        "quarantined": file["quarantined"] + outcome.refused.height,
        "known": left.height,
        "ignored": file["ignored"] + outcome.ignored.height,
        "known_part": part if left.height else None,
    }
    if file["rows_in"] != sum(columns[c] for c in BALANCED):
        raise DataError(
            f"{file['name']}: {file['rows_in']} rows in, but {columns} after a correction"
        )
    if left.height:
        window.lake.write_known(place_of(file, part), left)
    if file["kind"] in TABLES:
        columns |= add_to_lake(connection, window, file, outcome.lake, part)
    else:
        kind, locale = file["kind"], file["locale"]
        write_rows(connection, window, kind, locale, outcome.stored, file["id"])
    refused = _with_raw(outcome.refused, known).with_columns(pl.lit(file["id"]).alias("file_id"))
    insert(connection, QUARANTINE, refused)
    connection.execute(sa.update(FILES).where(FILES.c.id == file["id"]).values(**columns))
    mark_stale(connection, window.market, file["day"])


def _with_raw(refused: pl.DataFrame, known: pl.DataFrame) -> pl.DataFrame:
    """Add the bytes of rows as JSON: the file may be gone from the landing zone."""
    rows = known.select("row", pl.struct(pl.exclude("row")).struct.json_encode().alias("raw"))
    found = refused.join(rows, on="row", how="left", maintain_order="left")
    return found.with_columns(pl.col("raw").cast(pl.Binary)).select(list(REJECTED))


def add_to_lake(
    connection: Connection, window: Window, file: RowMapping, added: pl.DataFrame, part: str
) -> dict[str, Any]:
    """Write ``added`` after the rows of ``file`` as the lake file ``part``.

    Returns the columns of its row that say so: until they are committed, nothing has changed.
    """
    schema = TABLES[file["kind"]][1]
    before = window.lake.read(file["kind"], [place_of(file, file["part"])], list(schema))
    frame = pl.concat([before, added.select(list(schema))])
    window.lake.write(place_of(file, part), frame)
    if file["kind"] == "ubi_events":
        mark_shown(connection, window, file["locale"], added)
    first, last = span(frame, "at")
    return {"part": part, "first_at": first, "last_at": last}


def _follow_searches(
    connection: Connection, window: Window, locale: str, before: pl.DataFrame, successor: int
) -> None:
    """Give stored events the corrected text of their search, where they had the earlier one."""
    changed = _changed_texts(connection, window, locale, before, successor)
    first, last = span(changed, "at")
    if first is None or last is None:
        return
    statement = (
        sa.select(FILES)
        .where(FILES.c.market == window.market, FILES.c.locale == locale, FILES.c.live)
        .where(FILES.c.kind == "ubi_events")
        .where(FILES.c.first_at <= last + SESSION, FILES.c.last_at >= first)
        .order_by(FILES.c.id)
    )
    for file in connection.execute(statement).mappings().all():
        events = window.lake.read("ubi_events", [place_of(file, file["part"])], list(EVENTS))
        followed = _with_texts(events, changed, locale)
        if followed.equals(events):
            continue
        part = text_digest(file["part"], str(successor))
        window.lake.write(place_of(file, part), followed)
        connection.execute(sa.update(FILES).where(FILES.c.id == file["id"]).values(part=part))
        mark_stale(connection, window.market, file["day"])


def _changed_texts(
    connection: Connection, window: Window, locale: str, before: pl.DataFrame, successor: int
) -> pl.DataFrame:
    """Return search_id, query (as it was), query_now and at, of searches whose text changed."""
    statement = sa.select(FILES.c.first_at, FILES.c.last_at).where(FILES.c.id == successor)
    times = [t for t in connection.execute(statement).one() if t is not None]
    when = stretches(pl.concat([before["at"], pl.Series("at", times, before["at"].dtype)]))
    place = (window.market, locale, "ubi_queries")
    stored = stored_rows(connection, window.lake, place, ["search_id", "query"], when)
    texts = stored.filter(pl.col("query") != "")
    now = texts.unique("search_id", keep="first", maintain_order=True)
    both = before.join(now.rename({"query": "query_now"}), on="search_id")
    return both.filter(pl.col("query") != pl.col("query_now"))


def _with_texts(events: pl.DataFrame, changed: pl.DataFrame, locale: str) -> pl.DataFrame:
    texts = changed.select("search_id", "query", "query_now")
    joined = events.join(texts, on=["search_id", "query"], how="left", maintain_order="left")
    query = joined.select(pl.coalesce("query_now", "query").alias("query"))["query"]
    ids = query_ids(locale, normalised(query))
    return joined.drop("query_now").with_columns(query, ids.alias("query_id"))


def place_of(file: RowMapping, part: str) -> Stored:
    """Return the lake file ``part`` of a row of FILES."""
    return Stored(file["kind"], file["day"], file["locale"], part)
