"""A market for the benchmarks that takes generated nights in by the five nightly steps."""

from __future__ import annotations

import time
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import polars as pl

from benchmarks.events import DAY, LOCALE, hour
from csrm_tasks.markets import MarketConfig, load_market
from csrm_tasks.settings import Settings, load_settings
from csrm_tasks.steps import run_step

PRODUCTS = 20_000
NIGHTLY = ("land", "validate", "store", "aggregate", "publish_day")


class Market:
    """An installation of its own under ``home``; its catalogue came the day before its nights."""

    def __init__(self, home: Path) -> None:
        self.settings = load_settings({"CSRM_HOME": str(home)})
        self.config: MarketConfig = load_market("demo", self.settings.markets)
        ids = pl.Series("product_id", [f"P{n}" for n in range(PRODUCTS)])
        texts = {c: pl.lit("") for c in ("brand", "category", "description")}
        self._land(_day(-1), "catalogue", ids.to_frame().with_columns(title="product_id", **texts))
        self._ingest(_day(-1))

    def night(self, number: int, searches: int) -> float:
        """Deliver a night and take it in; returns the seconds of the steps."""
        day = _day(number)
        asked, happened = hour(searches, 9, np.random.default_rng(number), day, PRODUCTS)
        spelt = pl.col("at").dt.strftime("%Y-%m-%dT%H:%M:%S%.6fZ").alias("timestamp")
        names = {"search_id": "query_id"}
        both = ("search_id", "client_id", "session_id")
        self._land(day, "ubi_queries", asked.select(
            *both, spelt, pl.col("query").alias("user_query")).rename(names))  # fmt: skip
        self._land(day, "ubi_events", happened.select(
            *both, spelt, "position", pl.col("action").alias("action_name"),
            pl.col("product_id").alias("object_id")).rename(names))  # fmt: skip
        start = time.perf_counter()
        self._ingest(day)
        return time.perf_counter() - start

    def _land(self, day: str, kind: str, frame: pl.DataFrame) -> None:
        path = self.settings.landing / self.config.market / day / LOCALE / f"{kind}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        frame.write_parquet(path)

    def _ingest(self, day: str) -> None:
        take_in(self.config, self.settings, day)


def take_in(market: MarketConfig, settings: Settings, day: str) -> None:
    """Run the five nightly steps of a day."""
    inputs: dict[str, str] = {}
    for name in NIGHTLY:
        inputs = {name: run_step(name, market, inputs, params_of(name, day), settings)}


def params_of(name: str, day: str) -> dict[str, str]:
    """Return the parameters of a nightly step."""
    return {"day": day} if name in ("land", "aggregate", "publish_day") else {}


def _day(number: int) -> str:
    return (date.fromisoformat(DAY) + timedelta(days=number)).isoformat()
