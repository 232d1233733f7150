"""Storing one validated file, exactly once: one transaction, or nothing happened."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import polars as pl
import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from csrm_tasks.errors import DataError
from csrm_tasks.ingest.behaviour import known_products, resolve_events, resolve_searches, span
from csrm_tasks.ingest.contracts import CONTRACTS, Reason
from csrm_tasks.ingest.identity import Outcome, refuse, resolve
from csrm_tasks.ingest.landing import Delivery
from csrm_tasks.ingest.records import RawOf
from csrm_tasks.ingest.validate import REJECTED, Judged
from csrm_tasks.store.bulk import insert
from csrm_tasks.store.engine import writing
from csrm_tasks.store.lake import TABLES, Lake, Stored
from csrm_tasks.store.tables import (
    FILES,
    LABELS,
    PRODUCTS,
    QUARANTINE,
    TRANSLATIONS,
    fetch_by_key,
)

SQL_TABLES = {"catalogue": PRODUCTS, "labels": LABELS, "translations": TRANSLATIONS}


@dataclass(frozen=True)
class Receipt:
    """What became of a file's rows; ``rows_in == stored + quarantined + known``."""

    name: str
    locale: str
    kind: str
    digest: str
    rows_in: int
    stored: int
    quarantined: int
    known: int
    fault: str | None

    def as_json(self) -> dict[str, Any]:
        """Return the fields, for receipt.json."""
        return asdict(self)


@dataclass(frozen=True)
class Window:
    """Where a file is stored: a market and one day of it."""

    engine: Engine
    lake: Lake
    market: str
    day: str


def load_file(window: Window, file: Delivery, judged: Judged, raw_of: RawOf) -> Receipt:
    """Store one file, or return what was recorded when it was; ``raw_of`` gives rows' bytes.

    Whoever holds the market's write lock looks the file up first, so two processes that load it at
    once end as one.
    """
    with writing(window.engine, window.market) as connection:
        found = _recorded(connection, window, file)
        return found or _store(connection, window, file, judged, raw_of)


def _recorded(connection: Connection, window: Window, file: Delivery) -> Receipt | None:
    row = connection.execute(
        sa.select(FILES).where(
            FILES.c.market == window.market, FILES.c.day == window.day,
            FILES.c.locale == file.locale, FILES.c.kind == file.kind, FILES.c.digest == file.digest,
        )
    ).mappings().first()  # fmt: skip
    return Receipt(**{c: row[c] for c in Receipt.__annotations__}) if row else None


def _store(
    connection: Connection, window: Window, file: Delivery, judged: Judged, raw_of: RawOf
) -> Receipt:
    outcome = _outcome(connection, window, file, judged.clean)
    raw = pl.Series("raw", raw_of(outcome.refused["row"].to_list()), dtype=pl.Binary)
    rejected = pl.concat(
        [judged.rejected, outcome.refused.with_columns(raw).select(list(REJECTED))]
    )
    rows_in = judged.clean.height + judged.rejected.height
    receipt = Receipt(
        file.name, file.locale, file.kind, file.digest, rows_in, outcome.stored.height,
        rejected.height, outcome.known, judged.fault,
    )  # fmt: skip
    if rows_in != receipt.stored + receipt.quarantined + receipt.known:
        raise DataError(f"{file.name}: {rows_in} rows in, but {receipt} accounts for fewer or more")
    first, last = span(outcome.stored, "at") if file.kind in TABLES else (None, None)
    part = file.digest if file.kind in TABLES else None
    place = {"market": window.market, "day": window.day, "first_at": first, "last_at": last}
    added = connection.execute(sa.insert(FILES).values(**receipt.as_json(), **place, part=part))
    assert added.inserted_primary_key is not None
    file_id = added.inserted_primary_key[0]
    insert(connection, QUARANTINE, rejected.with_columns(pl.lit(file_id).alias("file_id")))
    _write_rows(connection, window, file, outcome.stored, file_id)
    return receipt


def _write_rows(
    connection: Connection, window: Window, file: Delivery, stored: pl.DataFrame, file_id: int
) -> None:
    if file.kind in TABLES:
        place = Stored(file.kind, window.day, file.locale, file.digest)
        window.lake.write(place, stored)  # before the commit that makes it count
        return
    into = SQL_TABLES[file.kind]
    if into is PRODUCTS:
        _delete_same_day(connection, window, file.locale, stored["product_id"].to_list())
    about = {"market": window.market, "day": window.day, "locale": file.locale, "file_id": file_id}
    insert(
        connection,
        into,
        stored.drop("row").with_columns(pl.lit(v).alias(c) for c, v in about.items()),
    )


def _delete_same_day(
    connection: Connection, window: Window, locale: str, products: list[str]
) -> None:
    """Make room for a second delivery of products within one day: the later file wins."""
    statement = sa.delete(PRODUCTS).where(
        PRODUCTS.c.market == window.market, PRODUCTS.c.locale == locale,
        PRODUCTS.c.day == window.day, PRODUCTS.c.product_id == sa.bindparam("product"),
    )  # fmt: skip
    if products:
        connection.execute(statement, [{"product": p} for p in products])


def _outcome(
    connection: Connection, window: Window, file: Delivery, clean: pl.DataFrame
) -> Outcome:
    if clean.is_empty() and file.kind not in TABLES:
        return Outcome(clean, 0, refuse(clean, Reason.CONFLICT, ""))
    here = (connection, window.lake, window.market, file.locale, clean)
    judges: dict[str, Callable[[], Outcome]] = {
        "catalogue": lambda: _products(connection, window, file.locale, clean),
        "translations": lambda: _by_id(connection, window, file, clean),
        "labels": lambda: _labels(connection, window, file, clean),
        "ubi_queries": lambda: resolve_searches(*here),
        "ubi_events": lambda: resolve_events(*here),
    }
    return judges[file.kind]()


def _labels(connection: Connection, window: Window, file: Delivery, clean: pl.DataFrame) -> Outcome:
    products = known_products(connection, window.market, file.locale, clean["product_id"])
    has_product = pl.col("product_id").is_in(products.implode())
    found = _by_id(connection, window, file, clean.filter(has_product))
    unknown = refuse(clean.filter(~has_product), Reason.PRODUCT, "product_id")
    return Outcome(found.stored, found.known, pl.concat([found.refused, unknown]).sort("row"))


def _by_id(connection: Connection, window: Window, file: Delivery, clean: pl.DataFrame) -> Outcome:
    """Judge rows whose first column is an identifier within the market."""
    into = SQL_TABLES[file.kind]
    schema = {c.name: c.dtype for c in CONTRACTS[file.kind].columns} | {"locale": pl.String}
    key, *content = schema
    statement = sa.select(*(into.c[c] for c in schema)).where(into.c.market == window.market)
    ids = clean[key].unique().sort().to_list()
    existing = fetch_by_key(connection, statement, into.c[key], ids, schema)
    here = clean.with_columns(pl.lit(file.locale).alias("locale"))
    found = resolve(here, existing, key, content)
    return Outcome(found.stored.select(clean.columns), found.known, found.refused)


def _products(connection: Connection, window: Window, locale: str, clean: pl.DataFrame) -> Outcome:
    """Judge product rows: another content than the latest version's is a new version."""
    schema = {c.name: c.dtype for c in CONTRACTS["catalogue"].columns}
    key, *content = schema
    within = resolve(clean, pl.DataFrame(schema=schema), key, content)
    statement = (
        sa.select(*(PRODUCTS.c[c] for c in schema), PRODUCTS.c.day)
        .where(PRODUCTS.c.market == window.market, PRODUCTS.c.locale == locale)
        .where(PRODUCTS.c.day <= window.day)
    )
    ids = within.stored[key].to_list()
    versions = fetch_by_key(
        connection, statement, PRODUCTS.c.product_id, ids, schema | {"day": pl.String}
    )
    latest = versions.sort("day").unique(key, keep="last").select(list(schema))
    stored = within.stored.join(latest, on=list(schema), how="anti", maintain_order="left")
    return Outcome(stored, clean.height - stored.height - within.refused.height, within.refused)
