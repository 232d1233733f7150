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

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl

from csrm_tasks.ingest.aggregates.pairs import PAIR
from csrm_tasks.sections import Behaviour
from csrm_tasks.store.lake_engines import Engine

if TYPE_CHECKING:
    from ibis import Table
    from ibis.expr.types import IntegerValue, StringValue

SHOPPER = ["locale", "client_id", "visit"]  # visit: the session where there is no client, else ""
SEARCHED = "search"  # a search's action, beside those of events
PAGE = 50  # impressions that stand for one search where searches are not logged
MIN_SHOWN = 200  # impressions of a shopper below which no share of clicks is unheard of


def with_shopper(table: Table) -> Table:
    """Append ``visit``: together with locale and client_id it says whose a row is."""
    import ibis

    named = table.client_id != ""
    return table.mutate(visit=ibis.ifelse(named, "", table.session_id))


def by_shopper(events: Table, searches: Table) -> Table:
    """Count what each shopper did, by SHOPPER: searches, shown, clicked, acts, sessionless.

    It is looked through in place of the events for whatever most days have nothing of: machines,
    rows without a session.
    """
    import ibis

    columns = [*SHOPPER, "session_id", "action"]
    asked = searches.mutate(action=ibis.literal(SEARCHED))
    rows = with_shopper(events).select(columns).union(with_shopper(asked).select(columns))
    return rows.group_by(SHOPPER).agg(
        searches=rows.count(where=rows.action == SEARCHED),
        shown=rows.count(where=rows.action == "impression"),
        clicked=rows.count(where=rows.action == "click"),
        acts=rows.count(where=rows.action.notin(["impression", SEARCHED])),
        sessionless=rows.count(where=rows.session_id == ""),
    )


def machines(
    engine: Engine, events: Table, searches: Table, counts: Path, bounds: Behaviour, scratch: Path
) -> pl.DataFrame:
    """Return the shoppers that are machines (SHOPPER), each with its first ``reason`` by name.

    ``counts``: the file of :func:`by_shopper`. ``rate``: more searches, or actions (click, cart,
    purchase), in a minute or a day than a person could make. ``breadth``: more distinct queries, or
    products acted on. ``clicks``: it clicks on (nearly) everything that it is shown.
    """
    named = pl.scan_parquet(counts).filter((pl.col("client_id") != "") | (pl.col("visit") != ""))
    parts = [
        named.filter(rule).select(*SHOPPER, reason=pl.lit(reason)).collect()
        for reason, rule in _daily_rules(bounds)
    ]
    few = min(bounds.per_minute, bounds.breadth)  # no more rows than that break no other rule
    for table, rows, what in ((searches, "searches", "query"), (events, "acts", "product_id")):
        suspects = named.filter(pl.col(rows) > few).select(SHOPPER).collect()
        if suspects.is_empty():
            continue
        given = engine.give(f"many_{rows}", suspects, scratch / f"many_{rows}.parquet")
        if rows == "acts":
            table = table.filter(table.action != "impression")
        found = _within_the_day(with_shopper(table).semi_join(given, SHOPPER), what, bounds)
        parts.append(engine.fetch(found, scratch / f"{rows}.parquet"))
    found = pl.concat(parts)
    return found.group_by(SHOPPER).agg(pl.col("reason").min()).sort(SHOPPER)


def _daily_rules(bounds: Behaviour) -> list[tuple[str, pl.Expr]]:
    searches, shown, clicked, acts = map(pl.col, ("searches", "shown", "clicked", "acts"))
    many = (searches > bounds.per_day) | (acts > bounds.per_day)
    eager = (shown >= MIN_SHOWN) & (clicked >= shown * bounds.click_share)
    return [("rate", many | (shown > bounds.per_day * PAGE)), ("clicks", eager)]


def _within_the_day(table: Table, what: str, bounds: Behaviour) -> Table:
    """Return SHOPPER and reason of those that break a rule which needs single rows."""
    import ibis

    day = table.group_by(SHOPPER).agg(different=table[what].nunique())
    broad = day.filter(day.different > bounds.breadth)
    timed = table.mutate(minute=table["at"].truncate("m"))
    minute = timed.group_by([*SHOPPER, "minute"]).agg(n=timed.count())
    fast = minute.filter(minute.n > bounds.per_minute)
    return ibis.union(
        broad.select(SHOPPER).mutate(reason=ibis.literal("breadth")),
        fast.select(SHOPPER).distinct().mutate(reason=ibis.literal("rate")),
    )


def machine_sessions(tables: Sequence[Table], found: Table) -> Table:
    """Return (locale, session_id) of the sessions in which a machine took part."""
    parts = []
    for table in tables:
        its = with_shopper(table).semi_join(found, SHOPPER)
        parts.append(its.filter(its.session_id != "").select("locale", "session_id"))
    return parts[0].union(parts[1]).distinct()


def without(table: Table, found: Table, sessions: Table) -> Table:
    """Return the rows of ``table`` that are neither a machine's nor of one of its sessions."""
    left = with_shopper(table).anti_join(found, SHOPPER)
    return left.anti_join(sessions, ["locale", "session_id"]).select(table.columns)


def traffic(counts: Path) -> pl.DataFrame:
    """Add :func:`by_shopper` up: locale, events, searches and rows without a session."""
    table = pl.scan_parquet(counts).group_by("locale")
    sums = (pl.col(c).sum().cast(pl.Int64) for c in ("searches", "sessionless"))
    events = (pl.col("shown") + pl.col("acts")).sum().cast(pl.Int64)
    return table.agg(*sums, events=events).sort("locale").collect()


def limit(action: StringValue, bounds: Behaviour) -> IntegerValue:
    """Return how many events of ``action`` of one shopper and pair count."""
    import ibis

    return ibis.ifelse(action == "impression", bounds.impressions, bounds.actions)


def busy(events: Table, bounds: Behaviour) -> Table:
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


def capped(events: Table, found: Table, bounds: Behaviour) -> Table:
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
