"""What a visit came to, as one Ibis expression: which arm answered it, and whether it bought.

Canary analysis compares the conversion of sessions between releases and checks that each got its
share of them, so a session counts although nothing happened in it: searches are read beside
events. A session belongs to the arm (bucket, release) of its first search that names one;
``mixed`` tells that it met others. One whose events are delivered on two days has a row on each.
"""

from __future__ import annotations

from typing import Any

import polars as pl

from csrm_tasks.ingest.aggregate import ACTIONS

MOMENT = pl.Datetime("us", "UTC")
PER_SESSION: dict[str, Any] = {
    "locale": pl.String, "session_id": pl.String, "bucket": pl.String, "release": pl.String,
    "mixed": pl.Boolean, "searches": pl.Int64, "impressions": pl.Int64, "clicks": pl.Int64,
    "carts": pl.Int64, "purchases": pl.Int64, "converted": pl.Boolean,
    "first_at": MOMENT, "last_at": MOMENT,
}  # fmt: skip
ARM = ("bucket", "release")
DONE = {"impressions": "impression"} | ACTIONS
KEY = ["locale", "session_id"]


def session_sums(events: Any, searches: Any) -> Any:
    """Sum events and searches per session, sorted, as ``PER_SESSION``; no id, no session."""
    import ibis

    columns = [*KEY, "search_id", *ARM, "at", "action"]
    asked = searches.mutate(action=ibis.literal("search")).select(columns)
    seen = events.select(columns).union(asked)
    found = _in_searches(seen.filter(seen.session_id != ""))
    order = [*(found[c] == "" for c in ARM), found.first_at, found.search_id]
    ranked = found.mutate(nth=ibis.row_number().over(group_by=KEY, order_by=order))
    sums = ranked.group_by(KEY).agg(
        **{c: ranked[c].max(where=ranked.nth == 0) for c in ARM},
        mixed=_differs(ranked, "bucket") | _differs(ranked, "release"),
        searches=ranked.count(),
        **{c: ranked[c].sum() for c in DONE},
        converted=ranked.purchases.sum() > 0,
        first_at=ranked.first_at.min(),
        last_at=ranked.last_at.max(),
    )
    return sums.select(*PER_SESSION).order_by(KEY)


def _in_searches(seen: Any) -> Any:
    """One row per search of a session; its arm is the greatest that is named within it."""
    return seen.group_by([*KEY, "search_id"]).agg(
        **{c: seen[c].max() for c in ARM},
        **{f"least_{c}": seen[c].min(where=seen[c] != "") for c in ARM},
        **{c: seen.count(where=seen.action == a) for c, a in DONE.items()},
        first_at=seen["at"].min(),
        last_at=seen["at"].max(),
    )


def _differs(searches: Any, column: str) -> Any:
    """Whether a session's searches name more than one value (null least: none is named)."""
    return (searches[column].max() != searches[f"least_{column}"].min()).fill_null(False)
