"""Which products a market still offers: some leave, and come back.

One leaves by a row that says so (``deleted``), or by not being in a delivery of the whole catalogue
of its locale: the files of a day whose part begins with ``full``. It is there again as soon as any
later delivery names it, whether it says something new of it or not. Everything here follows from
what was delivered, whenever it came (decision record 6).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from csrm_tasks.ingest.storage.rows import read_unstored, table_keys
from csrm_tasks.ingest.storage.window import LakeWindow
from csrm_tasks.store.lake import Lake
from csrm_tasks.store.tables import FILES

FULL = re.compile(r"catalogue-full(?![A-Za-z])")
Row = Mapping[Any, Any]  # of FILES


def offered(
    connection: Connection, lake: Lake, market: str, days: Sequence[str], latest: pl.DataFrame
) -> pl.DataFrame:
    """Return those of the products that are offered after ``days``, in the same order.

    ``latest``: the last version of each (locale, product_id, deleted, …).
    """
    kept = latest.filter(pl.col("deleted") == 0)
    for locale in latest["locale"].unique().sort():
        files = _catalogues(connection, market, days, locale)
        named = _named_since_full(connection, lake, market, files)
        if named is not None:
            there = pl.col("product_id").is_in(named.implode())
            kept = kept.filter((pl.col("locale") != locale) | there)
    return kept


def _catalogues(connection: Connection, market: str, days: Sequence[str], locale: str) -> list[Row]:
    statement = sa.select(FILES).where(
        FILES.c.market == market, FILES.c.locale == locale, FILES.c.kind == "catalogue",
        FILES.c.live, FILES.c.day.in_(days),
    )  # fmt: skip
    return list(connection.execute(statement.order_by(FILES.c.day.desc())).mappings())


def _named_since_full(
    connection: Connection, lake: Lake, market: str, files: Sequence[Row]
) -> pl.Series | None:
    """Return the identifiers in the last whole catalogue and in what came after it; None where
    there was none. ``files``: the last day first.
    """
    days = dict.fromkeys(f["day"] for f in files if _is_full(f))
    named: list[pl.Series] = []
    for day in dict.fromkeys(f["day"] for f in files):
        if not days:
            return None
        seen = {f["id"]: _ids(connection, lake, market, f) for f in files if f["day"] == day}
        named += seen.values()
        whole = [f for f in files if f["day"] == day and _is_full(f)]
        if whole and all(_is_whole(f, seen[f["id"]]) for f in whole):
            return pl.concat(named).unique()
        days.pop(day, None)
    return None


def _is_full(file: Row) -> bool:
    return FULL.match(file["name"].partition("/")[2]) is not None


def _is_whole(file: Row, ids: pl.Series) -> bool:
    """Return whether every row of a file says which product it is: one that is set aside for what
    it says itself may be any, and then nothing can be told from what the file lacks.
    """
    return bool(0 < file["rows_in"] == len(ids))


def _ids(connection: Connection, lake: Lake, market: str, file: Row) -> pl.Series:
    """Return the identifier of each good row of a file."""
    window = LakeWindow(connection.engine, lake, market, file["day"])
    stored = table_keys(connection, market, file, "product_id")
    return pl.concat([stored, read_unstored(window, file)["product_id"]])
