"""A row's bytes are found again without reading values, and are those that the reader saw."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest

from csrm_tasks.ingest.contract.contracts import CONTRACTS, contract_of
from csrm_tasks.ingest.reading import readers
from csrm_tasks.ingest.reading.landing import NAME
from csrm_tasks.ingest.reading.records import UnreadableError
from csrm_tasks.ingest.validation.files import Source
from csrm_tasks.sections.data import Columns
from tests.ingest.test_ingest_readers import LAYOUTS, rows_and_bytes

BAD = sorted((Path(__file__).resolve().parents[1] / "fixtures" / "bad").iterdir())


def assert_same_bytes(source: Source) -> None:
    try:
        expected = rows_and_bytes(source.batches(CONTRACTS[source.kind]))
    except UnreadableError:
        return  # it has no rows, and nobody asks for them
    rows = [row for row, _ in expected]
    assert source.raw_of(rows[::-1]) == [raw for _, raw in reversed(expected)]
    assert source.raw_of(rows[1::2]) == [raw for _, raw in expected[1::2]]


@pytest.mark.parametrize("batch", [64, readers.BATCH])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_bytes_of_every_layout(
    layout: str, batch: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, written, packed = LAYOUTS[layout]
    monkeypatch.setattr(readers, "BATCH", batch)
    (tmp_path / "delivery").write_bytes(data)
    assert_same_bytes(Source(tmp_path / "delivery", "labels", written, packed))


def test_bytes_of_broken_deliveries() -> None:
    named = [(path, NAME.fullmatch(path.name)) for path in BAD]
    found = [
        Source(path, match["kind"], match["format"], match["compression"] or "")
        for path, match in named
        if match and match["kind"] in CONTRACTS
    ]
    assert len(found) >= 40
    for source in found:
        assert_same_bytes(source)


def test_bytes_are_read_again_whatever_a_market_calls_its_columns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of Parquet, too: its rows are taken as they are, under no contract's names."""
    monkeypatch.setattr(readers, "PARQUET_ROWS", 2)
    # under the contract's own name stands something else, of a type that would have to be mended
    table = pl.DataFrame({
        "id": ["l1", "l2", "l3", "l4", "l5"], "words": ["q1", "q2", "q3", "q4", "q5"],
        "sku": ["p1", "p2", "p3", "p4", "p5"], "relevance": [0, 1, 2, 2, 9],
        "query": [{"object": [n]} for n in range(5)],
    })  # fmt: skip
    table.write_parquet(tmp_path / "delivery")
    names = {"label_id": "id", "query": "words", "product_id": "sku", "grade": "relevance"}
    own = contract_of("labels", Columns(confirmed=True, labels=names))
    source = Source(tmp_path / "delivery", "labels", "parquet", "")
    expected = rows_and_bytes(source.batches(own))
    assert [json.loads(raw) for _, raw in expected] == table.to_dicts()

    def refused(*_: object) -> None:
        raise AssertionError("a contract's columns are looked for")

    monkeypatch.setattr(readers, "pick", refused)
    assert source.raw_of([5, 2]) == [expected[4][1], expected[1][1]]
