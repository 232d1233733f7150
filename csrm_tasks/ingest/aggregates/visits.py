"""Whose visit an event belongs to, where the log does not say.

UBI's plugin logs searches by client, and its public clients put the session into some records only.
A record without a session takes that of another record of its search; else that of its client: all
that a client does with no more than :data:`GAP` between is one visit, named after the client and
its beginning. Records are those delivered on one day, so a visit delivered on two is two.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ibis import Table

GAP = 30  # minutes without a record that end a visit
CLIENT = 160  # characters of a client's identifier in a visit's: it has 200
SEARCH = ["locale", "search_id"]
WHO = ["locale", "client_id"]
BY_CLIENT = [*SEARCH, "client_id"]


def with_sessions(events: Table, searches: Table) -> tuple[Table, Table]:
    """Return both tables with every session that can be told; "" where none can."""
    columns = [*SEARCH, "client_id", "session_id", "at"]
    seen = events.select(columns).union(searches.select(columns))
    silent = seen.filter(seen.session_id == "")
    said, own = _said(seen.semi_join(silent, SEARCH))
    begun = _visits(silent.anti_join(said, SEARCH).anti_join(own, BY_CLIENT))
    return _filled(events, said, own, begun), _filled(searches, said, own, begun)


def _said(seen: Table) -> tuple[Table, Table]:
    """Return the session that records of a search tell: by search, and by search and client.

    An identifier under which several clients searched stands for a search of each.
    """
    named = seen.filter(seen.client_id != "")
    clients = named.group_by(SEARCH).agg(clients=named.client_id.nunique())
    several = clients.filter(clients.clients > 1)
    telling = seen.filter(seen.session_id != "")
    said = telling.anti_join(several, SEARCH)
    said = said.group_by(SEARCH).agg(said_session=said.session_id.min())
    own = telling.filter(telling.client_id != "").semi_join(several, SEARCH)
    return said, own.group_by(BY_CLIENT).agg(own_session=own.session_id.min())


def _visits(silent: Table) -> Table:
    """Return locale, client, time and session of every moment at which a client did something."""
    import ibis

    moments = silent.filter(silent.client_id != "").select(*WHO, "at").distinct()
    before = moments["at"].lag().over(group_by=[moments[c] for c in WHO], order_by=moments["at"])
    timed = moments.mutate(before=before)
    first = timed.before.isnull() | (timed["at"] > timed.before + ibis.interval(minutes=GAP))
    marked = timed.mutate(begins=ibis.ifelse(first, timed["at"], ibis.null("timestamp('UTC')")))
    so_far = ibis.window(group_by=WHO, order_by="at", preceding=None, following=0)
    begun = marked.mutate(began=marked.begins.max().over(so_far))
    stamp = begun.began.strftime("%Y%m%d-%H%M%S")  # no letters: Spark takes them for fields
    named = begun.client_id.substr(0, CLIENT) + ibis.literal("@") + stamp
    return begun.select(*WHO, "at", visit=named)


def _filled(table: Table, said: Table, by_client: Table, begun: Table) -> Table:
    import ibis

    joined = table.left_join(said, SEARCH, rname="{name}_said")
    joined = joined.select(*table.columns, "said_session")
    joined = joined.left_join(by_client, BY_CLIENT, rname="{name}_own")
    joined = joined.select(*table.columns, "said_session", "own_session")
    joined = joined.left_join(begun, [*WHO, "at"], rname="{name}_begun")
    own = joined.session_id.nullif("")
    told = ibis.coalesce(
        own, joined.said_session, joined.own_session, joined.visit, ibis.literal("")
    )
    return joined.select(*[c for c in table.columns if c != "session_id"], session_id=told).select(
        *table.columns
    )
