"""One market of a million products, ten million labels of history and 20 million events a night.

On PostgreSQL and local files, two threads. Each nightly step, and each weekly step of the data
that trains no model, is a process of its own: wall seconds and greatest resident size (the
database server's memory is not in it). ``day100_over_day1``: the seconds of equal nights after 99
others, over those of the first night, both behind the same labels; these nights are smaller, so
that there can be a hundred of them.
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path

from benchmarks.database import copy_database, postgres
from benchmarks.harness import Timing, closing_line, ratio, table, timing_rows
from benchmarks.scale import (
    KO,
    ZH,
    Place,
    Used,
    day_of,
    write_catalogue,
    write_events,
    write_labels,
)
from csrm_tasks.store import open_store


@dataclass(frozen=True)
class Size:
    """How much there is of everything."""

    products: dict[str, int]  # by locale
    labels: dict[str, int]  # a day, by locale
    label_days: int
    events: int  # of the measured night
    files: int  # deliveries of events, and of searches, a night
    nights: int  # behind the last of the small ones
    small: int  # events of those
    repeats: int


FULL = Size(
    {KO: 300_000, ZH: 700_000}, {KO: 900_000, ZH: 100_000}, 10, 20_000_000, 24, 99, 500_000, 5
)
QUICK = Size({KO: 3_000, ZH: 7_000}, {KO: 9_000, ZH: 1_000}, 2, 20_000, 2, 2, 2_000, 1)


class World:
    """A database server, and installations that begin with the same labels behind them."""

    def __init__(self, server: str, root: Path, size: Size) -> None:
        self._server, self._root, self.size = server, root, size

    def place(self, name: str, template: str = "base") -> Place:
        """Return an installation whose database and lake are copies."""
        home, lake = self._root / name, self._root / template / "lake"
        if lake.is_dir():
            shutil.copytree(lake, home / "lake")
        return Place(home, copy_database(self._server, name, template), self._root / "landing")

    def history(self) -> float:
        """Take catalogues and labels in; returns the seconds of their days."""
        base = self.place("base", "template1")
        for locale, count in self.size.products.items():
            write_catalogue(base.folder(day_of(0), locale), count, len(locale))
        for day in range(self.size.label_days):
            for locale, count in self.size.labels.items():
                write_labels(
                    base.folder(day_of(day), locale), count, self.size.products[locale], day
                )
        seconds = sum(base.take_in(day_of(day)) for day in range(self.size.label_days))
        open_store(base.settings.db_url).dispose()  # nobody may be connected to a template
        return seconds

    def land(self, place: Place, day: int, events: int) -> str:
        """Land a night of searches, events and labels; returns its day."""
        folder = place.folder(day_of(day), ZH)
        write_events(folder, events, self.size.products[ZH], day, self.size.files)
        write_labels(folder, self.size.labels[ZH] // 5, self.size.products[ZH], day)
        return day_of(day)


def weekly(place: Place, day: str) -> list[Used]:
    """Run the weekly steps on the data, those that train nothing."""
    snapshot, first = place.step("snapshot", {}, {"stage": 2, "until": day})
    bm25, second = place.step("build_bm25", {"snapshot": snapshot}, {})
    _, third = place.step("pseudo_pairs", {"snapshot": snapshot, "bm25": bm25}, {})
    return [first, second, third]


def flat(world: World, first: int) -> tuple[dict[str, Timing], float]:
    """Take small nights in, in turn: with none of them behind, and with many."""
    size = world.size
    old = world.place("old")
    for n in range(size.nights):
        old.take_in(world.land(old, first + n, size.small))
    seconds: dict[str, list[float]] = {"day 1": [], f"day {size.nights + 1}": []}
    for n in range(size.repeats):
        day = world.land(old, first + size.nights + n, size.small)
        young = world.place(f"young{n}")
        seconds["day 1"].append(young.take_in(day))
        seconds[f"day {size.nights + 1}"].append(old.take_in(day))
    one, last = (Timing(tuple(s)) for s in seconds.values())
    return dict(zip(seconds, (one, last), strict=True)), ratio(last, one)


def rows(used: list[Used]) -> list[dict[str, object]]:
    """Return a table's rows of steps."""
    return [{"step": u.step, "seconds": u.seconds, "peak MB": u.peak / 1e6} for u in used]


def main(quick: bool) -> None:
    """Print the tables and the closing line."""
    size = QUICK if quick else FULL
    with postgres() as (server, _), tempfile.TemporaryDirectory() as root:
        world = World(server, Path(root), size)
        seconds = world.history()
        labels = size.label_days * sum(size.labels.values())
        print(f"{sum(size.products.values()):,} products and {labels:,} labels: {seconds:.0f} s\n")
        big = world.place("big")
        day = world.land(big, size.label_days, size.events)
        used = big.night(day)
        print(f"A night of {size.events:,} events\n\n{table(rows(used))}\n")
        week = weekly(big, day)
        print(f"The week's steps behind it\n\n{table(rows(week))}\n")
        timings, over = flat(world, size.label_days + 1)
    print(f"Nights of {size.small:,} events\n\n{table(timing_rows(timings, 1, 'nights/s'))}\n")
    figures = {f"seconds_{u.step}": u.seconds for u in [*used, *week]}
    figures |= {f"peak_memory_{u.step}": float(u.peak) for u in [*used, *week]}
    figures |= {"day100_over_day1": over, "night_s": sum(u.seconds for u in used)}
    figures["day1_s"] = statistics.median(timings["day 1"].seconds)
    print(closing_line("night_scale", figures, ("duckdb", "polars", "SQLAlchemy")))
