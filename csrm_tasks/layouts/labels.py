"""People's grades from elsewhere as an ordinary delivery of labels, once per content.

The delivery says grades and columns as the market's own files do (``ingest.grades``,
``ingest.columns``): the contract that it then meets is the market's.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from csrm_tasks.blobs import text_digest
from csrm_tasks.errors import DataError
from csrm_tasks.ingest.contract.contracts import GRADES
from csrm_tasks.ingest.reading.landing import check_day
from csrm_tasks.sections import Ingest


def land(
    folder: Path,
    name: str,
    rows: Sequence[tuple[Sequence[str], Mapping[str, object]]],
    ingest: Ingest,
) -> tuple[Path, bool]:
    """Put labels into ``folder`` ({market}/{day}/{locale}); return the file, and whether it is new.

    ``rows``: what tells a label from the others, and its columns but ``label_id``; ``name`` begins
    file and identifiers. What is there already is found again, and a later file of the day comes
    after an earlier one: of a rater's several grades of a pair the last counts.
    """
    day = check_day(folder.parent.name)
    landed = re.compile(rf"labels-{re.escape(name)}(\d+)\.jsonl")
    folder.mkdir(parents=True, exist_ok=True)
    there = sorted(
        (int(m[1]), p) for p in folder.iterdir() if (m := landed.fullmatch(p.name)) is not None
    )
    for number, path in there:
        if path.read_text(encoding="utf-8") == _lines(name, rows, day, number, ingest):
            return path, False
    number = there[-1][0] + 1 if there else 1
    path = folder / f"labels-{name}{number:04d}.jsonl"
    part = folder / f".{path.name}.part"
    part.write_text(_lines(name, rows, day, number, ingest), encoding="utf-8")
    part.replace(path)
    return path, True


def _lines(
    name: str,
    rows: Sequence[tuple[Sequence[str], Mapping[str, object]]],
    day: str,
    number: int,
    ingest: Ingest,
) -> str:
    called, lines = ingest.columns.labels, []
    for key, columns in rows:
        row = {"label_id": f"{name}-{text_digest(*key, day, str(number))}", **columns}
        row["grade"] = _spelt(row["grade"], ingest)
        row = {str(called.get(c, c)): value for c, value in row.items()}  # type: ignore[call-overload]
        lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    return "".join(lines)


def _spelt(grade: object, ingest: Ingest) -> object:
    """Return a grade as the market's own scale writes it; raises where that has no such grade."""
    if not ingest.grades:
        return grade
    for word, meaning in ingest.grades.items():
        if GRADES[meaning] == grade:
            return word
    raise DataError(f"ingest.grades: no word of the market's own scale means {grade}; add one")
