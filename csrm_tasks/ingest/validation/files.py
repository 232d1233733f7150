"""A whole file, batch by batch: clean rows go to one Parquet file, the others are handed back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from csrm_tasks.ingest.contract.contracts import Contract, contract_of
from csrm_tasks.ingest.reading.readers import read_batches, read_raw
from csrm_tasks.ingest.reading.records import Records, UnreadableError
from csrm_tasks.ingest.validation.ignored import Notes
from csrm_tasks.ingest.validation.validate import REJECTED, unreadable, validate_batch
from csrm_tasks.sections import Ingest

HEAD_BYTES = 4096  # of a file that cannot be read, kept as its "row"


@dataclass(frozen=True)
class Source:
    """A file on disk and how it is written."""

    path: Path
    kind: str
    format: str
    compression: str

    def batches(self, contract: Contract) -> Iterator[Records]:
        """Read it under the names of ``contract``; raises :class:`UnreadableError` at any batch."""
        return read_batches(self.path, self.format, self.compression, contract)

    def raw_of(self, rows: Sequence[int]) -> list[bytes]:
        """Return rows' bytes as delivered, in the order asked for."""
        found: dict[int, bytes] = {}
        wanted = set(rows)
        if wanted:
            for here, raw_of in read_raw(self.path, self.format, self.compression):
                chosen = sorted(wanted.intersection(here))
                found |= zip(chosen, raw_of(chosen), strict=True)
        return [found[r] for r in rows]


@dataclass(frozen=True)
class Sorted:
    """What became of a file's rows: ``rows`` clean ones are in Parquet, the others here."""

    rows: int
    rejected: pl.DataFrame  # REJECTED
    fault: str | None  # as Judged
    header: bytes  # a CSV file's first line
    ignored: int = 0  # rows that are in neither
    notes: Notes = field(default_factory=Notes)


def _ahead(batches: Iterator[Records]) -> Iterator[Records]:
    """Yield ``batches``, the next one being read (on another core) while one is worked on."""
    with ThreadPoolExecutor(1) as pool:
        following = pool.submit(next, batches, None)
        while (records := following.result()) is not None:
            following = pool.submit(next, batches, None)
            yield records


@contextmanager
def _written(path: Path, contract: Contract) -> Iterator[Callable[[pl.DataFrame], None]]:
    """Give a function that adds rows to a Parquet file, on another core than its caller's."""
    import pyarrow.parquet as pq

    schema = pl.DataFrame(schema=contract.schema).to_arrow().schema
    with (
        pq.ParquetWriter(path, schema, compression="lz4", use_dictionary=False) as writer,
        ThreadPoolExecutor(1) as pool,
    ):
        pending: Future[None] = pool.submit(lambda: None)

        def write(rows: pl.DataFrame) -> None:
            nonlocal pending
            pending.result()  # no more than one table waits
            pending = pool.submit(writer.write_table, rows.to_arrow())

        yield write
        pending.result()


def sort_file(source: Source, day: str, terms: Ingest, clean: Path, zone: str = "UTC") -> Sorted:
    """Judge every row of a file and write the clean ones to ``clean`` as Parquet.

    Rejected rows stay in memory. A file that cannot be read to its end gives no row at all.
    Raises :class:`ConfigError` where the market's names of columns are not confirmed.
    """
    contract = contract_of(source.kind, terms.columns)
    header = b""
    rejected = [pl.DataFrame(schema=REJECTED)]
    fault = None
    rows = ignored = 0
    notes = Notes()
    try:
        with _written(clean, contract) as write:
            for records in _ahead(source.batches(contract)):
                judged = validate_batch(records, contract, day, terms, zone)
                header, fault = records.header, judged.fault
                rejected.append(judged.rejected)
                rows += judged.clean.height
                ignored += judged.ignored
                notes.add(judged.notes.counts)
                write(judged.clean)
    except UnreadableError as e:
        with source.path.open("rb") as f:
            judged = unreadable(contract, str(e), f.read(HEAD_BYTES))
        judged.clean.write_parquet(clean)
        return Sorted(0, judged.rejected, judged.fault, header)
    return Sorted(rows, pl.concat(rejected), fault, header, ignored, notes)
