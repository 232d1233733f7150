"""The event lake: one Parquet file per delivered file, ``{market}/{table}/day={day}/{digest}``.

A lake file counts only where the ``files`` table lists it: it is written before its transaction
commits, and a killed attempt's file is overwritten by the next or never read.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from csrm_tasks.blobs import Entry, open_blobs
from csrm_tasks.errors import DataError
from csrm_tasks.text import composed_frame

# query_id is the digest of locale and normalised text; search_id is UBI's query_id, one search.
EVENTS: dict[str, pl.DataType | type[pl.DataType]] = {
    "locale": pl.String,
    "query_id": pl.String,
    "query": pl.String,
    "search_id": pl.String,
    "product_id": pl.String,
    "action": pl.String,
    "position": pl.Int64,
    "client_id": pl.String,
    "session_id": pl.String,
    "at": pl.Datetime("us", "UTC"),
    "bucket": pl.String,
    "release": pl.String,
    "own": pl.Boolean,  # the event itself said the query; otherwise it is its search's
    "row": pl.Int64,  # in the delivered file, from 1
}
SEARCHES: dict[str, pl.DataType | type[pl.DataType]] = {
    "locale": pl.String,
    "search_id": pl.String,
    "query": pl.String,  # empty: an ignored search, kept so that its events are ignored too
    "client_id": pl.String,
    "session_id": pl.String,
    "at": pl.Datetime("us", "UTC"),
    "bucket": pl.String,
    "release": pl.String,
    "row": pl.Int64,  # in the delivered file, from 1
    "hits": pl.List(pl.String),  # products shown, best first; null: the delivery does not say
}
POSITIONS: dict[str, pl.DataType | type[pl.DataType]] = {  # a day's counts, made by aggregate
    "locale": pl.String,
    "query_id": pl.String,
    "product_id": pl.String,
    "position": pl.Int64,  # null: not logged
    "impressions": pl.Int64,
    "clicks": pl.Int64,
    "carts": pl.Int64,
    "purchases": pl.Int64,
}
TABLES = {
    "ubi_events": ("events", EVENTS),
    "ubi_queries": ("searches", SEARCHES),
    "positions": ("positions", POSITIONS),
}
KNOWN = "known"  # folder of rows that were known already
DAY = "day="


@dataclass(frozen=True)
class Stored:
    """Which lake file a ``files`` row means; of positions, the one made from a day's events."""

    kind: str  # one of TABLES
    day: str
    locale: str
    digest: str


class Lake:
    """The Parquet files of one market under a path or ``s3://``."""

    def __init__(self, root: str, market: str) -> None:
        self._blobs = open_blobs(root)
        self._market = market

    def _key(self, file: Stored) -> str:
        table = TABLES[file.kind][0]
        # The locale is part of it: the same bytes may be delivered for two locales.
        return f"{self._market}/{table}/{DAY}{file.day}/{file.locale}-{file.digest}.parquet"

    def write(self, file: Stored, frame: pl.DataFrame) -> None:
        """Write the rows of one delivered file, replacing what a killed attempt left."""
        with tempfile.TemporaryDirectory() as folder:
            part = Path(folder) / "part.parquet"
            frame.select(list(TABLES[file.kind][1])).write_parquet(part)
            self.put(file, part)

    def write_unstored(self, file: Stored, rows: pl.DataFrame) -> None:
        """Keep the good rows of a delivered file that were not stored, any kind, for the day on
        which they are judged again; as :meth:`write`.
        """
        with tempfile.TemporaryDirectory() as folder:
            part = Path(folder) / "part.parquet"
            rows.write_parquet(part)
            self._blobs.upload(self._known_key(file), part)

    def read_unstored(self, file: Stored) -> pl.DataFrame:
        """Return what :meth:`write_unstored` kept; raises :class:`DataError` when it is gone."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "part.parquet"
            key = self._known_key(file)
            try:
                self._blobs.download(key, path)
            except FileNotFoundError as e:
                raise DataError(
                    f"lake file {key} is gone, with the rows of {file.day} that were known already "
                    "or refused: restore it from a backup"
                ) from e
            return pl.read_parquet(path)

    def _known_key(self, file: Stored) -> str:
        name = f"{file.locale}-{file.digest}"
        return f"{self._market}/{KNOWN}/{file.kind}/{DAY}{file.day}/{name}.parquet"

    def put(self, file: Stored, part: Path) -> None:
        """Keep a Parquet file that is written already, replacing what a killed attempt left."""
        self._blobs.upload(self._key(file), part)

    def paths(self, files: Sequence[Stored], scratch: Path) -> list[Path]:
        """Return local files; a remote one is fetched below ``scratch`` first.

        Raises :class:`DataError` when one is gone.
        """
        return [self._path(file, scratch) for file in files]

    def _path(self, file: Stored, scratch: Path) -> Path:
        key = self._key(file)
        path = self._blobs.local_path(key)
        if path is not None and path.exists():
            return path
        try:
            self._blobs.download(key, scratch / key)
        except FileNotFoundError as e:
            raise DataError(
                f"lake file {key} is gone: run the ingest steps of {file.day} again (aggregate "
                "makes counts by position; delivered files must be restored from a backup)"
            ) from e
        return scratch / key

    def read(
        self,
        kind: str,
        files: Sequence[Stored],
        columns: Sequence[str],
        where: pl.Expr | None = None,
    ) -> pl.DataFrame:
        """Return some columns of some files as one frame (empty when there are no files).

        ``where`` is applied while a file is read: what it leaves out costs no memory.
        """
        schema = TABLES[kind][1]
        chosen = pl.lit(True) if where is None else where
        with tempfile.TemporaryDirectory() as folder:
            frames = [
                # Columns that files of earlier versions lack are null.
                pl.scan_parquet(p, schema=schema, missing_columns="insert", extra_columns="ignore")
                .filter(chosen)
                .select(columns)
                .collect()
                for p in self.paths(files, Path(folder))
            ]
        empty = pl.DataFrame(schema={c: schema[c] for c in columns})
        return composed_frame(pl.concat([empty, *frames]))

    def entries(self) -> dict[str, dict[str, Entry]]:
        """Return what :meth:`write`, :meth:`put`, :meth:`write_unstored` wrote, by day and key."""
        found: dict[str, dict[str, Entry]] = {}
        tables = {table for table, _ in TABLES.values()}
        for key, entry in self._blobs.entries(self._market).items():
            folders = key.split("/")[1:-1]
            if len(folders) > 1 and folders[0] in tables | {KNOWN} and folders[-1].startswith(DAY):
                found.setdefault(folders[-1].removeprefix(DAY), {})[key] = entry
        return found

    def names(self, stored: Iterable[Stored], known: Iterable[Stored]) -> set[str]:
        """Return the keys of stored files, and of the known rows of files."""
        return {*map(self._key, stored), *map(self._known_key, known)}

    def delete(self, key: str) -> None:
        """Delete a file that nothing names any more."""
        self._blobs.delete(key)
