"""A row's bytes are found again without reading values, and are those that the reader saw."""

from __future__ import annotations

from pathlib import Path

import pytest

from csrm_tasks.ingest.contract.contracts import CONTRACTS
from csrm_tasks.ingest.reading import readers
from csrm_tasks.ingest.reading.landing import NAME
from csrm_tasks.ingest.reading.records import UnreadableError
from csrm_tasks.ingest.validation.files import Source
from tests.ingest.test_ingest_readers import LAYOUTS, rows_and_bytes

BAD = sorted((Path(__file__).resolve().parents[1] / "fixtures" / "bad").iterdir())


def assert_same_bytes(source: Source) -> None:
    try:
        expected = rows_and_bytes(source.batches())
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
