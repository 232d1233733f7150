"""What becomes of a file's clean rows: new, known already, or refused for what they refer to."""

from __future__ import annotations

from collections.abc import Callable

import polars as pl
import sqlalchemy as sa
from sqlalchemy.engine import Connection, RowMapping

from csrm_tasks.ingest.behaviour import known_products, resolve_events, resolve_searches
from csrm_tasks.ingest.contracts import CONTRACTS, Reason
from csrm_tasks.ingest.identity import Outcome, refuse, resolve
from csrm_tasks.ingest.window import Window
from csrm_tasks.store.lake import TABLES
from csrm_tasks.store.tables import LABELS, PRODUCTS, TRANSLATIONS, fetch, fetch_by_key

SQL_TABLES = {"catalogue": PRODUCTS, "labels": LABELS, "translations": TRANSLATIONS}


def resolve_rows(
    connection: Connection, window: Window, kind: str, locale: str, clean: pl.DataFrame
) -> Outcome:
    """Judge clean rows of one kind against what the store holds for the window's day."""
    if clean.is_empty() and kind not in TABLES:
        return Outcome(clean, 0, refuse(clean, Reason.CONFLICT, ""))
    here = (connection, window.lake, window.market, locale, clean)
    judges: dict[str, Callable[[], Outcome]] = {
        "catalogue": lambda: _products(connection, window, locale, clean),
        "translations": lambda: _by_id(connection, window, kind, locale, clean),
        "labels": lambda: _labels(connection, window, locale, clean),
        "ubi_queries": lambda: resolve_searches(*here),
        "ubi_events": lambda: resolve_events(*here),
    }
    return judges[kind]()


def resolve_again(
    connection: Connection, window: Window, file: RowMapping, clean: pl.DataFrame
) -> Outcome:
    """Judge rows of a stored file anew; a product yields to what its own file says already."""
    if file["kind"] != "catalogue":
        return resolve_rows(connection, window, file["kind"], file["locale"], clean)
    schema = {c.name: c.dtype for c in CONTRACTS["catalogue"].columns}
    key, *content = schema
    own = sa.select(*(PRODUCTS.c[c] for c in schema)).where(
        PRODUCTS.c.market == window.market, PRODUCTS.c.locale == file["locale"],
        PRODUCTS.c.day == window.day, PRODUCTS.c.file_id == file["id"],
    )  # fmt: skip
    within = resolve(clean, fetch(connection, own, schema), key, content)
    found = resolve_rows(connection, window, "catalogue", file["locale"], within.stored)
    refused = pl.concat([within.refused, found.refused]).sort("row")
    return Outcome(found.stored, within.known + found.known, refused)


def _labels(connection: Connection, window: Window, locale: str, clean: pl.DataFrame) -> Outcome:
    products = known_products(connection, window.market, locale, clean["product_id"])
    has_product = pl.col("product_id").is_in(products.implode())
    found = _by_id(connection, window, "labels", locale, clean.filter(has_product))
    unknown = refuse(clean.filter(~has_product), Reason.PRODUCT, "product_id")
    return Outcome(found.stored, found.known, pl.concat([found.refused, unknown]).sort("row"))


def _by_id(
    connection: Connection, window: Window, kind: str, locale: str, clean: pl.DataFrame
) -> Outcome:
    """Judge rows whose first column is an identifier within the market."""
    into = SQL_TABLES[kind]
    schema = {c.name: c.dtype for c in CONTRACTS[kind].columns} | {"locale": pl.String}
    key, *content = schema
    statement = sa.select(*(into.c[c] for c in schema)).where(into.c.market == window.market)
    existing = fetch_by_key(connection, statement, into.c[key], clean[key], schema)
    here = clean.with_columns(pl.lit(locale).alias("locale"))
    found = resolve(here, existing, key, content)
    return Outcome(found.stored.select(clean.columns), found.known, found.refused)


def _products(connection: Connection, window: Window, locale: str, clean: pl.DataFrame) -> Outcome:
    """Judge product rows: another content than the latest version's is a new version."""
    schema = {c.name: c.dtype for c in CONTRACTS["catalogue"].columns}
    key, *content = schema
    within = resolve(clean, pl.DataFrame(schema=schema), key, content)
    order = {"day": pl.String, "file_id": pl.Int64}
    statement = (
        sa.select(*(PRODUCTS.c[c] for c in (*schema, *order)))
        .where(PRODUCTS.c.market == window.market, PRODUCTS.c.locale == locale)
        .where(PRODUCTS.c.day <= window.day)
    )
    ids = within.stored[key]
    versions = fetch_by_key(connection, statement, PRODUCTS.c.product_id, ids, schema | order)
    latest = versions.sort(*order).unique(key, keep="last").select(list(schema))
    stored = within.stored.join(latest, on=list(schema), how="anti", maintain_order="left")
    return Outcome(stored, clean.height - stored.height - within.refused.height, within.refused)
