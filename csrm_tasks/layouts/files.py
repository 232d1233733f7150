"""Rows of the files of public data sets, numbered as a person finds them, one at a time.

What cannot be read raises :class:`DataError` in one line: file, row, field, what to do.
"""

from __future__ import annotations

import csv
import gzip
import json
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from csrm_tasks.errors import DataError

BATCH = 10_000  # rows of a Parquet file in memory at a time
BOM = b"\xef\xbb\xbf"

Row = Mapping[str, object]


def fault(path: Path, row: int | None, field: str, what: str) -> DataError:
    """Return the error that names file, row (from 1) and field and says what to do."""
    place = [str(path), *([] if row is None else [f"row {row}"]), *([field] if field else [])]
    return DataError(f"{': '.join(place)}: {what}")


def check_folder(folder: Path, known: Collection[str], suffixes: Sequence[str]) -> list[str]:
    """Raise where ``folder`` is none, or holds a data file that the layout does not have.

    Returns a remark on whatever else lies there and is not read.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: is no folder; --data-dir is where the data set's files lie")
    others = [p for p in sorted(folder.iterdir()) if p.name not in known and p.name[0] != "."]
    for path in others:
        if path.suffix in suffixes:
            raise DataError(
                f"{path}: is no file of this layout ({', '.join(sorted(known))}); move it elsewhere"
            )
    return not_read(others)


def not_read(paths: Sequence[Path]) -> list[str]:
    """Return the remark, if one is due, that files were not read."""
    return [f"not read: {', '.join(path.name for path in paths)}"] if paths else []


def needed(path: Path) -> Path:
    """Return ``path``; raises where there is no such file."""
    if not path.is_file():
        raise DataError(f"{path}: does not exist; this layout needs it")
    return path


def open_binary(path: Path) -> BinaryIO:
    """Open a file, unpacked where its name ends in ``.gz``."""
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")  # type: ignore[return-value]


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield number and text of every line that is not blank, without its end."""
    number = 0
    try:
        with open_binary(path) as file:
            for number, raw in enumerate(file, 1):
                data = raw.removeprefix(BOM) if number == 1 else raw
                text = data.decode("utf-8").rstrip("\r\n")
                if text.strip():
                    yield number, text
    except UnicodeDecodeError as e:
        raise fault(path, number, "", "is not UTF-8; write the file in UTF-8") from e
    except (OSError, EOFError, zlib.error) as e:
        raise fault(path, number + 1, "", f"cannot be read ({e}); fetch the file again") from e


def json_lines(path: Path) -> Iterator[tuple[int, str, Row]]:
    """Yield number, text and object of every line of a file with one JSON object a line."""
    for number, text in lines(path):
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as e:
            what = f"is no JSON ({' '.join(str(e).split())}); one object a line is expected"
            raise fault(path, number, "", what) from e
        if not isinstance(value, dict):
            raise fault(path, number, "", "is no JSON object; one object a line is expected")
        yield number, text, value


def tab_separated(path: Path, columns: Mapping[str, Sequence[str]]) -> Iterator[tuple[int, Row]]:
    """Yield number and wanted fields of every row below the header of a tab-separated file.

    ``columns``: name → the names that it may have in the header. Quotes are those of RFC 4180.
    """
    number = 0
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, delimiter="\t", strict=True)
            header = next(reader, [])
            at = {name: _column(path, header, names) for name, names in columns.items()}
            for number, fields in enumerate(reader, 1):
                if len(fields) == len(header):
                    yield number, {name: fields[i] for name, i in at.items()}
                elif fields:
                    what = f"has {len(fields)} fields and the header {len(header)}; mend the row"
                    raise fault(path, number, "", what)
    except UnicodeDecodeError as e:
        raise fault(path, number + 1, "", "is not UTF-8; write the file in UTF-8") from e
    except (OSError, csv.Error) as e:
        raise fault(path, number + 1, "", f"cannot be read ({e}); fetch the file again") from e


def _column(path: Path, header: Sequence[str], names: Sequence[str]) -> int:
    for name in names:
        if name in header:
            return header.index(name)
    have = ", ".join(header)[:200] or "nothing"
    raise fault(path, None, names[0], f"there is no such column; the header has {have}")


def parquet_rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, Row]]:
    """Yield number (from 1) and wanted fields of every row of a Parquet file."""
    try:
        with pq.ParquetFile(path) as file:
            have = file.schema_arrow.names
            for name in columns:
                if name not in have:
                    what = f"there is no such column; the file has {', '.join(have)}"
                    raise fault(path, None, name, what)
            number = 0
            for batch in file.iter_batches(BATCH, columns=list(columns)):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except (pa.ArrowException, OSError, UnicodeDecodeError) as e:
        what = f"cannot be read as Parquet ({' '.join(str(e).split())[:200]}); fetch the file again"
        raise fault(path, None, "", what) from e


def text_of(value: object) -> str:
    """Return a field as text; a missing one, and one that is no single value, is empty."""
    if value is None or isinstance(value, (dict, list, bool)):
        return ""
    return value if isinstance(value, str) else str(value)


def required(path: Path, number: int, row: Row, field: str) -> str:
    """Return a field as text; raises where it is missing or empty."""
    text = text_of(row.get(field)).strip()
    if not text:
        raise fault(path, number, field, "is missing; every row of this layout has it")
    return text
