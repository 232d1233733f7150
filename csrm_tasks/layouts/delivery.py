"""One delivered file under way: hidden until all of them are read, then shown."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from csrm_tasks.artifacts import file_digest

ROWS, CHARS = 20_000, 32_000_000  # of a Parquet file's row group, whichever is reached first


def hidden(path: Path) -> Path:
    """Return where a file is written before it is shown; ingest leaves such names alone."""
    return path.with_name(f".{path.name}.part")


def show(path: Path) -> None:
    """Give a hidden file its name; one that is there with equal content is left alone."""
    part = hidden(path)
    if path.is_file() and file_digest(path) == file_digest(part):
        part.unlink()
    else:
        part.replace(path)


@dataclass
class DeliveryTable:
    """One delivery under way; columns are texts."""

    path: Path
    columns: Sequence[str]
    rows: int = 0
    _batch: list[tuple[str, ...]] = field(default_factory=list)
    _chars: int = 0
    _writer: pq.ParquetWriter | None = None

    def add(self, row: tuple[str, ...]) -> None:
        """Take a row."""
        self.rows += 1
        self._batch.append(row)
        self._chars += sum(map(len, row))
        if len(self._batch) >= ROWS or self._chars >= CHARS:
            self._flush()

    def _flush(self) -> None:
        columns = zip(*self._batch, strict=True)
        table = pa.table(
            {n: pa.array(c, pa.string()) for n, c in zip(self.columns, columns, strict=True)}
        )
        if self._writer is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._writer = pq.ParquetWriter(hidden(self.path), table.schema, compression="zstd")
        self._writer.write_table(table)
        self._batch, self._chars = [], 0

    def close(self) -> None:
        """Write what is left; nothing is shown."""
        if self._batch:
            self._flush()
        if self._writer is not None:
            self._writer.close()

    def discard(self) -> None:
        """Remove the hidden file."""
        self._batch = []
        with suppress(OSError, pa.ArrowException):  # of a full disk: it is to be freed
            self.close()
        hidden(self.path).unlink(missing_ok=True)
