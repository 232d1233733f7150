"""Where the aggregates are computed: DuckDB in this process, or Spark where a market says so.

Both run the same Ibis expressions and leave Parquet files, so that no result has to fit in memory.
DuckDB keeps to :data:`MEMORY` by spilling to the scratch folder.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from csrm_tasks.errors import ConfigError
from csrm_tasks.sections import Ingest

if TYPE_CHECKING:
    from ibis import Table
    from ibis.backends import BaseBackend

MEMORY = "800MB"  # of DuckDB's buffers; the process needs some 400 MB beside them
BATCH_ROWS = 50_000  # of a result, at a time


class Engine:
    """A connected Ibis backend that reads and writes Parquet files."""

    def __init__(self, backend: BaseBackend) -> None:
        self._backend = backend

    def read(self, name: str, paths: Sequence[Path]) -> Table:
        """Return Parquet files (at least one) as an Ibis table called ``name``.

        A column that one of them lacks is null there.
        """
        # DuckDB would take a folder `name=value` above a file for the value of a column of that
        # name, whatever the file says.
        files = [str(p) for p in paths]
        return self._backend.read_parquet(
            files, table_name=name, hive_partitioning=False, union_by_name=True
        )

    def write(self, table: Table, path: Path) -> None:
        """Compute ``table`` into one Parquet file, its rows in the table's order."""
        self._backend.to_parquet(table, path)

    def fetch(self, table: Table, path: Path) -> pl.DataFrame:
        """Compute a table that fits in memory, through a file."""
        self.write(table, path)
        return pl.read_parquet(path)

    def give(self, name: str, frame: pl.DataFrame, path: Path) -> Table:
        """Return a frame as a table, through a file."""
        frame.write_parquet(path)
        return self.read(name, [path])

    def is_empty(self, table: Table) -> bool:
        """Return whether a table has no row."""
        return int(table.limit(1).count().to_pyarrow().as_py()) == 0


class _SparkEngine(Engine):
    def read(self, name: str, paths: Sequence[Path]) -> Table:
        # Ibis takes one path here; Spark itself takes many.
        reader = self._backend._session.read.option("mergeSchema", "true")
        frame = reader.parquet(*(str(p) for p in paths))
        frame.createOrReplaceTempView(name)
        return self._backend.table(name)

    def write(self, table: Table, path: Path) -> None:
        import pyarrow.parquet as pq

        folder = path.with_suffix(".parts")  # each task writes one
        self._backend.to_parquet(table, folder)
        parts = [pq.ParquetFile(p) for p in sorted(folder.glob("part-*.parquet"))]
        with pq.ParquetWriter(path, parts[0].schema_arrow) as into:
            for part in parts:
                for batch in part.iter_batches(BATCH_ROWS):
                    into.write_batch(batch)


@contextmanager
def open_engine(config: Ingest, scratch: Path, threads: int) -> Iterator[Engine]:
    """Open the market's engine for the length of a ``with``; ``scratch`` is emptied first.

    Raises :class:`ConfigError` when Spark is asked for and cannot start here.
    """
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    backend, engine = (
        _duckdb(scratch, threads) if config.engine == "duckdb" else _spark(config, scratch)
    )
    try:
        yield engine
    finally:
        backend.disconnect()


def _duckdb(scratch: Path, threads: int) -> tuple[BaseBackend, Engine]:
    import ibis

    ibis.options.sql.fuse_selects = False  # DuckDB's own planner does
    backend = ibis.duckdb.connect(
        threads=threads,
        memory_limit=MEMORY,
        temp_directory=str(scratch / "spill"),
        preserve_insertion_order=False,  # what is ordered says so; the rest may stream
        autoinstall_known_extensions=False,
    )
    backend.raw_sql("SET enable_progress_bar = false")  # it would draw into a task's log
    return backend, Engine(backend)


def _spark(config: Ingest, scratch: Path) -> tuple[BaseBackend, Engine]:
    _require_java()
    try:
        import ibis
        from pyspark.sql import SparkSession
    except ImportError as e:
        raise ConfigError(
            "ingest.engine is spark, but pyspark is not installed: "
            "install csrm[spark], or set ingest.engine to duckdb"
        ) from e
    builder = SparkSession.builder.appName("csrm-aggregate").master(config.spark.master)
    settings = {
        "spark.sql.session.timeZone": "UTC",
        "spark.sql.parquet.outputTimestampType": "TIMESTAMP_MICROS",
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
        "spark.local.dir": str(scratch / "spill"),
        "spark.sql.warehouse.dir": str(scratch / "warehouse"),
    } | config.spark.conf
    for key, value in settings.items():
        builder = builder.config(key, value)
    session = builder.getOrCreate()
    session.sparkContext.setLogLevel("ERROR")
    backend = ibis.pyspark.connect(session)
    return backend, _SparkEngine(backend)


def _require_java() -> None:
    home = os.environ.get("JAVA_HOME")
    java = Path(home, "bin", "java") if home else shutil.which("java")
    if java is None or not Path(java).exists():
        raise ConfigError(
            "ingest.engine is spark, but there is no Java: install Java 17 or later and set "
            "JAVA_HOME, or set ingest.engine to duckdb"
        )


def frames(path: Path, schema: dict[str, Any]) -> Iterator[pl.DataFrame]:
    """Yield the rows of a result in order, some ten thousand at a time, as ``schema``.

    DuckDB sums into 128 bits, which Parquet has only as floats: exact up to 2^53.
    """
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as parquet:
        for batch in parquet.iter_batches(BATCH_ROWS, columns=list(schema)):
            frame = pl.from_arrow(batch)
            assert isinstance(frame, pl.DataFrame)
            yield frame.select(pl.col(c).cast(t) for c, t in schema.items())
