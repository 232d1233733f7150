"""Reading deliveries into records: each row's values as text beside the bytes it came from.

A fast path parses the whole file at once; where it fails, records are parsed one by one and those
that cannot be are handed back with a reason. Nothing here decides whether a value is right.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path

import polars as pl

from csrm_tasks.ingest.contracts import Contract
from csrm_tasks.ingest.csv_records import read_csv
from csrm_tasks.ingest.json_records import read_jsonl
from csrm_tasks.ingest.records import Records, UnreadableError, assemble, pick

BOM = b"\xef\xbb\xbf"
CODECS = {"": None, "gz": "gzip", "zst": "zstd"}


def read_records(path: Path, written: str, compression: str, contract: Contract) -> Records:
    """Read a file written as csv, jsonl or parquet, compressed as "", gz or zst.

    Raises :class:`UnreadableError` when no row can be had from it.
    """
    data = _decompressed(path, compression)
    if written == "parquet":
        return _read_parquet(data, contract)
    data = data.removeprefix(BOM)
    if not data.strip():
        raise UnreadableError("the file is empty")
    return read_csv(data, contract) if written == "csv" else read_jsonl(data, contract)


def _decompressed(path: Path, compression: str) -> bytes:
    import pyarrow as pa

    try:
        with pa.input_stream(str(path), compression=CODECS[compression]) as stream:
            data: bytes = stream.read()
    except (OSError, pa.ArrowException) as e:
        raise UnreadableError(f"cannot be decompressed ({compression})") from e
    return data


def _read_parquet(data: bytes, contract: Contract) -> Records:
    """Read a columnar file; the "bytes" of its row are the row as JSON, for it has none itself."""
    try:
        table = pl.read_parquet(io.BytesIO(data))
    except (OSError, pl.exceptions.PolarsError) as e:
        raise UnreadableError("is not Parquet, or damaged") from e

    def raw_of(rows: Sequence[int]) -> list[bytes]:
        chosen = table[[r - 1 for r in rows]]
        return [json.dumps(r, default=str, ensure_ascii=False).encode() for r in chosen.to_dicts()]

    values, missing = pick(table, contract)
    frame = assemble([(range(1, table.height + 1), values)], {}, contract)
    return Records(frame, missing, raw_of)
