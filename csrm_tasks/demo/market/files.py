"""Write deliveries: byte for byte the same for the same rows, and never half there."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any


def put(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path`` in one step: a reader sees the whole file or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    part.write_bytes(data)
    part.replace(path)


def csv_bytes(header: Sequence[str], rows: Iterable[Sequence[object]]) -> bytes:
    """Return a CSV with ``header``."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue().encode()


def jsonl_bytes(records: Iterable[dict[str, Any]]) -> bytes:
    """Return JSON Lines."""
    dump = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
    return "".join(dump(record) + "\n" for record in records).encode()


def put_gzip(path: Path, chunks: Iterable[bytes]) -> None:
    """Write ``chunks`` gzipped, as they come and in one step, without name or time in the header:
    equal content is equal bytes.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    with (
        part.open("wb") as file,
        gzip.GzipFile(filename="", mode="wb", compresslevel=5, fileobj=file, mtime=0) as packed,
    ):
        for chunk in chunks:
            packed.write(chunk)
    part.replace(path)
