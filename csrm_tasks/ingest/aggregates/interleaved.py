"""What shoppers did with interleaved lists, by session and release, as one Ibis expression (A57).

A product of an interleaved list is of the release that picked it, or of neither, and its events say
so: their bucket is ``interleaved``, their release the product's. A product that is clicked in a
search gives one credit, one that is put into the cart another, however often the event comes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import polars as pl

from csrm_tasks.ingest.aggregates.sessions import KEY, MOMENT

if TYPE_CHECKING:
    from ibis import Table

PER_RELEASE: dict[str, Any] = {
    "locale": pl.String, "session_id": pl.String, "release": pl.String,
    "credits": pl.Int64, "first_at": MOMENT,
}  # fmt: skip
CREDITED = ("click", "add_to_cart")
OF_BOTH = "interleaved"  # the arm whose sessions both releases answer


def credit_sums(events: Table) -> Table:
    """Sum credits per session and release, sorted, as ``PER_RELEASE``; no id, no session."""
    given = events.filter(
        events.bucket == OF_BOTH, events.release != "", events.session_id != "",
        events.action.isin(CREDITED),
    )  # fmt: skip
    done = [*KEY, "release", "search_id", "product_id", "action"]
    once = given.group_by(done).agg(at=given["at"].min())
    sums = once.group_by([*KEY, "release"]).agg(credits=once.count(), first_at=once["at"].min())
    return sums.select(*PER_RELEASE).order_by([*KEY, "release"])
