"""What becomes of a file's clean rows: new, known already, or refused for what they refer to.

Files have one order, whenever they came: by day, kind and name. A file is judged by those before
it in that order: the first that says something of an identifier counts, a product or a search that
a later day brings is not known yet.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import polars as pl
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from csrm_tasks.ingest.contract.contracts import CONTRACTS, Reason
from csrm_tasks.ingest.contract.identity import Outcome, refuse, resolve
from csrm_tasks.ingest.storage.behaviour import known_products, resolve_events, resolve_searches
from csrm_tasks.ingest.storage.rows import SQL_TABLES
from csrm_tasks.ingest.storage.window import LakeWindow
from csrm_tasks.store.bulk import among
from csrm_tasks.store.lake import TABLES
from csrm_tasks.store.tables import FILES, PRODUCTS, fetch, fetch_by_key

KINDS = list(CONTRACTS)


@dataclass(frozen=True)
class About:
    """Which file rows are of; what they refer to was delivered up to the day ``until``."""

    kind: str
    locale: str
    name: str
    until: str


def about(file: Mapping[Any, Any]) -> About:
    """Return what a row of FILES says of its rows."""
    until = file["judged_until"] or file["day"]
    return About(file["kind"], file["locale"], file["name"], until)


def rank(file: Mapping[Any, Any]) -> tuple[str, int, str]:
    """Return where a row of FILES stands in the order of files."""
    return file["day"], KINDS.index(file["kind"]), file["name"]


def resolve_rows(
    connection: Connection, window: LakeWindow, file: About, clean: pl.DataFrame
) -> Outcome:
    """Judge clean rows of a file of the window's day by what the store holds.

    Of the same kind, the store may hold nothing of the rows' identifiers that a file after this one
    in the order of files has said; versions of products are told apart by their day.
    """
    kind, locale = file.kind, file.locale
    if clean.is_empty() and kind not in TABLES:
        return Outcome(clean, 0, refuse(clean, Reason.CONFLICT, ""))
    judges: dict[str, Callable[[], Outcome]] = {
        "catalogue": lambda: _products(connection, window, file, clean),
        "translations": lambda: _by_id(connection, window, kind, locale, clean),
        "labels": lambda: _labels(connection, window, file, clean),
        "query_categories": lambda: _by_id(connection, window, kind, locale, clean),
        "ubi_queries": lambda: resolve_searches(connection, window, locale, clean),
        "ubi_events": lambda: resolve_events(connection, window, locale, file.until, clean),
    }
    return judges[kind]()


def _labels(
    connection: Connection, window: LakeWindow, file: About, clean: pl.DataFrame
) -> Outcome:
    products = known_products(
        connection, window.market, file.locale, clean["product_id"], file.until
    )
    has_product = clean["product_id"].is_in(products.implode())
    found = _by_id(connection, window, "labels", file.locale, clean.filter(has_product))
    unknown = refuse(clean.filter(~has_product), Reason.PRODUCT, "product_id")
    return Outcome(found.stored, found.known, pl.concat([found.refused, unknown]).sort("row"))


def _by_id(
    connection: Connection, window: LakeWindow, kind: str, locale: str, clean: pl.DataFrame
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


def _products(
    connection: Connection, window: LakeWindow, file: About, clean: pl.DataFrame
) -> Outcome:
    """Judge product rows: another content than the latest version's is a new version."""
    schema = {c.name: c.dtype for c in CONTRACTS["catalogue"].columns}
    key, *content = schema
    within = resolve(clean, pl.DataFrame(schema=schema), key, content)
    latest = _latest(connection, window, file, within.stored[key], schema)
    stored = within.stored.join(latest, on=list(schema), how="anti", maintain_order="left")
    return Outcome(stored, clean.height - stored.height - within.refused.height, within.refused)


def _latest(
    connection: Connection, window: LakeWindow, file: About, ids: pl.Series, schema: dict[str, Any]
) -> pl.DataFrame:
    """Return the versions (``schema``) that hold before ``file``, in the order of files."""
    order = {"day": pl.String, "file_id": pl.Int64}
    statement = (
        sa.select(*(PRODUCTS.c[c] for c in (*schema, *order)))
        .where(PRODUCTS.c.market == window.market, PRODUCTS.c.locale == file.locale)
        .where(PRODUCTS.c.day <= window.day)
    )
    versions = fetch_by_key(connection, statement, PRODUCTS.c.product_id, ids, schema | order)
    named = versions.join(_names(connection, versions["file_id"]), on="file_id", how="left")
    before = (pl.col("day") < window.day) | (pl.col("name") < file.name)
    ordered = named.filter(before).sort("day", "name")
    return ordered.unique("product_id", keep="last").select(list(schema))


def _names(connection: Connection, files: pl.Series) -> pl.DataFrame:
    """Return file_id and name of files: a few for each day that has versions still."""
    schema = {"file_id": pl.Int64, "name": pl.String}
    with among(connection, FILES.c.id, files.unique()) as chosen:
        return fetch(connection, sa.select(FILES.c.id, FILES.c.name).where(chosen), schema)
