"""Generated nights for the benchmarks: lake files as an established shop's log would fill them.

Queries and products follow Zipf's law; a page shows twenty of a query's sixty candidates, the good
ones mostly on top; a result is looked at with probability rank^-0.8.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from csrm_tasks.store.lake import EVENTS, SEARCHES, Lake, Stored

Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
DAY = "2026-01-04"
LOCALE = "zh-TW"
PAGE, CANDIDATES = 20, 60
QUERIES, PRODUCTS = 300_000, 500_000
EVENTS_PER_SEARCH = 21.1  # the page, and what is done with it


def write_night(root: Path, events: int, files: int = 24, seed: int = 0) -> list[Stored]:
    """Write about ``events`` events and their searches as ``files`` deliveries each."""
    lake = Lake(str(root), "bench")
    searches = round(events / EVENTS_PER_SEARCH / files)
    made = []
    for number in range(files):
        asked, happened = hour(searches, number, np.random.default_rng([seed, number]))
        for kind, frame in (("ubi_queries", asked), ("ubi_events", happened)):
            file = Stored(kind, DAY, LOCALE, f"{number:064d}")
            lake.write(file, frame)
            made.append(file)
    return made


def hour(
    searches: int,
    number: int,
    rng: np.random.Generator,
    day: str = DAY,
    products: int = PRODUCTS,
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Return the searches and events of the ``number``-th hour of a day."""
    share = np.cumsum(1.0 / np.arange(1, QUERIES + 1))  # Zipf
    query = np.searchsorted(share, rng.random(searches) * share[-1])  # (S,)
    liking = -0.15 * np.arange(CANDIDATES) + rng.gumbel(size=(searches, CANDIDATES)) * 0.6
    shown = np.argsort(-liking, axis=1)[:, :PAGE]  # (S, PAGE) ranks among the candidates
    product = (query[:, None] * 7919 + shown**2 * 104_729 + shown) % products
    looked = rng.random(shown.shape) < (1.0 + np.arange(PAGE)) ** -0.8
    clicked = looked & (rng.random(shown.shape) < 0.25 * 0.97**shown)
    carted = clicked & (rng.random(shown.shape) < 0.3)
    bought = carted & (rng.random(shown.shape) < 0.4)
    asked = _searches(query, number, rng, day)
    parts = [_events(asked, product, mask, action) for mask, action in (
        (np.ones_like(looked), "impression"), (clicked, "click"), (carted, "add_to_cart"),
        (bought, "purchase"),
    )]  # fmt: skip
    asked = asked.with_columns(pl.lit(None, dtype=SEARCHES["hits"]).alias("hits"))
    events = _numbered(pl.concat(parts)).with_columns(pl.lit(False).alias("own"))
    return _numbered(asked).select(list(SEARCHES)), events.select(list(EVENTS))


def _numbered(rows: pl.DataFrame) -> pl.DataFrame:
    """Number rows as those of a delivered file."""
    return rows.with_columns(pl.int_range(1, pl.len() + 1).alias("row"))


def _searches(query: Ints, number: int, rng: np.random.Generator, day: str) -> pl.DataFrame:
    n = len(query)
    began = datetime.fromisoformat(day).replace(tzinfo=UTC) + timedelta(hours=number)
    session = np.sort(rng.integers(0, max(1, int(n / 1.6)), n))
    after = np.sort(rng.integers(0, 3_600_000_000, n)).astype("timedelta64[us]")
    frame = pl.DataFrame({"n": np.arange(n), "q": query, "s": session, "after": after})
    second = pl.col("s") % 10 == 0
    return frame.select(
        pl.lit(LOCALE).alias("locale"),
        pl.format("{}-{}-{}", pl.lit(day), pl.lit(number), "n").hash().cast(pl.String)
        .alias("search_id"),
        pl.format("查詢 {}", "q").alias("query"),
        pl.col("q").hash().cast(pl.String).str.slice(0, 16).alias("query_id"),
        pl.format("c{}-{}", pl.lit(number), "s").alias("client_id"),
        pl.format("{}-{}-{}", pl.lit(day), pl.lit(number), "s").alias("session_id"),
        (pl.lit(began) + pl.col("after")).cast(SEARCHES["at"]).alias("at"),
        pl.when(second).then(pl.lit("B")).otherwise(pl.lit("A")).alias("bucket"),
        pl.when(second).then(pl.lit("r2")).otherwise(pl.lit("r1")).alias("release"),
    )  # fmt: skip


def _events(asked: pl.DataFrame, product: Ints, mask: Mask, action: str) -> pl.DataFrame:
    search, place = np.nonzero(mask)
    return asked[search].with_columns(
        pl.format("P{}", pl.Series(product[search, place])).alias("product_id"),
        pl.lit(action).alias("action"),
        pl.Series("position", place.astype(np.int64) + 1),
    )
