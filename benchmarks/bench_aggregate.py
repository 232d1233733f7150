"""A night of 20 million events summed up: memory and time, beside polars and pandas in memory.

Every contestant is a process of its own that reads the same lake files and ends with sums per
(query, product) and per session; ours also counts by position, finds skipped products and the
usual spelling of each query. ``peak_memory`` is the greatest resident size of our process, the
ratios are peer over ours. pandas gets a quarter of the night and its time and memory are scaled
by four, since the whole does not fit.

``day100_over_day1``: the five nightly steps of a market that has 99 nights behind it, over those of
a market's first night; nights of equal size, in turn.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.harness import Timing, closing_line, ratio, table, timing_rows

ROOT = Path(__file__).resolve().parent.parent
THREADS = 2
OURS = """
from pathlib import Path
from csrm_tasks.store.lake_engines import open_engine
from csrm_tasks.ingest.aggregates.sums import sum_up
from csrm_tasks.sections import Ingest
from csrm_tasks.store.lake import Lake, Stored
scratch = Path(root) / "scratch"
names = sorted(Path(root, "bench").glob("*/day=*/*.parquet"))
kinds = {"events": "ubi_events", "searches": "ubi_queries"}
files = [Stored(kinds[p.parts[-3]], p.parts[-2][4:], p.name[:5], p.stem[6:]) for p in names]
with open_engine(Ingest(), scratch, threads) as engine:
    made = sum_up(engine, Lake(root, "bench"), files, scratch, Ingest().behaviour)
import pyarrow.compute as pc, pyarrow.parquet as pq
def totals(path, columns):
    return [int(sum(pc.sum(b[c]).as_py() for b in pq.ParquetFile(path).iter_batches(columns=[c])))
            for c in columns]
print(pq.ParquetFile(made.pairs).metadata.num_rows, *totals(made.pairs, ["clicks", "position_sum"]),
      pq.ParquetFile(made.sessions).metadata.num_rows, *totals(made.sessions, ["purchases"]))
"""
POLARS = """
import polars as pl
events = pl.read_parquet(f"{root}/bench/events/**/*.parquet")
searches = pl.read_parquet(f"{root}/bench/searches/**/*.parquet")
pair, visit = ["locale", "query_id", "product_id"], ["locale", "session_id"]
did = {"impressions": "impression", "clicks": "click", "carts": "add_to_cart",
       "purchases": "purchase"}
counts = [(pl.col("action") == a).sum().alias(c) for c, a in did.items()]
shown = pl.col("action") == "impression"
pairs = events.group_by(pair).agg(*counts, pl.col("position").filter(shown).sum()).sort(pair)
both = pl.concat([events, searches], how="diagonal")
sessions = both.group_by(visit).agg(
    *counts, pl.col("bucket").max(), pl.col("release").max(), pl.col("search_id").n_unique(),
    pl.col("at").min().alias("first"), pl.col("at").max().alias("last")).sort(visit)
print(pairs.height, pairs["clicks"].sum(), pairs["position"].sum(), sessions.height,
      sessions["purchases"].sum())
"""
PANDAS = """
import pandas as pd
events = pd.read_parquet(f"{root}/bench/events")
searches = pd.read_parquet(f"{root}/bench/searches")
pair, visit = ["locale", "query_id", "product_id"], ["locale", "session_id"]
did = {"impressions": "impression", "clicks": "click", "carts": "add_to_cart",
       "purchases": "purchase"}
for column, action in did.items():
    events[column] = events["action"] == action
events["placed"] = events["position"].where(events["impressions"], 0)
pairs = events.groupby(pair)[[*did, "placed"]].sum()
both = pd.concat([events, searches])
grouped = both.groupby(visit)
sessions = grouped[[*did]].sum()
arms = grouped[["bucket", "release"]].max()
asked, times = grouped["search_id"].nunique(), grouped["at"].agg(["min", "max"])
print(len(pairs), pairs["clicks"].sum(), pairs["placed"].sum(), len(sessions),
      int(sessions["purchases"].sum()))
"""


class Contestant:
    """A script that is run in processes of its own; what it took and what it found is kept."""

    def __init__(self, name: str, script: str, root: Path, share: int = 1) -> None:
        self.name, self.script, self.root, self.share = name, script, root, share
        self.seconds: list[float] = []
        self.peaks: list[int] = []
        self.said = ""

    def run(self) -> None:
        """Run once; wall seconds and greatest resident bytes of the process."""
        begin = f"root, threads = {str(self.root)!r}, {THREADS}\n"
        env = os.environ | {
            "POLARS_MAX_THREADS": str(THREADS), "OMP_NUM_THREADS": str(THREADS),
            "PYTHONPATH": str(ROOT),
        }  # fmt: skip
        start = time.perf_counter()
        with tempfile.TemporaryFile() as out:
            process = subprocess.Popen([sys.executable, "-c", begin + self.script], env=env,
                                       stdout=out)  # fmt: skip
            _, status, used = os.wait4(process.pid, 0)
            self.seconds.append((time.perf_counter() - start) * self.share)
            if status:
                sys.exit(f"{self.name} failed: {status}")
            out.seek(0)
            self.said = out.read().decode().strip()
        self.peaks.append(used.ru_maxrss * 1024 * self.share)

    @property
    def timing(self) -> Timing:
        """Seconds of all runs."""
        return Timing(tuple(self.seconds))


def night(quick: bool, folder: Path) -> tuple[list[dict[str, object]], dict[str, float]]:
    """Sum one night up by every contestant in turn; returns rows of a table, and figures."""
    from benchmarks.events import write_night

    events, repeats = (100_000, 1) if quick else (20_000_000, 5)
    whole, quarter = folder / "whole", folder / "quarter"
    write_night(whole, events)
    write_night(quarter, events // 4, files=6)
    ours = Contestant("ours (Ibis, DuckDB)", OURS, whole)
    polars = Contestant("polars in memory", POLARS, whole)
    pandas = Contestant("pandas, a quarter × 4", PANDAS, quarter, 4)
    for _ in range(repeats):
        for contestant in (ours, polars, pandas):
            contestant.run()
    assert ours.said == polars.said, f"sums differ: {ours.said} and {polars.said}"
    all_three = (ours, polars, pandas)
    rows = timing_rows({c.name: c.timing for c in all_three}, events, "events/s")
    for row, contestant in zip(rows, all_three, strict=True):
        row["peak MB"] = statistics.median(contestant.peaks) / 1e6
    figures = {
        "events": float(events),
        "seconds": ours.timing.median,
        "peak_memory": float(max(ours.peaks)),
        "time_ratio_polars": ratio(polars.timing, ours.timing),
        "memory_ratio_polars": statistics.median(polars.peaks) / statistics.median(ours.peaks),
        "time_ratio_pandas": ratio(pandas.timing, ours.timing),
        "memory_ratio_pandas": statistics.median(pandas.peaks) / statistics.median(ours.peaks),
    }
    return rows, figures


def nights(quick: bool, folder: Path) -> tuple[dict[str, Timing], float]:
    """Take a night in with 99 behind it and with none, in turn; returns seconds, and the ratio."""
    from benchmarks.nights import Market

    behind, repeats, searches = (3, 1, 150) if quick else (99, 5, 2_500)
    old = Market(folder / "old")
    for n in range(behind):
        old.night(n, searches)
    seconds: dict[str, list[float]] = {"day 1": [], f"day {behind + 1}": []}
    for n in range(repeats):
        new = Market(folder / f"new{n}")
        seconds["day 1"].append(new.night(behind + n, searches))
        seconds[f"day {behind + 1}"].append(old.night(behind + n, searches))
    first, last = (Timing(tuple(s)) for s in seconds.values())
    return dict(zip(seconds, (first, last), strict=True)), ratio(last, first)


def main(quick: bool) -> None:
    """Print both tables and the closing line."""
    with tempfile.TemporaryDirectory() as temporary:
        rows, figures = night(quick, Path(temporary) / "night")
        print(f"{int(figures['events']):,} events, {THREADS} threads\n\n{table(rows)}\n")
        timings, figures["day100_over_day1"] = nights(quick, Path(temporary) / "nights")
    print(table(timing_rows(timings, 1, "nights/s")), "\n")
    print(closing_line("aggregate", figures, ("duckdb", "ibis-framework", "polars", "pandas")))
