"""Who counts, and how often: machines are set apart, and one person has a bounded say in a day.

A shopper is a client, or the session of an event that names no client; what names neither is
nobody's, and never taken for one person's. Of one shopper so many impressions, clicks, carts and
purchases of one product for one query count, the first ones of the day. A machine is a shopper
whose day no person could have had (``ingest.behaviour`` of a market has the bounds); all that it
and its sessions did stays in the lake and is counted, but is no evidence: not in the sums of pairs
and positions, and not in the sessions that a rollout is judged by, whichever release answered.

Everything is a function of the day's own files. Ibis expressions, as in
:mod:`csrm_tasks.ingest.aggregates.pairs`; what is rare (machines, too busy shoppers) is found
first, and where there is none the events are taken as they are. Groups are by shopper and query,
never by shopper and product of a whole night.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from csrm_tasks.ingest.aggregates.pairs import PAIR
from csrm_tasks.sections import Behaviour

SHOPPER = ["locale", "client_id", "visit"]  # visit: the session where there is no client, else ""
PAGE = 50  # impressions that stand for one search where searches are not logged
MIN_SHOWN = 200  # impressions of a shopper below which no share of clicks is unheard of


def with_shopper(table: Any) -> Any:
    """Append ``visit``: together with locale and client_id it says whose a row is."""
    import ibis

    named = table.client_id != ""
    return table.mutate(visit=ibis.ifelse(named, "", table.session_id))


def machines(events: Any, searches: Any, bounds: Behaviour) -> Any:
    """Return the shoppers that are machines, each with its first ``reason`` by name.

    ``rate``: more searches, or actions (click, cart, purchase), in a minute or a day than a person
    could make. ``breadth``: more distinct queries, or products acted on. ``clicks``: it clicks on
    (nearly) everything that it is shown.
    """
    import ibis

    flagged = _flagged(with_shopper(events), with_shopper(searches), bounds)
    named = [who.select(*SHOPPER).mutate(reason=ibis.literal(reason)) for reason, who in flagged]
    found = ibis.union(*named)
    somebody = found.filter((found.client_id != "") | (found.visit != ""))
    return somebody.group_by(SHOPPER).agg(reason=somebody.reason.min()).order_by(SHOPPER)


def _flagged(events: Any, searches: Any, bounds: Behaviour) -> Iterator[tuple[str, Any]]:
    """Yield reason and the shoppers, named ones and nobody, for each rule."""
    acts = events.filter(events.action != "impression")
    for table, what in ((searches, "query"), (acts, "product_id")):
        day = table.group_by(SHOPPER).agg(n=table.count(), different=table[what].nunique())
        yield "breadth", day.filter(day.different > bounds.breadth)
        yield "rate", day.filter(day.n > bounds.per_day)
        timed = table.mutate(minute=table["at"].truncate("m"))
        minute = timed.group_by([*SHOPPER, "minute"]).agg(n=timed.count())
        yield "rate", minute.filter(minute.n > bounds.per_minute)
    seen = events.group_by(SHOPPER).agg(
        shown=events.count(where=events.action == "impression"),
        clicked=events.count(where=events.action == "click"),
    )
    yield "rate", seen.filter(seen.shown > bounds.per_day * PAGE)
    eager = seen.clicked >= seen.shown * bounds.click_share
    yield "clicks", seen.filter((seen.shown >= MIN_SHOWN) & eager)


def machine_sessions(tables: Sequence[Any], found: Any) -> Any:
    """Return (locale, session_id) of the sessions in which a machine took part."""
    parts = []
    for table in tables:
        its = with_shopper(table).semi_join(found, SHOPPER)
        parts.append(its.filter(its.session_id != "").select("locale", "session_id"))
    return parts[0].union(parts[1]).distinct()


def without(table: Any, found: Any, sessions: Any) -> Any:
    """Return the rows of ``table`` that are neither a machine's nor of one of its sessions."""
    left = with_shopper(table).anti_join(found, SHOPPER)
    return left.anti_join(sessions, ["locale", "session_id"]).select(table.columns)


def traffic(events: Any, searches: Any) -> Any:
    """Count rows by locale and kind (events, searches)."""
    import ibis

    kinds = ("events", events), ("searches", searches)
    counts = [
        table.group_by("locale").agg(rows=table.count()).mutate(kind=ibis.literal(kind))
        for kind, table in kinds
    ]
    return ibis.union(*counts)


def limit(action: Any, bounds: Behaviour) -> Any:
    """Return how many events of ``action`` of one shopper and pair count."""
    import ibis

    return ibis.ifelse(action == "impression", bounds.impressions, bounds.actions)


def busy(events: Any, bounds: Behaviour) -> Any:
    """Return (PAIR, shopper, action) of which there are more than count, with ``n``.

    Looked at product by product are only queries for which a shopper has as many events at all.
    """
    owned = with_shopper(events)
    owned = owned.filter((owned.client_id != "") | (owned.visit != ""))
    by_query = ["query_id", *SHOPPER, "action"]
    sums = owned.group_by(by_query).agg(n=owned.count())
    suspects = sums.filter(sums.n > limit(sums.action, bounds))
    looked = owned.semi_join(suspects, by_query)
    counted = looked.group_by([*by_query, "product_id"]).agg(n=looked.count())
    return counted.filter(counted.n > limit(counted.action, bounds))


def capped(events: Any, found: Any, bounds: Behaviour) -> Any:
    """Return ``events`` without those that are too many; ``found``: :func:`busy`.

    The first of the day stay. The order is over all that tells two events apart, so that it is
    never the engine's.
    """
    import ibis

    key = [*PAIR, "client_id", "visit", "action"]
    owned = with_shopper(events)
    many = owned.semi_join(found, key)
    order = [many["at"], many.search_id, many.position.fill_null(-1), many.session_id]
    ranked = many.mutate(nth=ibis.row_number().over(group_by=key, order_by=order))
    first = ranked.filter(ranked.nth < limit(ranked.action, bounds))
    rest = owned.anti_join(found, key)
    return rest.select(events.columns).union(first.select(events.columns))
