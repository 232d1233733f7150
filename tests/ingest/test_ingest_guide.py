"""docs/DATA.md says what the code does."""

from __future__ import annotations

from pathlib import Path

from csrm_tasks.ingest.contract.contracts import CONTRACTS, REASONS, Reason
from csrm_tasks.ingest.guide import DATA_MD, data_guide, main


def test_the_committed_guide_is_what_the_contracts_say() -> None:
    assert DATA_MD.read_text(encoding="utf-8") == data_guide(), "python -m csrm_tasks.ingest.guide"


def test_writing_it_again_writes_the_same(tmp_path: Path) -> None:
    main(tmp_path / "DATA.md")
    assert (tmp_path / "DATA.md").read_bytes() == DATA_MD.read_bytes()


def test_nothing_that_is_declared_is_left_out() -> None:
    assert set(REASONS) == set(Reason)
    guide = data_guide()
    for contract in CONTRACTS.values():
        section = guide.split(f"## `{contract.kind}`\n")[1].split("\n## ")[0]
        rows = [line.split(" | ") for line in section.splitlines() if line.startswith("| `")]
        described = {row[0].strip("| `"): row for row in rows}
        for column in contract.columns:
            row = described[column.name]
            assert column.about in row[1]
            assert row[3] == ("yes" if column.required else "no")
            assert all(f"`{path}`" in row[5] for path in column.paths)
    assert all(f"| `{reason}` | {meaning} |" in guide for reason, meaning in REASONS.items())


def test_the_names_that_a_market_may_give_its_columns_are_explained() -> None:
    guide = " ".join(data_guide().split())
    assert "ingest: {columns: {confirmed: true" in guide and "`confirmed: false`" in guide
    assert "csrm import propose" in guide and "csrm market check" in guide
