"""Storing UBI deliveries: searches and events go to the lake, joined to their query and product.

An identifier stands for one search at a time: at another time it is another page of that search, or
another search where a shop uses identifiers again. An event belongs to the one before it. It has no
identifier of its own, so one that equals a stored one in all that it says is that one again.
Looked at are only files that can hold something of the same days, and of them only those days'
rows: a night's cost does not grow with history, also when a few of its events are late.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import polars as pl
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from csrm_tasks import clocks
from csrm_tasks.ingest.contract.contracts import Reason
from csrm_tasks.ingest.contract.identity import REFUSED, Outcome, refuse, resolve
from csrm_tasks.ingest.storage.window import LakeWindow
from csrm_tasks.store.lake import EVENTS, SEARCHES, Stored
from csrm_tasks.store.tables import FILES, PRODUCTS, fetch_by_key
from csrm_tasks.text import normalised, query_ids

EVENT_KEY = (
    "search_id", "product_id", "action", "position", "client_id", "session_id", "at",
)  # fmt: skip
SESSION = timedelta(hours=24)  # an event follows its search within so much
Stretch = tuple[datetime, datetime]


def span(frame: pl.DataFrame, column: str) -> tuple[datetime | None, datetime | None]:
    """Return the first and the last time in ``column``; None twice when there is none."""
    first, last = frame[column].min(), frame[column].max()
    assert first is None or isinstance(first, datetime)
    assert last is None or isinstance(last, datetime)
    return first, last


def stretches(times: pl.Series, zone: str, before: timedelta = timedelta()) -> list[Stretch]:
    """Cover ``times`` by stretches of whole days in ``zone``: a late event does not stretch to
    today, and a day on which clocks change is as long as it is.

    Each begins ``before`` its first day; those that touch are one.
    """
    found: list[Stretch] = []
    for _, begins, until in _days_of(times, zone).iter_rows():
        since = begins - before
        if found and since <= found[-1][1]:
            since = found.pop()[0]
        found.append((since, until))
    return found


def _days_of(times: pl.Series, zone: str) -> pl.DataFrame:
    """Return each day (date in ``zone``) of ``times`` with the moments of its begin and end.

    By the clocks of the zone: a day may begin at one o'clock, where midnight is left out.
    """
    days = times.dt.convert_time_zone(zone).dt.date().drop_nulls().unique().sort()
    rows = [(day, clocks.begins(day, zone), clocks.ends(day, zone)) for day in days]
    moment = pl.Datetime("us", "UTC")
    return pl.DataFrame(rows, {"on": pl.Date, "begins": moment, "ends": moment}, orient="row")


def stored_rows(
    connection: Connection,
    window: LakeWindow,
    place: tuple[str, str],
    columns: Sequence[str],
    when: list[Stretch],
    until: str | None = None,
) -> pl.DataFrame:
    """Return the stored rows of a locale and kind within some stretches, in the order of files.

    ``until`` leaves out what later days delivered.
    """
    locale, kind = place
    overlaps = [(FILES.c.first_at <= end) & (FILES.c.last_at >= since) for since, end in when]
    statement = (
        sa.select(FILES.c.day, FILES.c.part)
        .where(FILES.c.market == window.market, FILES.c.locale == locale, FILES.c.kind == kind)
        .where(FILES.c.live)
        .where(sa.or_(sa.false(), *overlaps))
        .order_by(FILES.c.day, FILES.c.name)
    )
    if until is not None:
        statement = statement.where(FILES.c.day <= until)
    files = [Stored(kind, day, locale, part) for day, part in connection.execute(statement)]
    within = pl.any_horizontal(pl.col("at").is_between(*stretch) for stretch in when)
    return window.lake.read(kind, files, columns, within)


def known_products(
    connection: Connection, market: str, locale: str, wanted: pl.Series, until: str
) -> pl.Series:
    """Return those of ``wanted`` that the locale's catalogue has had up to the day ``until``."""
    statement = (
        sa.select(PRODUCTS.c.product_id)
        .where(PRODUCTS.c.market == market, PRODUCTS.c.locale == locale, PRODUCTS.c.day <= until)
        .distinct()
    )
    ids = wanted.unique().sort().to_list()
    schema = {"product_id": pl.String}
    return fetch_by_key(connection, statement, PRODUCTS.c.product_id, ids, schema)["product_id"]


def resolve_searches(
    connection: Connection, window: LakeWindow, locale: str, clean: pl.DataFrame
) -> Outcome:
    """Judge a file of searches against those of overlapping files.

    Those without a text are ignored, but kept for the events that refer to them.
    """
    frame = clean.rename({
        "query_id": "search_id", "user_query": "query", "timestamp": "at",
        "query_response_hit_ids": "hits",
    }).with_columns(pl.lit(locale).alias("locale"))  # fmt: skip
    ignored = frame.filter(pl.col("query") == "")
    frame = frame.filter(pl.col("query") != "")
    if frame.is_empty():
        return replace(_nothing(SEARCHES), ignored=ignored.select(list(SEARCHES)))
    content = [c for c in SEARCHES if c not in ("search_id", "at", "row", "hits")]
    when = stretches(frame["at"], window.zone)
    stored = stored_rows(
        connection, window, (locale, "ubi_queries"), ["search_id", "at", *content], when
    )
    key = pl.concat_str("search_id", pl.lit(" "), pl.col("at").dt.timestamp()).alias("query_id")
    existing = stored.filter(
        pl.col("search_id").is_in(frame["search_id"].implode()), pl.col("query") != ""
    )
    found = resolve(frame.with_columns(key), existing.with_columns(key), "query_id", content)
    return Outcome(
        found.stored.select(list(SEARCHES)), found.known, found.refused,
        ignored.select(list(SEARCHES)),
    )  # fmt: skip


def resolve_events(
    connection: Connection, window: LakeWindow, locale: str, until: str, clean: pl.DataFrame
) -> Outcome:
    """Judge a file of events: their product and their query must be known, themselves not.

    Known is what was delivered up to the day ``until``. Those of an ignored search are ignored.
    """
    frame = clean.rename({
        "query_id": "search_id", "object_id": "product_id", "action_name": "action",
        "timestamp": "at",
    }).with_columns(pl.lit(locale).alias("locale"))  # fmt: skip
    if frame.is_empty():
        return _nothing(EVENTS)
    products = known_products(connection, window.market, locale, frame["product_id"], until)
    has_product = pl.col("product_id").is_in(products.implode())
    searches = stored_rows(
        connection, window, (locale, "ubi_queries"),
        ["search_id", "query", "client_id", "at"],
        stretches(frame["at"], window.zone, SESSION), until,
    )  # fmt: skip
    asked = _with_query(frame, searches, window.zone)
    ignored = asked.filter(pl.col("query") == "").select("row")
    asked = asked.filter(pl.col("query").ne_missing(""))
    unasked = pl.col("query").is_null()
    refused = [
        refuse(asked.filter(~has_product), Reason.PRODUCT, "object_id"),
        refuse(asked.filter(has_product & unasked), Reason.QUERY, "query_id"),
    ]
    asked = asked.filter(has_product & ~unasked)
    there = stored_rows(
        connection, window, (locale, "ubi_events"), EVENT_KEY, stretches(frame["at"], window.zone)
    )
    stored = _new_events(asked, there)
    norms = normalised(stored["query"])
    stored = stored.with_columns(query_ids(locale, norms).alias("query_id"))
    known = asked.height - stored.height
    return Outcome(stored, known, pl.concat(refused).sort("row"), ignored)


def _but_row(schema: dict[str, Any]) -> list[str]:
    return [c for c in schema if c != "row"]


def _nothing(schema: dict[str, Any]) -> Outcome:
    return Outcome(pl.DataFrame(schema=schema), 0, pl.DataFrame(schema=REFUSED))


def _with_query(events: pl.DataFrame, searches: pl.DataFrame, zone: str) -> pl.DataFrame:
    """Add ``query``, the event's ``own`` or that of its search, or null.

    It is empty where the search is an ignored one.
    """
    said = events.with_columns((pl.col("user_query") != "").alias("own"))
    joined = said.join(_asked(said, searches, zone), on="row", how="left", maintain_order="left")
    own = pl.when("own").then("user_query")
    return joined.with_columns(pl.coalesce(own, "query").alias("query")).drop("user_query")


def _asked(events: pl.DataFrame, searches: pl.DataFrame, zone: str) -> pl.DataFrame:
    """Return row and query of the events whose search is there.

    Where an identifier stands for several searches it is the event's own client's, and of those the
    last that had been asked by then; or else the first one after, for clocks differ. It is of the
    event's day or up to :data:`SESSION` before that, whatever else is in the event's file.
    """
    named = searches.rename({"client_id": "asker", "at": "asked_at"})
    found = events.join(named, on="search_id")
    found = found.with_columns(on=pl.col("at").dt.convert_time_zone(zone).dt.date())
    found = found.join(_days_of(found["at"], zone), on="on", maintain_order="left")
    near = pl.col("asked_at").is_between(pl.col("begins") - SESSION, pl.col("ends"))
    found = found.filter(near)
    if named["search_id"].n_unique() == named.height:  # the usual night
        return found.select("row", "query")
    found = found.with_columns(
        silent=pl.col("query") == "",  # browsing under the identifier of a search with a text
        stranger=pl.col("asker") != pl.col("client_id"),
        late=pl.col("asked_at") > pl.col("at"),
        far=(pl.col("asked_at") - pl.col("at")).abs(),
    )
    ranked = found.sort("row", "silent", "stranger", "late", "far")
    return ranked.unique("row", keep="first", maintain_order=True).select("row", "query")


def _new_events(events: pl.DataFrame, stored: pl.DataFrame) -> pl.DataFrame:
    fresh = events.unique(EVENT_KEY, keep="first", maintain_order=True)
    return fresh.join(stored, on=EVENT_KEY, how="anti", nulls_equal=True, maintain_order="left")
