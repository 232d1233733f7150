"""Readers and validation: any layout gives the same rows, and what is broken is named."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from csrm_tasks.ingest.contract.contracts import CONTRACTS
from csrm_tasks.ingest.reading import csv_quotes, json_records, readers
from csrm_tasks.ingest.reading.readers import read_batches, read_raw
from csrm_tasks.ingest.reading.records import Records, UnreadableError
from csrm_tasks.ingest.validation.files import Source
from csrm_tasks.ingest.validation.validate import REJECTED, ValidationResult, validate_batch
from csrm_tasks.sections import Ingest

DAY = "2026-01-04"
TERMS = Ingest()
LABELS = CONTRACTS["labels"]
GOOD = [
    {"label_id": "l1", "query": '5" nail, "steel"', "product_id": "p1", "grade": "2",
     "rater_id": "r", "guideline_version": "1", "rated_at": "2026-01-03T10:00:00+09:00"},
    {"label_id": "l2", "query": "牛奶\n低脂", "product_id": "p2", "grade": "irrelevant",
     "rater_id": "", "guideline_version": "", "rated_at": ""},
    {"label_id": "l3", "query": "x", "product_id": "p3", "grade": "S",
     "rater_id": "", "guideline_version": "", "rated_at": "1767434400"},
]  # fmt: skip


def as_csv(rows: list[dict[str, Any]], end: str = "\n") -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator=end)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def as_jsonl(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows).encode()


def as_parquet(rows: list[dict[str, Any]]) -> bytes:
    target = io.BytesIO()
    pl.DataFrame(rows).write_parquet(target)
    return target.getvalue()


def take(
    tmp_path: Path, data: bytes, written: str = "csv", packed: str = "", kind: str = "labels",
    terms: Ingest = TERMS,
) -> ValidationResult:  # fmt: skip
    """Judge a whole delivery."""
    path = tmp_path / "delivery"
    path.write_bytes(data)
    batches = read_batches(path, written, packed, CONTRACTS[kind])
    nothing = ValidationResult(
        pl.DataFrame(schema=CONTRACTS[kind].schema), pl.DataFrame(schema=REJECTED)
    )
    judged = [
        nothing,
        *(validate_batch(records, CONTRACTS[kind], DAY, terms) for records in batches),
    ]
    return ValidationResult(
        pl.concat([j.clean for j in judged]), pl.concat([j.rejected for j in judged]),
        judged[-1].fault,
    )  # fmt: skip


def rows_and_bytes(batches: Iterable[Records]) -> list[tuple[int, bytes]]:
    found: list[tuple[int, bytes]] = []
    for records in batches:
        rows = records.frame["row"].to_list()
        found += zip(rows, records.raw_of(rows), strict=True)
    return found


def reasons(judged: ValidationResult) -> list[tuple[int, str, str]]:
    return judged.rejected.select("row", "reason", "detail").rows()


LAYOUTS = {
    "csv": (as_csv(GOOD), "csv", ""),
    "csv crlf": (as_csv(GOOD, "\r\n"), "csv", ""),
    "csv bom": (b"\xef\xbb\xbf" + as_csv(GOOD), "csv", ""),
    "csv gz": (gzip.compress(as_csv(GOOD)), "csv", "gz"),
    "jsonl": (as_jsonl(GOOD), "jsonl", ""),
    "jsonl bom and blank lines": (b"\xef\xbb\xbf\n" + as_jsonl(GOOD) + b"\n \n", "jsonl", ""),
    "jsonl zst": (pa.compress(as_jsonl(GOOD), "zstd", asbytes=True), "jsonl", "zst"),
    "parquet": (as_parquet(GOOD), "parquet", ""),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_rows(layout: str, tmp_path: Path) -> None:
    judged = take(tmp_path, *LAYOUTS[layout])
    assert judged.rejected.is_empty()
    assert judged.fault is None
    clean = judged.clean
    assert dict(clean.schema) == {
        n: t() if isinstance(t, type) else t for n, t in LABELS.schema.items()
    }
    assert clean["row"].to_list() == [1, 2, 3]
    assert clean["query"].to_list() == [r["query"] for r in GOOD]
    assert clean["grade"].to_list() == [2, 0, 1]
    assert clean["rater_id"].to_list() == ["r", "", ""]
    stamps = [t and t.isoformat() for t in clean["rated_at"]]
    assert stamps == ["2026-01-03T01:00:00+00:00", None, "2026-01-03T10:00:00+00:00"]


def test_rows_of_parquet_are_kept_as_the_text_that_they_were_read_as(tmp_path: Path) -> None:
    """Old writers have texts as bytes, and any has numbers that JSON lacks."""
    frame = pl.DataFrame({
        "label_id": [b"l1"], "query": ["\uc6b0\uc720".encode()], "product_id": [b"p1"],
        "grade": [float("nan")], "note": [b"\xff"], "share": [float("inf")],
    })  # fmt: skip
    target = io.BytesIO()
    frame.write_parquet(target)
    judged = take(tmp_path, target.getvalue(), "parquet")
    assert [reason for _, reason, _ in reasons(judged)] == ["missing_value"]
    kept = json.loads(judged.rejected["raw"][0])
    assert kept == {
        "label_id": "l1", "query": "\uc6b0\uc720", "product_id": "p1", "grade": None,
        "note": "\\xff", "share": None,
    }  # fmt: skip


def test_typed_parquet_columns(tmp_path: Path) -> None:
    frame = pl.DataFrame({
        "label_id": [1, 2], "query": ["a", "b"], "product_id": [10, 11], "grade": [2.0, None],
        "rated_at": pl.Series(["2026-01-03T10:00:00"] * 2).str.to_datetime(time_zone="Asia/Seoul"),
    })  # fmt: skip
    target = io.BytesIO()
    frame.write_parquet(target)
    judged = take(tmp_path, target.getvalue(), "parquet")
    assert judged.clean.select("label_id", "product_id", "grade").rows() == [("1", "10", 2)]
    assert judged.clean["rated_at"][0].isoformat() == "2026-01-03T01:00:00+00:00"
    assert reasons(judged) == [(2, "missing_value", "grade")]
    assert json.loads(judged.rejected["raw"][0])["label_id"] == 2


BAD_LABELS = {
    "l9,,p,1,,,": ("missing_value", "query"),
    "l9,q,p,-1,,,": ("unknown_value", "grade"),
    "l9,q\0q,p,1,,,": ("nul_byte", "query"),
    f"l9,{'q' * 501},p,1,,,": ("too_long", "query"),
    "l9,q,p,1,,,yesterday": ("wrong_type", "rated_at"),
    "l9,q,p,1,,,2026-01-07": ("future_time", "rated_at"),
    "l9,q,p,1,,": ("malformed_row", ""),
    "l9,q,p,1,,,,x": ("malformed_row", ""),
    'l9,"q,p,1,,,': ("malformed_row", ""),
    "l9,q\udcff,p,1,,,": ("encoding", ""),
}


@pytest.mark.parametrize("line", BAD_LABELS, ids=[":".join(r) for r in BAD_LABELS.values()])
def test_a_bad_row_is_named_and_its_neighbours_are_kept(line: str, tmp_path: Path) -> None:
    raw = line.encode("utf-8", "surrogateescape")
    head, *rows = as_csv([r | {"query": "plain"} for r in GOOD]).splitlines()
    judged = take(tmp_path, b"\n".join([head, rows[0], raw, *rows[1:]]))
    assert reasons(judged) == [(2, *BAD_LABELS[line])]
    assert judged.rejected["raw"].to_list() == [raw]
    assert judged.clean["row"].to_list() == [1, 3, 4]


BAD_EVENTS = {
    '{"action_name":"click","timestamp":"2026-01-04","object_id":"p"}':
        ("missing_value", "query_id"),
    '{"action_name":"click","query_id":"q","timestamp":"2026-01-04","object_id":"p","position":-1}':
        ("out_of_range", "position"),
    '{"action_name":"click","query_id":"q","timestamp":"2026-01-04","object_id":["p"]}':
        ("malformed_row", ""),
    '{"action_name":"click"},{"action_name":"click"}': ("malformed_row", ""),
    '{"action_name":"click"': ("malformed_row", ""),
    '["click"]': ("malformed_row", ""),
    '{"action_name":"\\ud800"}': ("nul_byte", "action_name"),  # what half a character decodes to
}  # fmt: skip


@pytest.mark.parametrize("line", BAD_EVENTS)
def test_a_bad_event_is_named(line: str, tmp_path: Path) -> None:
    good = {"action_name": "Click", "query_id": 7, "timestamp": "2026-01-04 10:00:00.5Z",
            "event_attributes": {
                "object": {"object_id": "p"}, "position": {"ordinal": 3}, "bucket": "B",
            }}  # fmt: skip
    data = "\n".join([json.dumps(good), line, json.dumps(good)]).encode()
    judged = take(tmp_path, data, "jsonl", kind="ubi_events")
    assert reasons(judged) == [(2, *BAD_EVENTS[line])]
    assert judged.rejected["raw"].to_list() == [line.encode()]
    columns = ("row", "action_name", "query_id", "object_id", "position", "bucket", "release")
    assert judged.clean.select(columns).rows() == [
        (1, "click", "7", "p", 3, "B", ""), (3, "click", "7", "p", 3, "B", ""),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("data", "written", "packed"),
    [
        (b"", "parquet", ""), (b"\xff\xfe\n", "csv", ""),
        (b"a,a\n1,2\n", "csv", ""), (gzip.compress(b"x" * 1000, mtime=0)[:-9], "csv", "gz"),
        (b"not zstd", "jsonl", "zst"), (b"PAR1 not", "parquet", ""),
        (as_parquet([{"label_id": ["a"], "query": "q"}]), "parquet", ""),
    ],
)  # fmt: skip
def test_a_file_that_is_damaged_or_says_nothing_is_unreadable(
    data: bytes, written: str, packed: str, tmp_path: Path
) -> None:
    with pytest.raises(UnreadableError):
        take(tmp_path, data, written, packed)


def test_a_missing_column_rejects_every_row_and_faults_the_file(tmp_path: Path) -> None:
    judged = take(tmp_path, b"label_id;query\nl1;a\nl2;b\n")
    assert judged.fault == "missing_column"
    why = "label_id (the file has label_id;query)"
    assert reasons(judged) == [(1, "missing_column", why), (2, "missing_column", why)]
    assert judged.rejected["raw"].to_list() == [b"l1;a", b"l2;b"]


def test_header_only_is_a_file_of_no_rows(tmp_path: Path) -> None:
    judged = take(tmp_path, as_csv(GOOD).splitlines()[0])
    assert (judged.clean.height, judged.rejected.height, judged.fault) == (0, 0, None)


CELL = st.text(st.sampled_from('a,"\n\r 牛'), max_size=6)


@given(rows=st.lists(st.lists(CELL, min_size=3, max_size=3), min_size=1, max_size=6))
@hypothesis_settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_csv_that_the_standard_library_wrote_comes_back(
    rows: list[list[str]], tmp_path: Path
) -> None:
    text = io.StringIO()
    writer = csv.writer(text, quoting=csv.QUOTE_ALL, lineterminator="\n")
    writer.writerows([["label_id", "query", "product_id"], *rows])
    path = tmp_path / "f.csv"
    path.write_bytes(text.getvalue().encode())
    frame = pl.concat(r.frame for r in read_batches(path, "csv", "", LABELS))
    found = frame.select("label_id", "query", "product_id").rows()
    assert [tuple(v or "" for v in r) for r in found] == [tuple(r) for r in rows]


@given(data=st.binary(max_size=200), written=st.sampled_from(["csv", "jsonl"]))
@hypothesis_settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_arbitrary_bytes_never_crash_and_never_lose_a_line(
    data: bytes, written: str, tmp_path: Path
) -> None:
    head = b"label_id,query,product_id,grade,rater_id,guideline_version,rated_at\n"
    body = data.replace(b'"', b"")
    try:
        judged = take(tmp_path, head + body if written == "csv" else body, written)
    except UnreadableError:
        assert body.startswith((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff"))
        return
    lines = [re.sub(rb"^(\xef\xbb\xbf)+", b"", line) for line in body.split(b"\n")]
    rows = sorted([*judged.clean["row"], *judged.rejected["row"]])
    assert rows == list(range(1, sum(bool(x.strip()) for x in lines) + 1))


@given(
    body=st.text(st.sampled_from('a,"\n\r'), max_size=40),
    batch=st.integers(1, 60),
    quoted=st.integers(1, 60),
)
@hypothesis_settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_whatever_the_quotes_and_batches_every_byte_is_in_some_row(
    body: str, batch: int, quoted: int, tmp_path: Path
) -> None:
    path = tmp_path / "f.csv"
    path.write_bytes(b"label_id,query\n" + body.encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(readers, "BATCH", batch)
        patch.setattr(csv_quotes, "QUOTED_LIMIT", quoted)
        found = rows_and_bytes(read_batches(path, "csv", "", LABELS))
        again = [
            pair
            for rows, raw_of in read_raw(path, "csv", "")
            for pair in zip(rows, raw_of(rows), strict=True)
        ]
    assert again == found
    assert [row for row, _ in found] == list(range(1, len(found) + 1))
    kept = b"".join(raw for _, raw in found).decode()
    assert kept.translate(BLANK) == body.translate(BLANK)


BLANK = dict.fromkeys(map(ord, "\r\n"))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("batch", [1, 20, 100])
def test_small_batches_give_the_same_rows(
    layout: str, batch: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = take(tmp_path, *LAYOUTS[layout])
    monkeypatch.setattr(readers, "BATCH", batch)
    monkeypatch.setattr(readers, "PARQUET_ROWS", 2)
    parts = take(tmp_path, *LAYOUTS[layout])
    _, written, packed = LAYOUTS[layout]
    source = Source(tmp_path / "delivery", "labels", written, packed)
    rows = rows_and_bytes(source.batches(LABELS))
    assert source.raw_of([3, 1, 3]) == [rows[2][1], rows[0][1], rows[2][1]]
    assert source.raw_of([]) == []
    assert_frame_equal(parts.clean, whole.clean)
    assert_frame_equal(parts.rejected, whole.rejected)


def test_a_stray_quote_does_not_hold_up_the_batches_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "BATCH", 100)
    monkeypatch.setattr(csv_quotes, "QUOTED_LIMIT", 150)
    lines = [f"l{i},q,p,1" for i in range(100)]
    lines[50] = 'l50,"q,p,1'
    path = tmp_path / "f.csv"
    path.write_text("label_id,query,product_id,grade\n" + "\n".join(lines))
    batches = list(read_batches(path, "csv", "", LABELS))
    assert len(batches) > 9
    assert max(b.frame.height for b in batches) < 35  # 150 bytes and a batch or two
    assert rows_and_bytes(batches) == [(i, x.encode()) for i, x in enumerate(lines, start=1)]
    faults = pl.concat(b.frame for b in batches).filter(pl.col("_fault").is_not_null())
    assert faults["row"].to_list() == [51]


def test_a_record_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "BATCH", 100)
    monkeypatch.setattr(readers, "RECORD_LIMIT", 1000)
    with pytest.raises(UnreadableError, match="a record is longer than"):
        take(tmp_path, b"x" * 5000, "jsonl")


ODD_JSON = st.sampled_from([
    '{"label_id":"l1","query":"q"}', '{"label_id":1.50,"grade":2,"extra":[1]}', "null", "{}", "[]",
    '{"label_id":1}{"label_id":2}', '{"label_id":1}}, {"n":1,"v":{}', '{"label_id":NaN}', '{"a":1',
    '{"label_id":"\\ud800"}', '{"label_id":1,"label_id":2}', '{"label_id":{"a":1}}', "\ud800",
    '{"label_id":1e400}', " ", "", '{"label_id":"[1]","query":"{a"}',
    '{"query":[1],"label_id":"x"}',
    '{"label_id":12345678901234567890}', '{"label_id":true}',
])  # fmt: skip


@given(lines=st.lists(ODD_JSON, max_size=12), few=st.integers(1, 8))
@hypothesis_settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_a_line_of_json_does_not_depend_on_its_neighbours(
    lines: list[str], few: int, tmp_path: Path
) -> None:
    def read(chosen: list[str]) -> list[tuple[Any, ...]]:
        path = tmp_path / "f.jsonl"
        path.write_bytes("\n".join(["{}", *chosen]).encode("utf-8", "surrogatepass"))
        batches = read_batches(path, "jsonl", "", LABELS)
        return [row[1:] for batch in batches for row in batch.frame.rows()][1:]

    alone = [row for line in lines for row in read([line])]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_records, "FEW", few)
        assert read(lines) == alone
