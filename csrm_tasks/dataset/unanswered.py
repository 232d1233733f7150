"""Searches that found nothing, and searches whose results nobody touched, by query.

A search found nothing where its record says that it showed no product. Where the record does not
say what was shown, events of it tell that something was; without any it is unknown, which is no
finding. Queries are in the order of how many shoppers met this: a machine that asks a thousand
times is one of them, and stays one.
"""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl
from sqlalchemy.engine import Connection

from csrm_tasks.ingest.storage.days import behaviour_files
from csrm_tasks.store.lake import EVENTS, SEARCHES, Lake
from csrm_tasks.text import normalised

COLUMNS = (
    "query", "searches", "without_results", "shoppers_without_results", "without_clicks",
    "shoppers_without_clicks",
)  # fmt: skip
SEARCH = ("search_id", "query", "client_id", "session_id", "hits")
EVENT = ("search_id", "action")


def unanswered(
    connection: Connection, lake: Lake, market: str, days: Sequence[str], locale: str
) -> pl.DataFrame:
    """Return COLUMNS of every query of a locale that some search of these days got nothing from.

    What was done later than on these days is not looked at.
    """
    here = pl.col("locale") == locale
    searches = [pl.DataFrame(schema={c: SEARCHES[c] for c in SEARCH})]
    events = [pl.DataFrame(schema={c: EVENTS[c] for c in EVENT})]
    for day in days:
        files = behaviour_files(connection, market, day)
        for kind, columns, found in (
            ("ubi_queries", SEARCH, searches), ("ubi_events", EVENT, events)
        ):  # fmt: skip
            own = [f for f in files if f.kind == kind and f.locale == locale]
            if own:
                rows = lake.read(kind, own, [*columns, "locale"], here)
                found.append(rows.select(columns).cast(found[0].schema))  # type: ignore[arg-type]
    return by_query(pl.concat(searches), pl.concat(events).unique())


def by_query(searches: pl.DataFrame, events: pl.DataFrame) -> pl.DataFrame:
    """Count per normalised query; ``searches`` has SEARCH, ``events`` EVENT."""
    asked = searches.filter(pl.col("query") != "")
    told = events["search_id"].unique()
    acted = events.filter(pl.col("action") != "impression")["search_id"].unique()
    who = pl.coalesce(
        pl.when(pl.col("client_id") != "").then("client_id"),
        pl.when(pl.col("session_id") != "").then("session_id"),
        "search_id",
    )
    some = pl.col("search_id").is_in(told.implode()) | (pl.col("hits").list.len() > 0)
    each = asked.with_columns(
        normalised(asked["query"]).alias("norm"),
        who.alias("shopper"),
        some.fill_null(False).alias("some"),
        pl.col("search_id").is_in(acted.implode()).alias("acted"),
    )
    none = ~pl.col("some") & pl.col("hits").is_not_null()
    left = pl.col("some") & ~pl.col("acted")
    counted = each.group_by("norm").agg(
        pl.col("query").mode().min(),
        pl.len().alias("searches"),
        none.sum().alias("without_results"),
        pl.col("shopper").filter(none).n_unique().alias("shoppers_without_results"),
        left.sum().alias("without_clicks"),
        pl.col("shopper").filter(left).n_unique().alias("shoppers_without_clicks"),
    )
    found = counted.filter((pl.col("without_results") > 0) | (pl.col("without_clicks") > 0))
    order = ("shoppers_without_results", "shoppers_without_clicks", "norm")
    return found.sort(order, descending=[True, True, False]).select(COLUMNS)
