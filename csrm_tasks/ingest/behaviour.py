"""Storing UBI deliveries: searches and events go to the lake, joined to their query and product.

An event has no identifier of its own, so one that equals a stored one in all that it says is that
one again. Only files whose time span can overlap are looked at: a night's cost does not grow with
history.
"""

from __future__ import annotations

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


def span(frame: pl.DataFrame, column: str) -> tuple[datetime | None, datetime | None]:
    """Return the first and the last time in ``column``; None twice when there is none."""
    first, last = frame[column].min(), frame[column].max()
    assert first is None or isinstance(first, datetime)
    assert last is None or isinstance(last, datetime)
    return first, last


def overlapping(
    connection: Connection, market: str, locale: str, kind: str, since: datetime, until: datetime
) -> list[Stored]:
    """List the lake files of a kind that hold anything between two times."""
    statement = (
        sa.select(FILES.c.day, FILES.c.digest)
        .where(FILES.c.market == market, FILES.c.locale == locale, FILES.c.kind == kind)
        .where(FILES.c.first_at <= until, FILES.c.last_at >= since)
        .order_by(FILES.c.id)
    )
    return [Stored(kind, day, locale, digest) for day, digest in connection.execute(statement)]


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
    """Judge a file of searches against those of overlapping files."""
    frame = clean.rename({"query_id": "search_id", "user_query": "query", "timestamp": "at"})
    frame = frame.with_columns(pl.lit(locale).alias("locale"))
    first, last = span(frame, "at")
    if first is None or last is None:
        return _nothing(SEARCHES)
    files = overlapping(connection, market, locale, "ubi_queries", first, last)
    content = [c for c in SEARCHES if c != "search_id"]
    existing = lake.read("ubi_queries", files, list(SEARCHES)).unique("search_id", keep="first")
    return resolve(frame, existing, "search_id", content)


def resolve_events(
    connection: Connection, lake: Lake, market: str, locale: str, clean: pl.DataFrame
) -> Outcome:
    """Judge a file of events: their product and their query must be known, themselves not."""
    frame = clean.rename({
        "query_id": "search_id", "object_id": "product_id", "action_name": "action",
        "timestamp": "at",
    }).with_columns(pl.lit(locale).alias("locale"))  # fmt: skip
    first, last = span(frame, "at")
    if first is None or last is None:
        return _nothing(EVENTS)
    products = known_products(connection, market, locale, frame["product_id"])
    has_product = pl.col("product_id").is_in(products.implode())
    searches = overlapping(connection, market, locale, "ubi_queries", first - SESSION, last)
    asked = _with_query(frame.filter(has_product), lake, searches)
    refused = [
        refuse(frame.filter(~has_product), Reason.PRODUCT, "object_id"),
        refuse(asked.filter(pl.col("query").is_null()), Reason.QUERY, "query_id"),
    ]
    asked = asked.filter(pl.col("query").is_not_null())
    files = overlapping(connection, market, locale, "ubi_events", first, last)
    stored = _new_events(asked, lake, files)
    norms = normalised(stored["query"])
    stored = stored.with_columns(query_ids(locale, norms).alias("query_id"))
    return Outcome(stored, asked.height - stored.height, pl.concat(refused).sort("row"))


def _nothing(schema: dict[str, Any]) -> Outcome:
    stored = pl.DataFrame(schema={"row": pl.Int64} | schema)
    return Outcome(stored, 0, pl.DataFrame(schema=REFUSED))


def _with_query(events: pl.DataFrame, lake: Lake, searches: list[Stored]) -> pl.DataFrame:
    """Add the column ``query``: the event's own, or that of its search, or null."""
    asked = lake.read("ubi_queries", searches, ["search_id", "query"])
    asked = asked.unique("search_id", keep="first", maintain_order=True)
    joined = events.join(asked, on="search_id", how="left", maintain_order="left")
    own = pl.when(pl.col("user_query") != "").then(pl.col("user_query"))
    return joined.with_columns(pl.coalesce(own, "query").alias("query")).drop("user_query")


def _new_events(events: pl.DataFrame, lake: Lake, files: list[Stored]) -> pl.DataFrame:
    fresh = events.unique(EVENT_KEY, keep="first", maintain_order=True)
    stored = lake.read("ubi_events", files, EVENT_KEY)
    return fresh.join(stored, on=EVENT_KEY, how="anti", nulls_equal=True, maintain_order="left")
