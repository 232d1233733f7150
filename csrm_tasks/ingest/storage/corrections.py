"""A night that comes after a later one, or a corrected file, ends as if it had come in its place.

Files have one order (:mod:`csrm_tasks.ingest.storage.resolve`), and what a file's rows come to
depends on the files before it only (decision record 6). So when a file is stored, replaced or
replayed while others stand behind it, the rows of those others that speak of the same identifiers
are taken out, the file is judged, and they are judged again in order. Rows that refer to what it
brought or took away (labels and events to products, events to searches) follow. A night in order
does none of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import polars as pl
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from csrm_tasks.blobs import text_digest
from csrm_tasks.ingest.storage.again import Again
from csrm_tasks.ingest.storage.days import mark_stale
from csrm_tasks.ingest.storage.resolve import KINDS, rank
from csrm_tasks.ingest.storage.rows import (
    identifier,
    read_lake,
    read_unstored,
    table_keys,
    take_rows,
)
from csrm_tasks.ingest.storage.shown import mark_shown
from csrm_tasks.ingest.storage.taken import Taken
from csrm_tasks.ingest.storage.window import LakeWindow
from csrm_tasks.store.lake import TABLES
from csrm_tasks.store.tables import FILES, PRODUCTS, fetch_by_key

# Their identifiers are unique within the market.
ACROSS_LOCALES = ("labels", "query_categories", "translations")
T = TypeVar("T")
NEVER = "9999-99-99"  # sorts behind every day
Row = Mapping[Any, Any]  # of FILES


@dataclass(frozen=True)
class Change:
    """A file of the window's day, and the identifiers of which it comes to say something else."""

    kind: str
    locale: str
    name: str
    ids: pl.Series


def in_order(
    connection: Connection,
    window: LakeWindow,
    change: Change,
    store: Callable[[list[Taken]], T],
    itself: Sequence[Row] = (),
) -> T:
    """Run ``store``, which makes ``change``, as if no file stood behind it; then those follow.

    ``itself`` is the stored file that is changed, if ``store`` wants its rows of these identifiers
    taken out: it is given them.
    """
    behind = _behind(connection, window, change)
    if not behind and not itself:
        return store([])
    ids = change.ids.unique().sort()
    again = Again(connection, window, text_digest(window.day, change.name, *ids))
    key = identifier(change.kind)
    before = _first_days(connection, window, change)
    own = again.take_out(itself, key, ids)
    after = _same_things(behind, window, change)
    others = again.take_out(after, key, ids, once=change.kind == "catalogue")
    made = store(own)
    again.put_back(others)
    if change.kind == "catalogue":
        now = _first_days(connection, window, change).rename({"day": "now"})
        _follow_products(again, behind, change.locale, before, now)
    elif change.kind == "ubi_queries":
        events = _of_kind(behind, "ubi_events", change.locale)
        again.put_back(again.take_out(events, "query_id", ids))
    return made


def supersede(connection: Connection, window: LakeWindow, file: Row, ids: pl.Series) -> None:
    """Take out what ``file`` (a live row of FILES) stored; its receipt and quarantine stay.

    ``ids`` are all of its :func:`identifiers`.
    """
    if file["kind"] not in TABLES:
        take_rows(connection, window.market, file, ids)
    elif file["kind"] == "ubi_events":
        mark_shown(connection, window, file["locale"], read_lake(window, file))
    connection.execute(sa.update(FILES).where(FILES.c.id == file["id"]).values(live=False))


def identifiers(connection: Connection, window: LakeWindow, file: Row) -> pl.Series:
    """Return what a stored file's rows speak of, as its kind tells them apart."""
    key = identifier(file["kind"])
    if file["kind"] in TABLES:
        stored = read_lake(window, file)["search_id"]
    else:
        stored = table_keys(connection, window.market, file, key)
    return pl.concat([stored.alias(key), read_unstored(window, file)[key]]).unique()


def _behind(connection: Connection, window: LakeWindow, change: Change) -> list[Row]:
    """List the live files that may depend on a change, in order: those behind it, and all from the
    first on that a replay judged by what came up to its day or later.
    """
    here = (FILES.c.market == window.market, FILES.c.live)
    place = (window.day, KINDS.index(change.kind), change.name)
    seen = sa.select(sa.func.min(FILES.c.day)).where(*here, FILES.c.judged_until >= window.day)
    first = min(connection.scalar(seen) or window.day, window.day)
    statement = sa.select(FILES).where(*here, FILES.c.day >= first)
    found = sorted(connection.execute(statement).mappings(), key=rank)
    return [f for f in found if rank(f) > place or f["day"] < window.day]


def _same_things(behind: Sequence[Row], window: LakeWindow, change: Change) -> list[Row]:
    """Return those behind the change whose identifiers are the same space as its own."""
    place = (window.day, KINDS.index(change.kind), change.name)
    across = change.kind in ACROSS_LOCALES
    found = _of_kind(behind, change.kind, None if across else change.locale)
    return [f for f in found if rank(f) > place]


def _of_kind(files: Sequence[Row], kind: str, locale: str | None) -> list[Row]:
    return [f for f in files if f["kind"] == kind and locale in (None, f["locale"])]


def _first_days(connection: Connection, window: LakeWindow, change: Change) -> pl.DataFrame:
    """Return product_id and day of a change's products that the locale has: their first day."""
    schema = {"product_id": pl.String, "day": pl.String}
    if change.kind != "catalogue":
        return pl.DataFrame(schema=schema)
    statement = sa.select(PRODUCTS.c.product_id, PRODUCTS.c.day).where(
        PRODUCTS.c.market == window.market, PRODUCTS.c.locale == change.locale
    )
    found = fetch_by_key(connection, statement, PRODUCTS.c.product_id, change.ids, schema)
    return found.group_by("product_id").agg(pl.col("day").min())


def _follow_products(
    again: Again, behind: Sequence[Row], locale: str, before: pl.DataFrame, now: pl.DataFrame
) -> None:
    """Judge labels and events again whose product is known since another day than before."""
    days = before.join(now, on="product_id", how="full", coalesce=True)
    days = days.with_columns(pl.col("day", "now").fill_null(NEVER))
    moved = days.filter(pl.col("day") != pl.col("now"))
    if moved.is_empty():
        return
    _mark_showing(again, _of_kind(behind, "ubi_queries", locale), moved["product_id"])
    labels = again.speaking_of(_of_kind(behind, "labels", locale), "product_id", moved, "label_id")
    if not labels.is_empty():
        again.put_back(again.take_out(_of_kind(behind, "labels", None), "label_id", labels))
    events = _of_kind(behind, "ubi_events", locale)
    products = again.speaking_of(events, "object_id", moved, "object_id")
    if not products.is_empty():
        again.put_back(again.take_out(events, "object_id", products))


def _mark_showing(again: Again, searches: Sequence[Row], products: pl.Series) -> None:
    """Have the days of searches that showed one of ``products`` summed up again."""
    showing = pl.col("hits").list.set_intersection(pl.lit(products.implode())).list.len() > 0
    for file in searches:
        if read_lake(again.window, file).filter(showing).height:
            mark_stale(again.connection, again.window.market, file["day"])
