"""Reading deliveries into records: each row's values as text beside the bytes it came from.

A file is read in batches, so that memory does not grow with its size. A fast path parses a batch
at once; where it fails, records are parsed one by one and those that cannot be are handed back with
a reason. Nothing here decides whether a value is right.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import polars as pl
import polars.selectors as cs

from csrm_tasks.ingest.contract.contracts import Contract
from csrm_tasks.ingest.reading.csv_layout import CsvPieces, Layout
from csrm_tasks.ingest.reading.csv_records import csv_rows, read_csv
from csrm_tasks.ingest.reading.json_records import jsonl_rows, read_jsonl
from csrm_tasks.ingest.reading.records import (
    BOM,
    RawOf,
    Records,
    UnreadableError,
    assemble,
    pick,
)

if TYPE_CHECKING:
    from pyarrow import Field, NativeFile

UTF16 = (b"\xff\xfe", b"\xfe\xff")
CODECS = {"": None, "gz": "gzip", "zst": "zstd"}
BATCH = 8 << 20  # bytes of text that are looked at together
RECORD_LIMIT = 256 << 20  # bytes of one record: more is no record, and would fill the memory
PARQUET_ROWS = 100_000  # of a batch
DAMAGED = "is not Parquet, or damaged"


def read_batches(
    path: Path, written: str, compression: str, contract: Contract
) -> Iterator[Records]:
    """Read a file written as csv, jsonl or parquet, compressed as "", gz or zst.

    Raises :class:`UnreadableError`, at any batch, when the file cannot be read to its end: then
    the rows before are not to be trusted either, for nobody knows what the sender had to say.
    """
    with _opened(path, compression) as stream:
        if written == "parquet":
            yield from _read_parquet(stream, contract)
        else:
            yield from read_stream(stream, written, contract)


def read_raw(path: Path, written: str, compression: str) -> Iterator[tuple[range, RawOf]]:
    """As :func:`read_batches`, but only which rows there are and how to get their bytes.

    No contract is asked for: bytes are as delivered, whatever a market calls its columns.
    """
    if written == "parquet":
        with _opened(path, compression) as stream:
            for rows, table in _numbered(stream):
                yield rows, _rows_as_json(table, rows)
        return
    first = 1
    with _opened(path, compression) as stream:
        for _, data, layout in _texts(stream, written):
            count, raw_of = csv_rows(data, layout, first) if layout else jsonl_rows(data, first)
            yield range(first, first + count), raw_of
            first += count


def read_stream(
    stream: BinaryIO | NativeFile, written: str, contract: Contract
) -> Iterator[Records]:
    """Read text (``stream.read(n)`` gives bytes) written as csv or jsonl; see read_batches.

    A text of nothing but white space has no rows.
    """
    rows = 0
    head = b""
    for head, data, layout in _texts(stream, written):
        if layout is not None:
            records = read_csv(data, layout, head, contract, rows + 1)
        else:
            records = read_jsonl(data, contract, rows + 1)
        rows += records.frame.height
        yield records


def _texts(
    stream: BinaryIO | NativeFile, written: str
) -> Iterator[tuple[bytes, bytes, Layout | None]]:
    """Yield whole records, each piece with the file's CSV header and layout (JSON Lines: none)."""
    if written != "csv":
        yield from ((b"", data, None) for data in _chunks(stream, _line_end))
        return
    pieces = CsvPieces()
    for data in _chunks(stream, pieces.whole):
        rows, layout = pieces.piece(data)
        yield pieces.head, rows, layout


def _line_end(data: bytes) -> int:
    return data.rfind(b"\n") + 1


def _chunks(stream: BinaryIO | NativeFile, whole: Callable[[bytes], int]) -> Iterator[bytes]:
    """Yield the text in pieces that end where ``whole`` says that a record ends."""
    rest = stream.read(len(BOM))
    while rest == BOM:  # some programs put one before another's
        rest = stream.read(len(BOM))
    if rest.startswith(UTF16):
        raise UnreadableError("is UTF-16; deliver UTF-8")
    while block := stream.read(BATCH):
        end = whole(rest)
        if end:
            yield rest[:end]
        rest = rest[end:] + block
        if len(rest) > RECORD_LIMIT + BATCH:
            raise UnreadableError(f"a record is longer than {RECORD_LIMIT >> 20} MiB")
    if rest.strip():
        yield rest


@contextmanager
def _opened(path: Path, compression: str) -> Iterator[NativeFile]:
    import pyarrow as pa

    try:
        with pa.input_stream(str(path), compression=CODECS[compression]) as stream:
            yield stream
    except (OSError, pa.ArrowException) as e:
        raise UnreadableError(f"cannot be decompressed ({compression})") from e


def _read_parquet(stream: NativeFile, contract: Contract) -> Iterator[Records]:
    """Read a columnar file; the "bytes" of its row are the row as JSON, for it has none itself."""
    for rows, table in _numbered(stream):
        try:
            yield _columnar(table, contract, rows)
        except pl.exceptions.PolarsError as e:
            raise UnreadableError(DAMAGED) from e


def _numbered(stream: NativeFile) -> Iterator[tuple[range, pl.DataFrame]]:
    """Yield the rows of a Parquet file in tables, with their numbers in the file, from 1."""
    import pyarrow as pa

    first = 1
    try:
        source = stream if stream.seekable() else pa.BufferReader(stream.read())
        for table in _tables(source):
            yield range(first, first + table.height), table
            first += table.height
    except (OSError, pa.ArrowException, pl.exceptions.PolarsError) as e:
        raise UnreadableError(DAMAGED) from e


def _tables(source: NativeFile) -> Iterator[pl.DataFrame]:
    """Yield the rows of a Parquet file in tables, at least one."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(source)
    except pa.ArrowNotImplementedError:  # integers of 128 bits, say: polars has them
        source.seek(0)
        yield from _tables_of_polars(io.BytesIO(source.read()))
        return
    empty = file.schema_arrow.empty_table()
    for batch in [empty] if file.metadata.num_rows == 0 else file.iter_batches(PARQUET_ROWS):
        schema = pa.schema(map(_narrowed, batch.schema))
        same = schema.equals(batch.schema)
        yield pl.DataFrame(batch if same else pa.table(batch).cast(schema))


def _narrowed(field: Field) -> Field:
    """Return a column's type with text where polars has none: for decimals of 256 bits."""
    import pyarrow as pa

    kind = field.type
    if pa.types.is_decimal256(kind):
        return field.with_type(pa.string())
    if pa.types.is_list(kind):
        return field.with_type(pa.list_(_narrowed(kind.value_field)))
    if pa.types.is_struct(kind):
        return field.with_type(pa.struct([_narrowed(f) for f in kind]))
    return field


def _tables_of_polars(source: io.BytesIO) -> Iterator[pl.DataFrame]:
    rows = pl.scan_parquet(source)
    count = rows.select(pl.len()).collect().item()
    for start in range(0, max(count, 1), PARQUET_ROWS):
        yield rows.slice(start, PARQUET_ROWS).collect()


def _columnar(table: pl.DataFrame, contract: Contract, rows: range) -> Records:
    values, missing = pick(table, contract)
    frame = assemble([(rows, values)], {}, contract)
    return Records(frame, missing, _rows_as_json(table, rows), columns=tuple(table.columns))


def _text(value: object) -> str:
    """Return what JSON has no word for as text; bytes are the text that they were read as."""
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)


def _rows_as_json(table: pl.DataFrame, rows: range) -> RawOf:
    def raw_of(asked: Sequence[int]) -> list[bytes]:
        chosen = table[[r - rows.start for r in asked]]
        finite = cs.float().is_finite()
        plain = chosen.with_columns(pl.when(finite).then(cs.float()))  # JSON has no other
        return [json.dumps(r, default=_text, ensure_ascii=False).encode() for r in plain.to_dicts()]

    return raw_of
