"""What a visit came to, as one Ibis expression: which arm answered it, and whether it bought.

Canary analysis compares the conversion of sessions between releases and checks that each got its
share of them, so a session counts although nothing happened in it: searches are read beside
events. An identifier that comes again with the same text is another page of one search; with
another text it is another search. A session belongs to the arm (bucket, release) of its first
search that names one; ``mixed`` tells that it met others. One whose events are delivered on two
days has a row on each.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from csrm_tasks.ingest.aggregates.pairs import ACTIONS
from csrm_tasks.store.lake_engines import Engine
from csrm_tasks.text import normalised, query_ids

if TYPE_CHECKING:
    from ibis import Table
    from ibis.expr.types import BooleanValue

MOMENT = pl.Datetime("us", "UTC")
PER_SESSION: dict[str, Any] = {
    "locale": pl.String, "session_id": pl.String, "bucket": pl.String, "release": pl.String,
    "mixed": pl.Boolean, "searches": pl.Int64, "impressions": pl.Int64, "clicks": pl.Int64,
    "carts": pl.Int64, "purchases": pl.Int64, "converted": pl.Boolean,
    "first_at": MOMENT, "last_at": MOMENT, "client_id": pl.String,
}  # fmt: skip
ARM = ("bucket", "release")
DONE = {"impressions": "impression"} | ACTIONS
KEY = ["locale", "session_id"]
SEARCH = ["locale", "search_id"]


def session_sums(engine: Engine, events: Table, searches: Table, scratch: Path) -> Table:
    """Sum events and searches per session, sorted, as ``PER_SESSION``; no id, no session."""
    import ibis

    columns = [*KEY, "search_id", "query", *ARM, "at", "action", "client_id"]
    asked = searches.mutate(action=ibis.literal("search")).select(columns)
    seen = events.select(columns).union(asked)
    seen = _told_apart(engine, seen.filter(seen.session_id != ""), scratch)
    found = _in_searches(seen)
    order = [*(found[c] == "" for c in ARM), found.first_at, found.search_id, found.asked]
    ranked = found.mutate(nth=ibis.row_number().over(group_by=KEY, order_by=order))
    sums = ranked.group_by(KEY).agg(
        **{c: ranked[c].max(where=ranked.nth == 0) for c in ARM},
        mixed=_differs(ranked, "bucket") | _differs(ranked, "release"),
        searches=ranked.count(),
        **{c: ranked[c].sum() for c in DONE},
        converted=ranked.purchases.sum() > 0,
        first_at=ranked.first_at.min(),
        last_at=ranked.last_at.max(),
        client_id=ranked.client_id.max(),
    )
    return sums.select(*PER_SESSION).order_by(KEY)


def _told_apart(engine: Engine, seen: Table, scratch: Path) -> Table:
    """Add ``asked``: which text, for identifiers that have several; "" for all others."""
    import ibis

    texts = seen.group_by(SEARCH).agg(texts=seen["query"].nunique())
    several = texts.filter(texts.texts > 1).select(SEARCH)
    asked = seen.semi_join(several, SEARCH).select([*SEARCH, "query"]).distinct()
    found = engine.fetch(asked, scratch / "asked.parquet")
    if found.is_empty():
        return seen.mutate(asked=ibis.literal(""))
    parts = [
        part.with_columns(query_ids(str(locale), normalised(part["query"])).alias("asked"))
        for (locale,), part in found.group_by("locale")
    ]
    told = engine.give("asked", pl.concat(parts), scratch / "told.parquet")
    joined = seen.left_join(told, [*SEARCH, "query"])
    return joined.select(*seen.columns, asked=joined.asked.fill_null(""))


def _in_searches(seen: Table) -> Table:
    """One row per search of a session; its arm is the greatest that is named within it."""
    return seen.group_by([*KEY, "search_id", "asked"]).agg(
        **{c: seen[c].max() for c in ARM},
        **{f"least_{c}": seen[c].min(where=seen[c] != "") for c in ARM},
        **{c: seen.count(where=seen.action == a) for c, a in DONE.items()},
        first_at=seen["at"].min(),
        last_at=seen["at"].max(),
        client_id=seen.client_id.max(),
    )


def _differs(searches: Table, column: str) -> BooleanValue:
    """Whether a session's searches name more than one value (null least: none is named)."""
    return (searches[column].max() != searches[f"least_{column}"].min()).fill_null(False)
