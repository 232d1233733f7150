"""Reading what published days hold; each function reads only the locales it is asked for (A9)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import polars as pl
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from csrm_tasks.dataset.offer import offered
from csrm_tasks.errors import DataError
from csrm_tasks.ingest.storage.days import UNPUBLISHED, behaviour_files, day_state, position_file
from csrm_tasks.store.lake import POSITIONS, Lake
from csrm_tasks.store.tables import (
    AGGREGATES,
    CATEGORY_LABELS,
    DAYS,
    FILES,
    LABELS,
    PRODUCTS,
    TRAFFIC,
    TRANSLATIONS,
    fetch,
)
from csrm_tasks.text import REDEFINED, query_id

COUNTS = ("impressions", "clicks", "carts", "purchases", "position_sum", "positions", "skips")


def published_days(connection: Connection, market: str, until: str) -> dict[str, str]:
    """Return day → digest of the published days up to ``until``, in order."""
    statement = (
        sa.select(DAYS.c.day, DAYS.c.digest)
        .where(DAYS.c.market == market, DAYS.c.day <= until, DAYS.c.digest != UNPUBLISHED)
        .order_by(DAYS.c.day)
    )
    return {day: digest for day, digest in connection.execute(statement)}


def check_days(connection: Connection, market: str, days: dict[str, str]) -> None:
    """Raise :class:`DataError` when a day holds more than was published, or none is there."""
    if not days:
        raise DataError(f"market {market} has no published day in the window: run ingest first")
    for day, digest in days.items():
        if day_state(connection, market, day).digest != digest:
            raise DataError(f"{market} {day}: files were added since; run publish_day for it again")


def files(
    connection: Connection, market: str, days: Sequence[str], locales: Sequence[str]
) -> pl.DataFrame:
    """Return the deliveries that count and were read: everything of ``locales``, and of others the
    catalogue and translations.
    """
    schema: dict[str, Any] = dict.fromkeys(("day", "locale", "kind", "name", "digest"), pl.String)
    schema |= dict.fromkeys(("rows_in", "quarantined", "known", "ignored"), pl.Int64)
    schema |= {"last_at": pl.Datetime("us", "UTC")}
    statement = sa.select(*(FILES.c[c] for c in schema)).where(
        FILES.c.market == market,
        FILES.c.day.in_(days),
        FILES.c.live,
        FILES.c.locale.in_(locales) | FILES.c.kind.in_(("catalogue", "translations")),
    )
    return fetch(connection, statement, schema).sort("day", "locale", "kind", "name")


def product_versions(connection: Connection, market: str, days: Sequence[str]) -> pl.DataFrame:
    """Return every version of every product, all locales: the PRODUCTS columns, ``deleted`` and
    ``day``.

    Versions of one product are in the order of the files they came in, the latest day last.
    """
    names = ("product_id", "locale", "title", "brand", "category", "description")
    return _versions(connection, names, PRODUCTS.c.market == market, PRODUCTS.c.day.in_(days))


def catalogue(
    connection: Connection, lake: Lake, market: str, days: Sequence[str], locale: str
) -> pl.DataFrame:
    """Return the last version of each product that one locale offers, sorted.

    Columns: product_id, title, brand, category.
    """
    names = ("product_id", "title", "brand", "category")
    here = (PRODUCTS.c.market == market, PRODUCTS.c.day.in_(days), PRODUCTS.c.locale == locale)
    latest = latest_products(_versions(connection, (*names, "locale"), *here))
    return offered(connection, lake, market, days, latest).select(names)


def _versions(
    connection: Connection, names: Sequence[str], *where: sa.ColumnElement[bool]
) -> pl.DataFrame:
    schema: dict[str, Any] = dict.fromkeys((*names, "day"), pl.String) | {"deleted": pl.Int8}
    statement = (
        sa.select(*(PRODUCTS.c[c] for c in schema), FILES.c.name.label("file"))
        .join(FILES, FILES.c.id == PRODUCTS.c.file_id)
        .where(*where)
    )
    versions = fetch(connection, statement, schema | {"file": pl.String})
    return versions.sort("locale", "product_id", "day", "file").drop("file")


def latest_products(versions: pl.DataFrame) -> pl.DataFrame:
    """Return the last version of every product, whether it is offered still or not."""
    latest = versions.unique(["locale", "product_id"], keep="last", maintain_order=True)
    return latest.drop("day")


def ratings(
    connection: Connection, market: str, days: Sequence[str], locales: Sequence[str]
) -> pl.DataFrame:
    """Return the labels of some locales, one row per rating, in the order of their delivery."""
    texts = ("label_id", "day", "locale", "query", "product_id", "rater_id", "guideline_version")
    schema: dict[str, Any] = dict.fromkeys(texts, pl.String)
    schema |= {"grade": pl.Int8, "rated_at": pl.Datetime("us", "UTC"), "held_out": pl.Int8}
    place = {"name": pl.String, "row": pl.Int64}
    statement = (
        sa.select(*(LABELS.c[c] for c in schema), FILES.c.name, LABELS.c.row)
        .join(FILES, FILES.c.id == LABELS.c.file_id)
        .where(LABELS.c.market == market, LABELS.c.locale.in_(locales), LABELS.c.day.in_(days))
    )
    return fetch(connection, statement, schema | place).sort("day", *place, "label_id").drop(*place)


def category_ratings(
    connection: Connection, market: str, days: Sequence[str], locales: Sequence[str]
) -> pl.DataFrame:
    """Return the answers of the query-category task as :func:`ratings` does: 1 or 0 as ``grade``,
    and ``category`` in place of a product.
    """
    own = CATEGORY_LABELS.c
    texts = ("label_id", "day", "locale", "query", "category", "rater_id", "guideline_version")
    schema: dict[str, Any] = dict.fromkeys(texts, pl.String)
    schema |= {"grade": pl.Int8, "rated_at": pl.Datetime("us", "UTC")}
    place = {"name": pl.String, "row": pl.Int64}
    statement = (
        sa.select(*(own[c] for c in texts), own.label, own.rated_at, FILES.c.name, own.row)
        .join(FILES, FILES.c.id == own.file_id)
        .where(own.market == market, own.locale.in_(locales), own.day.in_(days))
    )
    return fetch(connection, statement, schema | place).sort("day", *place, "label_id").drop(*place)


def translations(connection: Connection, market: str, days: Sequence[str]) -> pl.DataFrame:
    """Return the distinct pairs of texts: kind, source_text, target_text, and the ``locale`` in
    whose folder they were delivered.
    """
    names = ("kind", "source_text", "target_text", "locale")
    statement = (
        sa.select(*(TRANSLATIONS.c[c] for c in names))
        .where(TRANSLATIONS.c.market == market, TRANSLATIONS.c.day.in_(days))
        .distinct()
    )
    return fetch(connection, statement, dict.fromkeys(names, pl.String)).sort(names)


def aggregates(
    connection: Connection, market: str, days: Sequence[str], locale: str
) -> pl.DataFrame:
    """Return the daily sums of one locale: one row per day, query and product.

    Without days nothing is asked: not even whether the locale has any (A9).
    """
    texts = ("locale", "day", "query_id", "query", "product_id")
    schema: dict[str, Any] = dict.fromkeys(texts, pl.String) | dict.fromkeys(COUNTS, pl.Int64)
    if not days:
        return pl.DataFrame(schema=schema)
    statement = sa.select(*(AGGREGATES.c[c] for c in schema)).where(
        AGGREGATES.c.market == market,
        AGGREGATES.c.locale == locale,
        AGGREGATES.c.day.in_(days),
    )
    found = fetch(connection, statement, schema)
    named = _with_current_ids(found)
    if named is not found:  # two spellings of one query may have become one
        key = ["locale", "day", "query_id", "product_id"]
        most = pl.col("query").sort_by(-pl.col("impressions"), "query").first()
        named = named.group_by(key).agg(most, pl.col(COUNTS).sum()).select(found.columns)
    return named.sort(texts)


def summed(connection: Connection, market: str, days: Sequence[str], locale: str) -> pl.DataFrame:
    """Return sums over all ``days`` of one locale: one row per query as typed and product.

    Summed where they lie: what is fetched grows with the pairs there are, and not with the days.
    """
    texts = ("locale", "query_id", "query", "product_id")
    key = [AGGREGATES.c[c] for c in texts]
    sums = [sa.cast(sa.func.sum(AGGREGATES.c[c]), sa.BigInteger).label(c) for c in COUNTS]
    found = _grouped(connection, market, days, locale, key, sums)
    return _with_current_ids(found).sort(texts)


def shown(connection: Connection, market: str, days: Sequence[str], locale: str) -> pl.DataFrame:
    """Return what was asked on each day: locale, day, query_id, query, impressions, positions."""
    texts = ("locale", "day", "query_id", "query")
    key = [AGGREGATES.c[c] for c in texts]
    counts = (AGGREGATES.c.impressions, AGGREGATES.c.positions)
    sums = [sa.cast(sa.func.sum(c), sa.BigInteger).label(c.name) for c in counts]
    found = _grouped(connection, market, days, locale, key, sums)
    return _with_current_ids(found).sort(texts)


def traffic(
    connection: Connection, market: str, days: Sequence[str], locales: Sequence[str]
) -> pl.DataFrame:
    """Return what each day delivered and its sums leave out: locale, day and the counts."""
    counts = ("events", "searches", "machines", "machine_events", "machine_searches", "over_bound")
    schema: dict[str, Any] = {"locale": pl.String, "day": pl.String}
    schema |= dict.fromkeys(counts, pl.Int64)
    statement = sa.select(*(TRAFFIC.c[c] for c in schema)).where(
        TRAFFIC.c.market == market, TRAFFIC.c.day.in_(days), TRAFFIC.c.locale.in_(locales)
    )
    return fetch(connection, statement, schema).sort("locale", "day")


def _with_current_ids(log: pl.DataFrame) -> pl.DataFrame:
    """Return ``log`` (locale, query_id, query, …) with the identifiers that its queries have now.

    A day's sums hold those of the code that made them, and that knew fewer spellings of a query.
    """
    odd = pl.col("query").str.contains(REDEFINED)
    stale = log.select("locale", "query").filter(odd).unique()
    if stale.is_empty():
        return log
    made = [query_id(*row) for row in stale.iter_rows()]
    fresh = stale.with_columns(pl.Series("made", made, pl.String))
    joined = log.join(fresh, on=["locale", "query"], how="left", maintain_order="left")
    return joined.with_columns(query_id=pl.coalesce("made", "query_id")).drop("made")


def _grouped(
    connection: Connection,
    market: str,
    days: Sequence[str],
    locale: str,
    key: Sequence[sa.Column[Any]],
    sums: Sequence[sa.Label[Any]],
) -> pl.DataFrame:
    statement = (
        sa.select(*key, *sums)
        .where(AGGREGATES.c.market == market, AGGREGATES.c.locale == locale)
        .where(AGGREGATES.c.day.in_(days))
        .group_by(*key)
    )
    schema: dict[str, Any] = {c.name: pl.String for c in key} | {s.name: pl.Int64 for s in sums}
    return fetch(connection, statement, schema)


def positions(
    connection: Connection, lake: Lake, market: str, locale: str, day: str
) -> pl.DataFrame:
    """Return a day's counts by position of one locale, where one was logged: POSITIONS."""
    file = position_file(behaviour_files(connection, market, day))
    here = (pl.col("locale") == locale) & pl.col("position").is_not_null()
    return lake.read("positions", [file], list(POSITIONS), here).cast(POSITIONS)  # type: ignore[arg-type]
