"""Storing UBI deliveries: searches and events go to the lake, joined to their query and product.

An event has no identifier of its own, so one that equals a stored one in all that it says is that
one again. Looked at are only files that can hold something of the same days (UTC), and of them only
those days' rows: a night's cost does not grow with history, also when a few of its events are late.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import polars as pl
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from csrm_tasks.dataset.text import normalised, query_ids
from csrm_tasks.ingest.contracts import Reason
from csrm_tasks.ingest.identity import REFUSED, Outcome, refuse, resolve
from csrm_tasks.store.lake import EVENTS, SEARCHES, Lake, Stored
from csrm_tasks.store.tables import FILES, PRODUCTS, fetch_by_key

EVENT_KEY = (
    "search_id", "product_id", "action", "position", "client_id", "session_id", "at",
)  # fmt: skip
SESSION = timedelta(hours=24)  # an event follows its search within so much
Stretch = tuple[datetime, datetime]
Place = tuple[str, str, str]  # market, locale, kind


def span(frame: pl.DataFrame, column: str) -> tuple[datetime | None, datetime | None]:
    """Return the first and the last time in ``column``; None twice when there is none."""
    first, last = frame[column].min(), frame[column].max()
    assert first is None or isinstance(first, datetime)
    assert last is None or isinstance(last, datetime)
    return first, last


def stretches(times: pl.Series, before: timedelta = timedelta()) -> list[Stretch]:
    """Cover ``times`` by stretches of whole days (UTC): a late event does not stretch to today.

    Each begins ``before`` its first day; those that touch are one.
    """
    found: list[Stretch] = []
    for day in times.dt.truncate("1d").unique().sort():
        since, until = day - before, day + timedelta(days=1)
        if found and since <= found[-1][1]:
            since = found.pop()[0]
        found.append((since, until))
    return found


def stored_rows(
    connection: Connection, lake: Lake, place: Place, columns: Sequence[str], when: list[Stretch]
) -> pl.DataFrame:
    """Return the stored rows of a kind within some stretches, in the order they were stored."""
    market, locale, kind = place
    overlaps = [(FILES.c.first_at <= until) & (FILES.c.last_at >= since) for since, until in when]
    statement = (
        sa.select(FILES.c.day, FILES.c.part)
        .where(FILES.c.market == market, FILES.c.locale == locale, FILES.c.kind == kind)
        .where(FILES.c.live)
        .where(sa.or_(sa.false(), *overlaps))
        .order_by(FILES.c.id)
    )
    files = [Stored(kind, day, locale, part) for day, part in connection.execute(statement)]
    within = pl.any_horizontal(pl.col("at").is_between(*stretch) for stretch in when)
    return lake.read(kind, files, columns, within)


def known_products(
    connection: Connection, market: str, locale: str, wanted: pl.Series
) -> pl.Series:
    """Return those of ``wanted`` that the catalogue of the locale has (any version)."""
    statement = (
        sa.select(PRODUCTS.c.product_id)
        .where(PRODUCTS.c.market == market, PRODUCTS.c.locale == locale)
        .distinct()
    )
    ids = wanted.unique().sort().to_list()
    schema = {"product_id": pl.String}
    return fetch_by_key(connection, statement, PRODUCTS.c.product_id, ids, schema)["product_id"]


def resolve_searches(
    connection: Connection, lake: Lake, market: str, locale: str, clean: pl.DataFrame
) -> Outcome:
    """Judge a file of searches against those of overlapping files.

    Those without a text are ignored, but kept for the events that refer to them.
    """
    if "query_response_hit_ids" not in clean.columns:  # known rows of an earlier version
        hits = pl.lit(None, dtype=pl.List(pl.String)).alias("query_response_hit_ids")
        clean = clean.with_columns(hits)
    frame = clean.rename({
        "query_id": "search_id", "user_query": "query", "timestamp": "at",
        "query_response_hit_ids": "hits",
    }).with_columns(pl.lit(locale).alias("locale"))  # fmt: skip
    ignored = frame.filter(pl.col("query") == "")
    frame = frame.filter(pl.col("query") != "")
    if frame.is_empty():
        return replace(_nothing(SEARCHES), ignored=ignored)
    content = [c for c in SEARCHES if c not in ("search_id", "hits")]
    place = (market, locale, "ubi_queries")
    stored = stored_rows(connection, lake, place, list(SEARCHES), stretches(frame["at"]))
    existing = stored.filter(pl.col("query") != "").unique(
        "search_id", keep="first", maintain_order=True
    )
    return replace(resolve(frame, existing, "search_id", content), ignored=ignored)


def resolve_events(
    connection: Connection, lake: Lake, market: str, locale: str, clean: pl.DataFrame
) -> Outcome:
    """Judge a file of events: their product and their query must be known, themselves not.

    Those of an ignored search are ignored.
    """
    frame = clean.rename({
        "query_id": "search_id", "object_id": "product_id", "action_name": "action",
        "timestamp": "at",
    }).with_columns(pl.lit(locale).alias("locale"))  # fmt: skip
    if frame.is_empty():
        return _nothing(EVENTS)
    products = known_products(connection, market, locale, frame["product_id"])
    has_product = pl.col("product_id").is_in(products.implode())
    searches = stored_rows(
        connection, lake, (market, locale, "ubi_queries"), ["search_id", "query"],
        stretches(frame["at"], SESSION),
    )  # fmt: skip
    asked = _with_query(frame, searches)
    ignored = asked.filter(pl.col("query") == "").select("row")
    asked = asked.filter(pl.col("query").ne_missing(""))
    unasked = pl.col("query").is_null()
    refused = [
        refuse(asked.filter(~has_product), Reason.PRODUCT, "object_id"),
        refuse(asked.filter(has_product & unasked), Reason.QUERY, "query_id"),
    ]
    asked = asked.filter(has_product & ~unasked)
    there = stored_rows(
        connection, lake, (market, locale, "ubi_events"), EVENT_KEY, stretches(frame["at"])
    )
    stored = _new_events(asked, there)
    norms = normalised(stored["query"])
    stored = stored.with_columns(query_ids(locale, norms).alias("query_id"))
    known = asked.height - stored.height
    return Outcome(stored, known, pl.concat(refused).sort("row"), ignored)


def _nothing(schema: dict[str, Any]) -> Outcome:
    stored = pl.DataFrame(schema={"row": pl.Int64} | schema)
    return Outcome(stored, 0, pl.DataFrame(schema=REFUSED))


def _with_query(events: pl.DataFrame, searches: pl.DataFrame) -> pl.DataFrame:
    """Add the column ``query``: the event's own, or that of its search, or null.

    It is empty where the search is an ignored one.
    """
    texts_first = searches.sort(pl.col("query") == "", maintain_order=True)
    asked = texts_first.unique("search_id", keep="first", maintain_order=True)
    joined = events.join(asked, on="search_id", how="left", maintain_order="left")
    own = pl.when(pl.col("user_query") != "").then(pl.col("user_query"))
    return joined.with_columns(pl.coalesce(own, "query").alias("query")).drop("user_query")


def _new_events(events: pl.DataFrame, stored: pl.DataFrame) -> pl.DataFrame:
    fresh = events.unique(EVENT_KEY, keep="first", maintain_order=True)
    return fresh.join(stored, on=EVENT_KEY, how="anti", nulls_equal=True, maintain_order="left")
