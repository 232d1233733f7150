"""Whatever bytes a market delivers: no crash, and every row is in one place and one only."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import sqlalchemy as sa
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from csrm_tasks.ingest.contract.contracts import CONTRACTS, Reason
from csrm_tasks.ingest.reading.landing import Delivery
from csrm_tasks.ingest.storage.load import load_file
from csrm_tasks.ingest.storage.rows import place_of
from csrm_tasks.ingest.storage.window import LakeWindow
from csrm_tasks.ingest.validation.files import Sorted, Source, sort_file
from csrm_tasks.ingest.validation.validate import ValidationResult
from csrm_tasks.sections import Ingest
from csrm_tasks.store.engine import open_store, reading
from csrm_tasks.store.lake import Lake
from csrm_tasks.store.tables import FILES, LABELS, PRODUCTS, QUARANTINE, TRANSLATIONS
from tests.data_fixtures import ZH
from tests.fixtures.make_bad import DAY, events, labels, parquet, products, search, searches
from tests.fixtures.make_bad import csv as label_csv

BOM = b"\xef\xbb\xbf"
fuzz = settings(max_examples=80, deadline=None, print_blob=True)
COUNTS = ("rows_in", "stored", "quarantined", "known", "ignored")


LINES = {"labels": labels, "ubi_events": events, "ubi_queries": searches, "catalogue": products}


def plain(kind: str, written: str) -> bytes:
    """A valid delivery, some rows long."""
    if written == "csv":
        return label_csv("g3,牛奶,p3,exact,r,1,2026-01-03T10:00:00Z", "g4,milk,p4,S,,,")
    data = LINES[kind]()
    if written == "jsonl":
        return data
    return parquet(pl.read_ndjson(data).to_dict(as_series=False))


PACK: dict[str, Callable[[bytes], bytes]] = {
    "": bytes, "gz": lambda d: gzip.compress(d, mtime=0), "zst": zstandard.compress,
}  # fmt: skip
KINDS = [
    ("labels", "csv"), ("labels", "jsonl"), ("labels", "parquet"), ("ubi_events", "jsonl"),
    ("ubi_events", "parquet"), ("ubi_queries", "jsonl"), ("catalogue", "jsonl"),
]  # fmt: skip


@st.composite
def mutated(draw: st.DrawFn, data: bytes) -> bytes:
    """``data`` after one to four accidents of transport."""
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        until = draw(st.integers(at, min(len(data), at + 40)))
        other = draw(
            st.sampled_from([b"\0", b"\n", b"\r", b'"', b",", b"{", b"}", b"\xff", b"\\", BOM])
            | st.binary(max_size=8)
        )
        data = draw(st.sampled_from([
            data[:at] + other + data[until:],  # overwritten
            data[:at] + data[until:],  # a piece is missing
            data[:at],  # cut off
            data[:until] + data[at:],  # a piece twice
            data[at:] + data[:at],  # turned
            b"\n".join(sorted(data.split(b"\n"))),  # lines in another order
            data + data,
        ]))  # fmt: skip
    return data


def sorted_file(data: bytes, kind: str, written: str, packed: str) -> Sorted:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "delivery"
        path.write_bytes(data)
        clean = Path(folder) / "clean.parquet"
        found = sort_file(Source(path, kind, written, packed), DAY, Ingest(), clean)
        kept = pl.read_parquet(clean)
    assert kept.schema == pl.Schema(CONTRACTS[kind].schema)
    assert kept.height == found.rows
    rows = sorted([*kept["row"], *found.rejected["row"]])
    first = 0 if found.fault == Reason.UNREADABLE else 1
    assert rows == list(range(first, first + len(rows)))
    assert set(found.rejected["reason"]) <= set(Reason)
    return found


def lines_of(text: bytes, written: str) -> int:
    """How many rows there are in text without quotes: what has anything on it, below a header."""
    # A mark at the beginning of a line is none of its text (tests/ingest/test_joined_files.py).
    lines = [re.sub(rb"^(\xef\xbb\xbf)+", b"", line) for line in text.split(b"\n")]
    return sum(bool(x.strip()) for x in (lines[1:] if written == "csv" else lines))


@given(data=st.data(), kind=st.sampled_from(KINDS), packed=st.sampled_from(["", "gz", "zst"]))
@fuzz
def test_damaged_before_it_was_packed(data: Any, kind: tuple[str, str], packed: str) -> None:
    """Text that can be told apart into lines by eye loses none of them."""
    text = data.draw(mutated(plain(*kind)))
    found = sorted_file(PACK[packed](text), *kind, packed)
    separable = kind[1] == "jsonl" or (kind[1] == "csv" and b'"' not in text)
    if separable and found.fault != Reason.UNREADABLE:
        assert found.rows + found.rejected.height == lines_of(text, kind[1])


@given(data=st.data(), kind=st.sampled_from(KINDS), packed=st.sampled_from(["gz", "zst"]))
@fuzz
def test_damaged_after_it_was_packed(data: Any, kind: tuple[str, str], packed: str) -> None:
    """A damaged archive gives nothing, or what another program takes out of it."""
    archive = data.draw(mutated(PACK[packed](plain(*kind))))
    found = sorted_file(archive, *kind, packed)
    if kind[1] == "jsonl" and found.fault != Reason.UNREADABLE:
        text = b"".join(unpacked(archive, packed))
        assert found.rows + found.rejected.height == lines_of(text, "jsonl")


def unpacked(archive: bytes, packed: str) -> Iterator[bytes]:
    if packed == "gz":
        yield gzip.decompress(archive)
    else:
        yield zstandard.ZstdDecompressor().stream_reader(archive, read_across_frames=True).read()


ODD = ["", "2", "p1", "2026-01-03", "0001-01-01T00:00:00+14:00", "=1+1", "NaN", "\u202e", "\0"]
CELL = st.text(max_size=12) | st.sampled_from(ODD)
VALUE = CELL | st.none() | st.integers() | st.floats() | st.booleans() | st.lists(CELL, max_size=2)
COLUMNS = ("label_id", "query", "product_id", "grade", "rater_id", "rated_at", "other")


@st.composite
def tables(draw: st.DrawFn) -> tuple[bytes, str, int]:
    """Some table in some format, and how many rows it has."""
    columns = draw(st.lists(st.sampled_from(COLUMNS), min_size=1, unique=True))
    written = draw(st.sampled_from(["csv", "jsonl", "parquet"]))
    cell = VALUE if written == "jsonl" else CELL
    rows = draw(st.lists(st.lists(cell, min_size=len(columns), max_size=len(columns)), max_size=6))
    named = [dict(zip(columns, row, strict=True)) for row in rows]
    if written == "parquet":
        texts = {c: pl.Series([r[c] for r in named], dtype=pl.String) for c in columns}
        return parquet(texts), written, len(rows)
    if written == "jsonl":
        text = "".join(json.dumps(r) + "\n" for r in named)
        return text.encode(), written, len(rows)
    target = io.StringIO()
    writer = csv.writer(target, quoting=csv.QUOTE_ALL, lineterminator="\n")
    writer.writerows([columns, *rows])
    return target.getvalue().encode("utf-8", "surrogatepass"), written, len(rows)


@given(table=tables(), packed=st.sampled_from(["", "gz", "zst"]))
@fuzz
def test_any_table_keeps_its_number_of_rows(table: tuple[bytes, str, int], packed: str) -> None:
    data, written, rows = table
    found = sorted_file(PACK[packed](data), "labels", written, packed)
    if found.fault == Reason.UNREADABLE:
        assert rows == 0
        assert written == "jsonl"  # a file of nothing
    else:
        assert found.rows + found.rejected.height == rows


@pytest.fixture(scope="module")
def window(tmp_path_factory: pytest.TempPathFactory) -> LakeWindow:
    """A store with four products."""
    home = tmp_path_factory.mktemp("fuzz")
    lake = Lake(str(home / "lake"), "tiny")
    made = LakeWindow(open_store(f"sqlite:///{home}/store.db"), lake, "tiny", DAY)
    names = [{"product_id": f"p{i}", "title": "牛奶"} for i in range(1, 5)]
    load(made, 0, products(*names), "catalogue", "jsonl")
    load(made, 0, searches(search(query_id="s1")), "ubi_queries", "jsonl")
    return made


def load(window: LakeWindow, number: int, data: bytes, kind: str, written: str) -> str:
    """Sort and store one file; returns its name."""
    name = f"{ZH}/{kind}-{number}.{written}"
    with tempfile.TemporaryDirectory() as folder:
        path, clean = Path(folder) / "delivery", Path(folder) / "clean.parquet"
        path.write_bytes(data)
        source = Source(path, kind, written, "")
        found = sort_file(source, DAY, Ingest(), clean)
        judged = ValidationResult(pl.read_parquet(clean), found.rejected, found.fault)
        digest = f"{kind}{number}"
        file = Delivery("", name, ZH, kind, written, "", len(data), digest)
        load_file(window, file, judged, source.raw_of)
    return name


@given(data=st.data(), kind=st.sampled_from(KINDS), number=st.integers(1, 10**9))
@settings(fuzz, max_examples=30)
def test_what_the_receipt_says_is_in_the_store(
    data: Any, kind: tuple[str, str], number: int, window: LakeWindow
) -> None:
    name = load(window, number, data.draw(mutated(plain(*kind))), *kind)
    with reading(window.engine) as connection:
        file = connection.execute(
            sa.select(FILES).where(FILES.c.name == name, FILES.c.live)
        ).mappings().one()  # fmt: skip
        assert file["rows_in"] == sum(file[c] for c in COUNTS[1:])
        held = {
            t: connection.scalar(sa.select(sa.func.count()).where(t.c.file_id == file["id"]))
            for t in (QUARANTINE, LABELS, PRODUCTS, TRANSLATIONS)
        }
    assert held.pop(QUARANTINE) == file["quarantined"]
    if kind[0].startswith("ubi"):
        places = window.lake.paths([place_of(file, file["part"])], Path())
        rows = pl.read_parquet(places).filter(pl.col("query") != "")  # others are ignored
        assert rows.height == file["stored"]
    else:
        assert sum(held.values()) == file["stored"]
