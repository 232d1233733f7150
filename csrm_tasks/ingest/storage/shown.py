"""What a search showed, where nobody logged it product by product.

UBI's plugin writes the products of an answer into the search's record. They count as impressions at
their ranks, from 1, unless impressions of that search were delivered as events: on whatever day and
in whatever order, so the days of such searches are summed up again when those events come late.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from csrm_tasks.ingest.storage.behaviour import SESSION, known_products, span
from csrm_tasks.ingest.storage.days import mark_stale
from csrm_tasks.ingest.storage.window import LakeWindow
from csrm_tasks.store.engine import reading
from csrm_tasks.store.lake import EVENTS, SEARCHES, Lake, Stored
from csrm_tasks.store.lake_engines import Engine
from csrm_tasks.store.tables import FILES
from csrm_tasks.text import normalised, query_ids

if TYPE_CHECKING:
    from ibis import Table

SEARCH = ["locale", "search_id"]
SUMMED = [c for c in EVENTS if c not in ("own", "row")]  # columns that sums are made of
Known = Callable[[str, pl.Series], pl.Series]  # locale, product ids → those of the catalogue


@dataclass(frozen=True)
class Beside:
    """What else is known when a day is summed up."""

    events: Sequence[Stored] = ()  # event files of other days, of the time of the day's searches
    known: Known = lambda _, products: products
    since: datetime | None = None  # that time: of the first search …
    until: datetime | None = None  # … to a session after the last

    def of_the_time(self, events: Table) -> Table:
        """Leave out events of other times: which else a file holds must not matter."""
        return events.filter(events["at"].between(self.since, self.until))


def beside(connection: Connection, window: LakeWindow) -> Beside:
    """Look up what :func:`with_shown` needs of the window's day."""

    def known(locale: str, products: pl.Series) -> pl.Series:
        with reading(window.engine) as later:  # summing holds no connection
            return known_products(later, window.market, locale, products, window.day)

    here = (FILES.c.market == window.market, FILES.c.live)
    searches = sa.select(sa.func.min(FILES.c.first_at), sa.func.max(FILES.c.last_at)).where(
        *here, FILES.c.kind == "ubi_queries", FILES.c.day == window.day
    )
    first, last = connection.execute(searches).one()
    if first is None:
        return Beside(known=known)
    files = _other_events(connection, window, first, last + SESSION)
    return Beside(files, known, first, last + SESSION)


def _other_events(
    connection: Connection, window: LakeWindow, since: datetime, until: datetime
) -> list[Stored]:
    here = (FILES.c.market == window.market, FILES.c.live)
    statement = (
        sa.select(FILES.c.kind, FILES.c.day, FILES.c.locale, FILES.c.part)
        .where(*here, FILES.c.kind == "ubi_events", FILES.c.day != window.day)
        .where(FILES.c.first_at <= until, FILES.c.last_at >= since)
        .order_by(FILES.c.id)
    )
    return [Stored(*row) for row in connection.execute(statement)]


def with_shown(
    engine: Engine, lake: Lake, events: Table, searches: Table, besides: Beside, scratch: Path
) -> Table:
    """Return the events and the impressions that only their search's record tells."""
    if "hits" not in searches.columns:  # files of an earlier version
        return events
    listed = searches.select(*SEARCHES).filter(searches.hits.notnull())
    if engine.is_empty(listed):  # most logs: before anything is compared
        return events
    listed = _without_told(listed, events)
    if besides.events:
        paths = lake.paths(besides.events, scratch / "lake")
        listed = _without_told(listed, besides.of_the_time(engine.read("other_events", paths)))
    if engine.is_empty(listed):
        return events
    ranked = _ranked(listed)
    ranked = ranked.join(_texts(engine, ranked, scratch), ["locale", "query"])
    ranked = ranked.semi_join(_products(engine, ranked, besides.known, scratch), _PRODUCT)
    engine.write(ranked.select(*SUMMED), scratch / "shown.parquet")
    shown = engine.read("shown", [scratch / "shown.parquet"])
    shown = shown.mutate(position=shown.position.cast("int64"))  # Spark counts in 32 bits
    return events.select(*SUMMED).union(shown.select(*SUMMED))


_PRODUCT = ["locale", "product_id"]


def _without_told(listed: Table, events: Table) -> Table:
    """Leave out searches whose impressions are among ``events``.

    An identifier may be used again for another search. An event that has its text from its search
    tells which one; one that brings its own (or is of an earlier version, which does not say) may
    spell it otherwise and stands for every search of its identifier.
    """
    seen = events.filter(events.action == "impression")
    if "own" not in events.columns:
        return listed.anti_join(seen.select(SEARCH).distinct(), SEARCH)
    own = seen.own.fill_null(True)
    by_text = [*SEARCH, "query"]
    left = listed.anti_join(seen.filter(own).select(SEARCH).distinct(), SEARCH)
    return left.anti_join(seen.filter(~own).select(by_text).distinct(), by_text)


def _ranked(listed: Table) -> Table:
    """One row per search and product, at its first rank: the columns of EVENTS but query_id.

    An identifier stands for a search of each of its texts.
    """
    import ibis

    hits = listed.unnest("hits", offset="rank")
    hits = hits.filter(hits.hits.notnull()).rename(product_id="hits")
    key = [*SEARCH, "query"]
    rest = [c for c in listed.columns if c not in ("hits", *key)]
    return hits.group_by([*key, "product_id"]).agg(
        **{c: hits[c].min() for c in rest},
        position=hits["rank"].min() + 1,
        action=ibis.literal("impression"),
    )


def _texts(engine: Engine, ranked: Table, scratch: Path) -> Table:
    """Return locale, query and query_id of the texts asked for."""
    found = engine.fetch(ranked.select("locale", "query").distinct(), scratch / "texts.parquet")
    parts = [
        part.with_columns(query_ids(str(locale), normalised(part["query"])).alias("query_id"))
        for (locale,), part in found.group_by("locale")
    ]
    # Of searches that all found nothing there is no text.
    none = pl.DataFrame(schema=dict.fromkeys(("locale", "query", "query_id"), pl.String))
    return engine.give("texts", pl.concat([none, *parts]), scratch / "text_ids.parquet")


def _products(engine: Engine, ranked: Table, known: Known, scratch: Path) -> Table:
    """Return locale and product_id of what was shown and is in the catalogue."""
    found = engine.fetch(ranked.select(_PRODUCT).distinct(), scratch / "products.parquet")
    parts = [
        pl.DataFrame({"product_id": known(str(locale), part["product_id"])}).select(
            pl.lit(str(locale)).alias("locale"), "product_id"
        )
        for (locale,), part in found.group_by("locale")
    ]
    none = pl.DataFrame(schema=dict.fromkeys(_PRODUCT, pl.String))
    return engine.give("products", pl.concat([none, *parts]), scratch / "known.parquet")


def mark_shown(
    connection: Connection, window: LakeWindow, locale: str, events: pl.DataFrame
) -> None:
    """Have other days summed up again whose searches' impressions ``events`` tell, or told.

    ``events``: search_id, action and at, of rows that were stored or taken out.
    """
    told = events.filter(pl.col("action") == "impression")
    first, last = span(told, "at")
    if first is None or last is None:
        return
    ids = told["search_id"].unique()
    whose = pl.col("search_id").is_in(ids.implode()) & pl.col("hits").is_not_null()
    for file in _other_searches(connection, window, locale, (first, last)):
        if window.lake.read("ubi_queries", [file], ["search_id"], whose).height:
            mark_stale(connection, window.market, file.day)


def _other_searches(
    connection: Connection, window: LakeWindow, locale: str, when: tuple[datetime, datetime]
) -> list[Stored]:
    statement = (
        sa.select(FILES.c.kind, FILES.c.day, FILES.c.locale, FILES.c.part)
        .where(FILES.c.market == window.market, FILES.c.locale == locale, FILES.c.live)
        .where(FILES.c.kind == "ubi_queries", FILES.c.day != window.day)
        .where(FILES.c.first_at <= when[1], FILES.c.last_at >= when[0] - SESSION)
    )
    return [Stored(*row) for row in connection.execute(statement)]
