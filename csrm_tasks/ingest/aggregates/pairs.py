"""What a day's events add up to per query and product, as Ibis expressions.

The expressions say nothing of an engine (:mod:`csrm_tasks.store.lake_engines` decides where they
run). They group by pair and position first, once over all events; everything else is summed from
that, or looks only at the few searches that ended in a sale. So no group is ever kept per search,
of which a night has millions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import polars as pl

if TYPE_CHECKING:
    from ibis import Table
    from ibis.expr.types import IntegerScalar

ACTIONS = {"clicks": "click", "carts": "add_to_cart", "purchases": "purchase"}
COUNTS = ("impressions", "clicks", "carts", "purchases", "position_sum", "positions", "skips")
PAIR = ["locale", "query_id", "product_id"]
DAILY: dict[str, Any] = {
    "locale": pl.String, "query_id": pl.String, "product_id": pl.String, "query": pl.String,
} | dict.fromkeys(COUNTS, pl.Int64)  # fmt: skip


def by_position(events: Table, happened: Table) -> Table:
    """Count ``events`` per (locale, query, product, position); position null: not logged.

    An action that does not say where is put where its search had first shown the product, which
    may be among ``happened`` only: all events, also those that are too many of one shopper.
    """
    silent = (events.action != "impression") & events.position.isnull()
    columns = [*PAIR, "position", "action"]
    silents = _located(events.filter(silent), happened)
    located = events.filter(~silent).select(columns).union(silents)
    return located.group_by([*PAIR, "position"]).agg(
        impressions=_times(located, "impression"),
        **{column: _times(located, action) for column, action in ACTIONS.items()},
    )


def _located(silent: Table, events: Table) -> Table:
    key = ["locale", "query_id", "search_id", "product_id"]  # an identifier may be used again
    shown = events.filter(events.action == "impression").semi_join(silent, key)
    places = shown.group_by(key).agg(shown_at=shown.position.min())
    joined = silent.drop("position").left_join(places, key)
    return joined.select(*PAIR, joined.shown_at.name("position"), "action")


def pair_sums(counted: Table, events: Table, most: int) -> Table:
    """Sum :func:`by_position` over positions: one row per pair, sorted, as ``DAILY``.

    ``events``: all that shoppers did; of one shopper at most ``most`` skips of a pair count.
    """
    shown = counted.position.notnull().ifelse(counted.impressions, 0)
    sums = counted.group_by(PAIR).agg(
        impressions=counted.impressions.sum(),
        **{c: counted[c].sum() for c in ACTIONS},
        position_sum=(counted.position * counted.impressions).sum().fill_null(0),
        positions=shown.sum(),
    )
    skipped = _skips(events, most)
    joined = sums.left_join(skipped, PAIR).select(*sums.columns, skips=skipped.skips.fill_null(0))
    spelt = _spelling(events)
    key = ["locale", "query_id"]
    return joined.join(spelt, key).select(*joined.columns, "query").select(*DAILY).order_by(PAIR)


def _skips(events: Table, most: int) -> Table:
    """Count the searches in which a product stood above one that was bought, itself untouched: a
    hard negative of the CVR task (A8). At most ``most`` of a client, or of a session without one.
    """
    import ibis

    search = ["locale", "query_id", "search_id"]
    sold = events.filter(events.action == "purchase").select(search).distinct()
    inside = events.semi_join(sold, search)
    stood = inside.group_by([*PAIR, "search_id"]).agg(
        acted=_times(inside, "click", "add_to_cart", "purchase"),
        bought=_times(inside, "purchase"),
        client=inside.client_id.max(),
        visit=inside.session_id.max(),
        first=inside.position.min(where=inside.action == "impression"),
    )
    sale = ibis.ifelse(stood.bought > 0, stood["first"], None)
    seen = stood.mutate(
        sale=sale.max().over(group_by=[stood.locale, stood.query_id, stood.search_id])
    )
    skipped = seen.filter((seen.acted == 0) & (seen["first"] < seen.sale))
    named = skipped.client != ""
    owned = skipped.mutate(visit=ibis.ifelse(named, "", skipped.visit))
    each = owned.group_by([*PAIR, "client", "visit"]).agg(n=owned.count())
    nobody = (each.client == "") & (each.visit == "")
    count = ibis.ifelse(nobody, each.n, ibis.least(each.n, most))
    return each.mutate(n=count).group_by(PAIR).agg(skips=ibis._.n.sum())


def _spelling(events: Table) -> Table:
    """Per query its text as most often typed; of equally frequent ones the first by code point."""
    import ibis

    key = ["locale", "query_id"]
    typed = events.group_by([*key, "query"]).agg(n=events.count())
    order = [typed.n.desc(), typed["query"]]
    ranked = typed.mutate(place=ibis.row_number().over(group_by=key, order_by=order))
    return ranked.filter(ranked.place == 0).select(*key, "query")


def _times(events: Table, *actions: str) -> IntegerScalar:
    return events.count(where=events.action.isin(actions))
