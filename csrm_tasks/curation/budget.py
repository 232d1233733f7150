"""The label budget's sheet on its way back: grades of people who judge what the gate left open."""

from __future__ import annotations

from pathlib import Path

from csrm_tasks.errors import DataError
from csrm_tasks.ingest.reading.landing import check_day
from csrm_tasks.layouts import labels
from csrm_tasks.release.online.audits import read_grades, require_raters
from csrm_tasks.sections import Ingest
from csrm_tasks.spreadsheets import read_sheet

NAME = "budget"  # begins the landed file, and is the labels' guideline_version
KEY = "label_id"


def land_budget(
    path: Path, sent: Path, folder: Path, day: str, locale: str, ingest: Ingest
) -> tuple[Path, bool, int]:
    """Land the grades of a filled-in ``label_budget.csv`` as gold of a day.

    ``sent``: the sheet as the gate wrote it, whose texts and identifiers count, whatever a
    spreadsheet has made of them; ``folder``: a market's landing zone. Rows without a grade are not
    judged yet. Returns the file, whether it is new, and how many grades it holds. Raises
    :class:`DataError` naming file, row and field, and where nothing was judged.
    """
    asked = {row.cells[KEY]: row.cells for row in read_sheet(sent, (KEY,), locale)}
    answers = read_grades(path, KEY, asked.keys(), locale, sent).unique(maintain_order=True)
    require_raters(path, KEY, answers)
    if answers.is_empty():
        raise DataError(f"{path}: the sheet has no grade yet: fill in 'grade' and 'rater_id'")
    rows = []
    for item, grade, rater in answers.sort("item", "rater_id").iter_rows():
        told = {c: asked[item][c] for c in ("query", "product_id")}
        about = {"grade": grade, "rater_id": rater, "guideline_version": NAME, "held_out": 1}
        rows.append(((item, rater), told | about))
    landed, new = labels.land(folder / check_day(day) / locale, NAME, rows, ingest)
    return landed, new, len(rows)
