"""A market of any size for the benchmarks: catalogues, labels over several days, nights of events.

Deliveries lie in the landing zone as a shop would put them there; every step runs in a process of
its own, so that its peak memory is its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from benchmarks.concepts import word
from benchmarks.events import EVENTS_PER_SEARCH, QUERIES, hour
from benchmarks.nights import NIGHTLY, params_of, take_in
from csrm_tasks.markets import load_market
from csrm_tasks.release.bundle.probe import peak_memory
from csrm_tasks.settings import Settings, load_settings
from csrm_tasks.steps import run_step

FIRST = date(2026, 1, 1)
MARKET, KO, ZH = "demo", "ko-KR", "zh-TW"
THREADS = 2
WORDS = 60_000


@dataclass(frozen=True)
class Used:
    """What a step took: wall seconds, and the greatest resident size of its process in bytes."""

    step: str
    seconds: float
    peak: int


class Place:
    """An installation: its landing zone, its database, its home."""

    def __init__(self, home: Path, url: str, landing: Path) -> None:
        self.environment = {
            "CSRM_HOME": str(home), "CSRM_DB_URL": url, "CSRM_LANDING": str(landing),
            "CSRM_THREADS": str(THREADS),
        }  # fmt: skip
        self.settings: Settings = load_settings(self.environment)

    def folder(self, day: str, locale: str) -> Path:
        """Return the folder of a day's deliveries."""
        found = self.settings.landing / MARKET / day / locale
        found.mkdir(parents=True, exist_ok=True)
        return found

    def take_in(self, day: str) -> float:
        """Run the nightly steps of a day in this process; returns their seconds."""
        market = load_market(MARKET, self.settings.markets)
        start = time.perf_counter()
        take_in(market, self.settings, day)
        return time.perf_counter() - start

    def night(self, day: str) -> list[Used]:
        """Run the nightly steps of a day, each in a process of its own."""
        inputs: dict[str, str] = {}
        made = []
        for name in NIGHTLY:
            ref, used = self.step(name, inputs, params_of(name, day))
            inputs = {name: ref}
            made.append(used)
        return made

    def step(
        self, name: str, inputs: Mapping[str, str], params: Mapping[str, Any]
    ) -> tuple[str, Used]:
        """Run one step in a process of its own; returns its reference and what it took."""
        command = [sys.executable, "-m", "benchmarks.scale", name, json.dumps([inputs, params])]
        start = time.perf_counter()
        done = subprocess.run(
            command, env=os.environ | self.environment, capture_output=True, text=True, check=False
        )
        seconds = time.perf_counter() - start
        if done.returncode:
            sys.exit(f"step {name} failed:\n{done.stderr}")
        said = json.loads(done.stdout.splitlines()[-1])
        return said["ref"], Used(name, seconds, said["peak"])


def day_of(number: int) -> str:
    """Return the ``number``-th day of the market."""
    return (FIRST + timedelta(days=number)).isoformat()


def write_catalogue(folder: Path, products: int, seed: int) -> None:
    """Write products P0, P1, …, with titles of six words by Zipf's law."""
    rng = np.random.default_rng(seed)
    words = pl.Series([word(i) for i in range(WORDS)])
    share = np.cumsum(1.0 / np.arange(1, WORDS + 1))
    drawn = np.searchsorted(share, rng.random((products, 6)) * share[-1])  # (P, 6)
    columns = [words.gather(drawn[:, k]).alias(f"w{k}") for k in range(drawn.shape[1])]
    pl.DataFrame(columns).select(
        product_id=pl.format("P{}", pl.int_range(pl.len())),
        title=pl.concat_str(pl.all(), separator=" "),
        brand=pl.col("w0"),
        category=pl.format("{} > {}", pl.col("w1").str.slice(0, 2), pl.col("w2").str.slice(0, 2)),
    ).write_parquet(folder / "catalogue.parquet")


def write_labels(folder: Path, count: int, products: int, day: int) -> None:
    """Write a day's labels: queries by Zipf's law, sixty products each, 300 raters."""
    rng = np.random.default_rng([1, day])
    share = np.cumsum(1.0 / np.arange(1, QUERIES + 1))
    query = np.searchsorted(share, rng.random(count) * share[-1])
    product = (query * 7919 + rng.integers(0, 60, count) ** 2 * 104_729) % products
    at = pl.lit(FIRST + timedelta(days=day)).cast(pl.Datetime("us"))
    pl.select(
        label_id=pl.format("l{}-{}-{}", pl.lit(folder.name), pl.lit(day), pl.int_range(count)),
        query=pl.format("查詢 {}", pl.Series(query)),
        product_id=pl.format("P{}", pl.Series(product)),
        grade=pl.Series(rng.choice(["2", "1", "0"], count, p=[0.4, 0.3, 0.3])),
        rater_id=pl.format("rater-{}", pl.Series(rng.integers(0, 300, count))),
        guideline_version=pl.lit("v3"),
        rated_at=at + pl.duration(seconds=pl.Series(rng.integers(0, 86_400, count))),
    ).write_parquet(folder / "labels.parquet")


def write_events(folder: Path, events: int, products: int, day: int, files: int) -> None:
    """Write a day's searches and about ``events`` events, in ``files`` deliveries of each."""
    spelt = pl.col("at").alias("timestamp")
    both = ("search_id", "client_id", "session_id")
    searches = max(1, round(events / EVENTS_PER_SEARCH / files))
    for number in range(files):
        rng = np.random.default_rng([day, number])
        asked, happened = hour(searches, number, rng, day_of(day), products)
        asked.select(*both, spelt, user_query="query").rename({"search_id": "query_id"}
        ).write_parquet(folder / f"ubi_queries-{number:02d}.parquet")  # fmt: skip
        happened.select(
            *both, spelt, "position", action_name="action", object_id="product_id"
        ).rename({"search_id": "query_id"}).write_parquet(
            folder / f"ubi_events-{number:02d}.parquet"
        )


def main(arguments: Sequence[str]) -> None:
    """Run the step that the command line names; prints its reference and this process's peak."""
    name, given = arguments
    inputs, params = json.loads(given)
    settings = load_settings(os.environ, market=MARKET)
    ref = run_step(name, load_market(MARKET, settings.markets), inputs, params, settings)
    print(json.dumps({"ref": ref, "peak": peak_memory()}))


if __name__ == "__main__":
    main(sys.argv[1:])
