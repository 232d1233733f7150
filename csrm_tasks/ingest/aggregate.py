"""What a day's events add up to per query and product, as Ibis expressions (DuckDB by default).

The expressions say nothing of an engine; ``backend`` decides where they run. DuckDB reads the
Parquet files itself and keeps to its memory limit by spilling.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl

COUNTS = ("impressions", "clicks", "carts", "purchases", "position_sum", "positions", "skips")
DAILY: dict[str, Any] = {
    "locale": pl.String, "query_id": pl.String, "product_id": pl.String, "query": pl.String,
} | dict.fromkeys(COUNTS, pl.Int64)  # fmt: skip
PAIR = ["locale", "query_id", "product_id"]


def duckdb_backend(scratch: Path, threads: int) -> Any:
    """Return an Ibis connection to a DuckDB of its own that spills to ``scratch``."""
    import ibis

    scratch.mkdir(parents=True, exist_ok=True)
    return ibis.duckdb.connect(
        threads=threads,
        memory_limit="1GB",
        temp_directory=str(scratch),
        autoinstall_known_extensions=False,
    )


def aggregate_events(backend: Any, paths: Sequence[Path], scratch: Path) -> pl.DataFrame:
    """Return one row per (locale, query, product) of the lake files, sorted; see ``DAILY``.

    Results pass through Parquet files in ``scratch``, which every Ibis backend can write.
    """
    if not paths:
        return pl.DataFrame(schema=DAILY)
    events = backend.read_parquet([str(p) for p in paths], table_name="events")
    typed = events.group_by(["locale", "query_id", "query"]).agg(n=events.count())
    backend.to_parquet(_pairs(_in_searches(events)), scratch / "pairs.parquet")
    backend.to_parquet(typed, scratch / "typed.parquet")
    spelt = pl.read_parquet(scratch / "typed.parquet").sort("n", "query", descending=[True, False])
    best = spelt.unique(PAIR[:2], keep="first").select(*PAIR[:2], "query")
    joined = pl.read_parquet(scratch / "pairs.parquet").join(best, on=PAIR[:2])
    return joined.select(pl.col(c).cast(t) for c, t in DAILY.items()).sort(PAIR)


def _in_searches(events: Any) -> Any:
    """One row per product of one search: how often what happened, and where it stood first."""
    import ibis

    def times(action: str) -> Any:
        return (events.action == action).sum().fill_null(0)

    shown = events.action == "impression"
    placed = shown & events.position.notnull()
    return events.group_by([*PAIR, "search_id"]).agg(
        impressions=times("impression"),
        clicks=times("click"),
        carts=times("add_to_cart"),
        purchases=times("purchase"),
        position_sum=ibis.ifelse(placed, events.position, 0).sum(),
        positions=placed.sum(),
        first=events.position.min(where=shown),
    )


def _pairs(searches: Any) -> Any:
    """Sum over searches. A product is skipped when it stood above one that was bought in the same
    search and was not itself acted on: a hard negative of the CVR task (A8).
    """
    import ibis

    bought = ibis.ifelse(searches.purchases > 0, searches["first"], None)
    last = bought.max().over(ibis.window(group_by=[searches.locale, searches.search_id]))
    seen = searches.mutate(last_bought=last)
    untouched = (seen.clicks + seen.carts + seen.purchases) == 0
    skipped = untouched & (seen["first"] < seen.last_bought)
    return seen.group_by(PAIR).agg(
        **{c: seen[c].sum() for c in COUNTS if c != "skips"},
        skips=skipped.fill_null(False).cast("int64").sum(),
    )
