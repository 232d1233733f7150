"""The register of sides: which texts earlier snapshots held for train, dev or gold (A10).

A text's side is decided by the first snapshot that judges it, and stays: whatever comes later, in
whichever order, however often a week is run or replayed. So gold never holds what an earlier
release can have learnt from, and neither dev nor train wanders. The register is append-only, lies
in the store, and is written before the snapshot exists: retention of artifacts does not touch it,
and a run that was killed in between finds its own sides again.
"""

from __future__ import annotations

from collections.abc import Iterable

import polars as pl
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from csrm_tasks.store import bulk
from csrm_tasks.store.tables import SIDES, fetch
from csrm_tasks.text import query_ids

SCHEMA = {"text": pl.String, "side": pl.String}
ANY = "*"  # locale of a text's digest: a text typed alike in two languages is one


def text_ids(norms: pl.Series) -> pl.Series:
    """Return the digests of normalised texts, as ``text``."""
    return query_ids(ANY, norms).alias("text")


def known_sides(connection: Connection, market: str) -> pl.DataFrame:
    """Return text and side of every text that a snapshot of the market held."""
    statement = sa.select(SIDES.c.text, SIDES.c.side).where(SIDES.c.market == market)
    return fetch(connection, statement, SCHEMA)


def held_out_texts(connection: Connection, market: str) -> list[str]:
    """Return the texts, as digests, that any snapshot held for dev or gold, sorted."""
    known = known_sides(connection, market)
    return known.filter(pl.col("side") != "train")["text"].sort().to_list()


def sides_of(pairs: pl.DataFrame) -> pl.DataFrame:
    """Return text and side of judged pairs (norm, split), one row per text."""
    sides = pairs.select("norm", side="split").unique().sort("norm", "side")
    return sides.select(text_ids(sides["norm"]), "side")


def keep_sides(connection: Connection, market: str, sides: pl.DataFrame, snapshot: str) -> bool:
    """Add the texts of ``sides`` (text, side) that are new; False, and nothing done, on a conflict.

    It conflicts where another snapshot has put a text on another side meanwhile.
    """
    there = sides.join(known_sides(connection, market).rename({"side": "held"}), "text", "left")
    if there.filter(pl.col("side") != pl.col("held")).height:
        return False
    new = there.filter(pl.col("held").is_null()).with_columns(snapshot=pl.lit(snapshot))
    add_sides(connection, market, new)
    return True


def add_sides(connection: Connection, market: str, new: pl.DataFrame) -> None:
    """Insert rows of text, side and snapshot."""
    rows = new.select(pl.lit(market).alias("market"), "text", "side", "snapshot")
    bulk.insert(connection, SIDES, rows)


def first_sides(snapshots: Iterable[tuple[str, pl.DataFrame]]) -> pl.DataFrame:
    """Return text, side and snapshot from earlier ones (reference; text, side), oldest first.

    What any of them held for train or dev is no gold, even if another, made by the calendar as
    snapshots once were, held it for gold.
    """
    empty = pl.DataFrame(schema=SCHEMA | {"snapshot": pl.String})
    rows = [sides.with_columns(snapshot=pl.lit(ref)) for ref, sides in snapshots]
    ordered = pl.concat([empty, *rows]).sort(pl.col("side") == "gold", maintain_order=True)
    return ordered.unique("text", keep="first", maintain_order=True)
