"""Files joined of several (``cat``): marks and headers of the later parts cost no other row."""

from __future__ import annotations

import csv
import gzip
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from csrm_tasks.ingest.contract.contracts import CONTRACTS, Reason
from csrm_tasks.ingest.reading import readers
from csrm_tasks.ingest.reading.readers import read_batches, read_raw
from csrm_tasks.ingest.reading.records import BOM, UnreadableError

CATALOGUE = CONTRACTS["catalogue"]
HEAD = ["product_id", "title", "brand"]
PACK: dict[str, Any] = {
    "": bytes, "gz": gzip.compress, "zst": lambda d: pa.compress(d, "zstd", asbytes=True),
}  # fmt: skip
TEXT = st.text(st.sampled_from('ab, "\n\\ｆ\ufeff牛'), min_size=1, max_size=8).map(
    lambda t: f"x{t}x"
)
# First fields that begin with bytes of the mark, or with all of it where they are quoted.
ID = st.sampled_from(["p", "ｆ", "﷐", "ﺀ", "ﻼ"])
ROWS = st.lists(st.tuples(ID, TEXT, TEXT), max_size=4)
PARTS = st.lists(st.tuples(ROWS, st.booleans(), st.integers(0, 2)), min_size=1, max_size=4)
Found = list[tuple[str | None, str | None, str | None]]


def read(path: Path, written: str, packed: str) -> tuple[Found, list[tuple[str, bytes]]]:
    """Return the good rows, and the fault and bytes of the others."""
    good: Found = []
    bad: list[tuple[str, bytes]] = []
    count = 0
    for records in read_batches(path, written, packed, CATALOGUE):
        for row, fault, *values in records.frame.select("row", "_fault", *HEAD).rows():
            count += 1
            assert row == count
            if fault is None:
                good.append((values[0], values[1], values[2]))
            else:
                bad.append((fault, records.raw_of([row])[0]))
    raw = [row for rows, _ in read_raw(path, written, packed) for row in rows]
    assert raw == list(range(1, count + 1))
    return good, bad


def csv_part(rows: list[Any], *, head: bool, quoting: Any) -> bytes:
    text = io.StringIO()
    csv.writer(text, quoting=quoting, lineterminator="\n").writerows([HEAD, *rows][not head :])
    return text.getvalue().encode()


@given(
    parts=PARTS, packed=st.sampled_from(list(PACK)), every=st.booleans(), batch=st.integers(4, 300)
)
@hypothesis_settings(
    max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_parts_of_csv_are_read_as_they_are_alone(
    parts: list[Any], packed: str, every: bool, batch: int, tmp_path: Path
) -> None:
    """Never a mark in a value; every row of every part is there, or in quarantine for its text.

    A text whose lines may be rows, or with backslashes, is ambiguous with or without a mark: what
    is refused is what is refused of the same parts without marks and without headers.
    """
    quoting = csv.QUOTE_ALL if every else csv.QUOTE_MINIMAL
    joined, plain, again = b"", b"", 0
    for i, (rows, head, marks) in enumerate(parts):
        text = csv_part(rows, head=head or not i, quoting=quoting)
        joined += PACK[packed](BOM * marks + text)
        plain += csv_part(rows, head=not i, quoting=quoting)
        again += head and i > 0
    path = tmp_path / "catalogue"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(readers, "BATCH", batch)
        path.write_bytes(joined)
        found, refused = read(path, "csv", packed)
    path.write_bytes(plain)
    wanted, ambiguous = read(path, "csv", "")
    if ambiguous:  # a header between the parts is one more line that looks like a row
        assert {text for text, _ in refused} <= {Reason.QUOTES, Reason.MALFORMED}
        return
    assert found == wanted == [r for rows, _, _ in parts for r in rows]
    head = csv_part([], head=True, quoting=quoting).rstrip()
    assert refused == [(Reason.MALFORMED, head)] * again


@given(
    parts=st.lists(st.tuples(st.lists(TEXT, max_size=3), st.integers(0, 2)), max_size=5),
    packed=st.sampled_from(list(PACK)),
    batch=st.integers(4, 200),
)
@hypothesis_settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_parts_of_json_lines_are_read_as_they_are_alone(
    parts: list[Any], packed: str, batch: int, tmp_path: Path
) -> None:
    path = tmp_path / "catalogue"
    rows = [
        [json.dumps({"product_id": "p", "title": t}, ensure_ascii=False) for t in texts]
        for texts, _ in parts
    ]
    members = [
        BOM * marks + "".join(f"{line}\n" for line in lines).encode()
        for lines, (_, marks) in zip(rows, parts, strict=True)
    ]
    path.write_bytes(b"".join(map(PACK[packed], members)) or PACK[packed](b""))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(readers, "BATCH", batch)
        found, refused = read(path, "jsonl", packed)
    assert [title for _, title, _ in found] == [t for texts, _ in parts for t in texts]
    assert refused == []


@pytest.mark.parametrize("written", ["csv", "jsonl"])
def test_a_mark_does_not_mend_what_is_wrong_behind_it(written: str, tmp_path: Path) -> None:
    path = tmp_path / "catalogue"
    good, bad = {
        "csv": (b"product_id,title,brand\np1,a,b\n", b"p2,only\n"),
        "jsonl": (b'{"product_id": "p1", "title": "a", "brand": "b"}\n', b"p2\n"),
    }[written]
    path.write_bytes(good + BOM + bad + BOM + b"\xff\n" + BOM + b"\n" + BOM)
    found, refused = read(path, written, "")
    assert found == [("p1", "a", "b")]  # a line of nothing but a mark is blank
    assert refused == [(Reason.MALFORMED, bad.rstrip()), (Reason.ENCODING, b"\xff")]


@pytest.mark.parametrize("mark", [b"", BOM])
def test_a_header_of_another_order_makes_the_file_unreadable(mark: bytes, tmp_path: Path) -> None:
    path = tmp_path / "catalogue"
    path.write_bytes(
        b"product_id,title,brand\np1,title,brand\n" + mark + b"product_id,brand,title\np2,LG,TV\n"
    )
    with pytest.raises(UnreadableError, match="different orders"):
        read(path, "csv", "")
