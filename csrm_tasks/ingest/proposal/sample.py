"""A bounded sample of a file, spread over it: of a huge one only pieces are read."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import polars as pl

from csrm_tasks.errors import DataError
from csrm_tasks.ingest.reading.readers import CODECS
from csrm_tasks.ingest.validation.times import parse_times

ROWS = 2_000
PIECES = 16
PIECE = 256 << 10  # bytes of text
FORMATS = {"csv": ",", "tsv": "\t", "jsonl": "", "parquet": ""}


@dataclass(frozen=True)
class Sample:
    """Rows of a file as text: one column per name, nested ones with dots; null where empty."""

    path: Path
    written: str  # csv, tsv, jsonl, parquet
    rows: pl.DataFrame


def read_sample(path: Path) -> Sample:
    """Read at most :data:`ROWS` rows; raises :class:`DataError` where the file tells no columns."""
    import pyarrow as pa

    name, _, packed = path.name.rpartition(".")
    packed = packed if packed in ("gz", "zst") else ""
    written = (name if packed else path.name).rpartition(".")[2].lower()
    if written not in FORMATS:
        raise DataError(
            f"{path}: is none of .csv, .tsv, .jsonl, .parquet (also .gz, .zst); save it as one"
        )
    try:
        if written == "parquet":
            records = list(_parquet(path))
        else:
            pieces = list(_pieces(path, packed))
            records = list(_json(path, pieces) if written == "jsonl" else
                           _separated(path, pieces, FORMATS[written]))  # fmt: skip
    except (OSError, EOFError, UnicodeDecodeError, csv.Error, pa.ArrowException) as e:
        raise DataError(f"{path}: cannot be read as {written} in UTF-8; write it anew") from e
    if not records:
        raise DataError(f"{path}: has no rows; give a file that has some")
    chosen = [records[i * len(records) // ROWS] for i in range(ROWS)]
    chosen = records if len(records) <= ROWS else chosen
    names = sorted({name for row in chosen for name in row})
    table = {n: pl.Series([_text(row.get(n)) for row in chosen], dtype=pl.String) for n in names}
    return Sample(path, written, pl.DataFrame(table))


def _text(value: object) -> str | None:
    if isinstance(value, list):
        return json.dumps(value, ensure_ascii=False, default=str)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = "" if value is None else str(value).strip()
    return text or None


def _pieces(path: Path, packed: str) -> Iterator[list[str]]:
    """Yield whole lines from places spread over the file, its beginning first."""
    import pyarrow as pa

    size = path.stat().st_size
    if packed:  # cannot be entered but at its beginning
        with pa.input_stream(str(path), compression=CODECS[packed]) as stream:
            yield _lines(stream.read(PIECES * PIECE), False)
        return
    with path.open("rb") as f:
        if size <= PIECES * PIECE:
            yield _lines(f.read(), True)
            return
        for at in range(PIECES):
            yield _piece(f, at * (size - PIECE) // (PIECES - 1), at == PIECES - 1)


def _piece(f: BinaryIO, at: int, last: bool) -> list[str]:
    f.seek(max(0, at - 1))
    if at:
        f.readline(PIECE)
    return _lines(f.read(PIECE), last)


def _lines(data: bytes, whole: bool) -> list[str]:
    if not whole and len(data) >= PIECE:
        data = data[: data.rfind(b"\n") + 1]
    text = data.removeprefix(b"\xef\xbb\xbf").decode()
    return [line for line in io.StringIO(text, newline="\n") if line.strip()]


def _separated(path: Path, pieces: list[list[str]], mark: str) -> Iterator[Mapping[str, object]]:
    if not pieces[0]:
        return
    header = [n.strip() for n in next(csv.reader(pieces[0], delimiter=mark))]
    pieces[0] = pieces[0][1:]
    # A piece may begin inside a quoted text: what has another number of fields is left out.
    rows = [r for p in pieces for r in csv.reader(p, delimiter=mark) if len(r) == len(header)]
    _check_header(path, header, rows)
    for row in rows:
        yield {n: v for n, v in zip(header, row, strict=True) if n}


def _check_header(path: Path, header: list[str], rows: list[list[str]]) -> None:
    twice = [n for n in header if n and header.count(n) > 1]
    if twice:
        raise DataError(f"{path}: column {twice[0]!r} occurs twice in the header; rename one")
    for number, name in enumerate(header):
        values = {row[number].strip() for row in rows}
        dated = parse_times(pl.Series([name]))[0] is not None
        if dated or name.replace(".", "").isdecimal() or (name in values and name):
            raise DataError(
                f"{path}: line 1 looks like a row (field {number + 1} is a value), not a header; "
                "put the columns' names there"
            )


def _json(path: Path, pieces: list[list[str]]) -> Iterator[Mapping[str, object]]:
    for number, line in ((n, text) for p in pieces for n, text in enumerate(p, 1)):
        try:
            row = json.loads(line, object_pairs_hook=_once)
        except _TwiceError as e:
            raise DataError(f"{path}: key {str(e)!r} occurs twice in an object; rename one") from e
        except ValueError as e:
            raise DataError(f"{path}: line {number} looked at is no JSON object") from e
        if not isinstance(row, dict):
            raise DataError(f"{path}: line {number} looked at is no JSON object; no names, no map")
        yield dict(_flat(row))


class _TwiceError(Exception):
    pass


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found: dict[str, object] = {}
    for name, value in pairs:
        if name in found:
            raise _TwiceError(name)
        found[name] = value
    return found


def _flat(row: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    for name, value in row.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _parquet(path: Path) -> Iterator[Mapping[str, object]]:
    import pyarrow.parquet as pq

    with closing(pq.ParquetFile(path)) as file:
        names = file.schema_arrow.names
        if twice := [n for n in names if names.count(n) > 1]:
            raise DataError(f"{path}: column {twice[0]!r} occurs twice; rename one")
        groups = file.metadata.num_row_groups
        chosen = sorted({i * groups // PIECES for i in range(PIECES)}) if groups else []
        for group in chosen:
            rows = next(file.iter_batches(-(-ROWS // len(chosen)), row_groups=[group]), None)
            for row in rows.to_pylist() if rows is not None else ():
                yield dict(_flat(row))
