"""The tables of ``docs/DATA.md``: a section for each kind, from its contract."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from csrm_tasks.ingest.contract.contracts import GRADES, Column, Contract

CATEGORIES = """\
A market that joins the levels of a category otherwise says so, `ingest: {category_separator: "/"}`;
they are stored joined by ' > ' all the same, without empty ones. Another setting holds for files
delivered from then on. The same holds for `query_categories`."""

CATEGORY_LABELS = """\
Read by markets whose `tasks` name `qc` ([TASKS.md](TASKS.md)); the others store them. A category
need not be one of the catalogue's. The query-item task has no file of its own: it reads
`labels`."""


def section(contract: Contract) -> str:
    """Return the section of one kind of files."""
    heads = ("column", "what it is", "type", "required", "values", "found as")
    parts = [f"## `{contract.kind}`", contract.about, table(heads, map(_row, contract.columns))]
    if contract.kind == "catalogue":
        parts.append(CATEGORIES)
    if contract.kind == "query_categories":
        parts.append(CATEGORY_LABELS)
    if any(c.vocabulary is GRADES for c in contract.columns):
        parts.append(_grades())
    return "\n\n".join(parts) + "\n"


def _row(column: Column) -> Sequence[str]:
    found = ", ".join(f"`{path}`" for path in column.paths)
    required = "yes" if column.required else "no"
    return f"`{column.name}`", column.about, column.holds, required, _values(column), found


def _values(column: Column) -> str:
    if column.vocabulary is GRADES:
        return "see below"
    if column.vocabulary is not None:
        return ", ".join(
            f"`{word}`" if word == value else f"`{word}` ({value})"
            for word, value in column.vocabulary.items()
        )
    if column.holds == "list":
        return "identifiers"
    if column.holds == "integer":
        return f"{column.at_least:,} to {column.at_most:,}"
    if column.holds == "time":
        return "see above; not `too_old`" if column.late else "see above"
    return f"up to {column.max_chars:,} characters"


def _grades() -> str:
    spellings: dict[str | int, list[str]] = defaultdict(list)
    for word, grade in GRADES.items():
        spellings[grade].append(f"`{word}`")
    rows = ((str(grade), ", ".join(words)) for grade, words in sorted(spellings.items()))
    shown = table(("grade", "written as (in any case)"), rows)
    return (
        f"{shown}\n\nESCI's complement (`c`) is irrelevant unless the market says "
        "`ingest: {complement: substitute}`: a case for the phone that was asked for is not that "
        "phone.\nA market with another scale says what its words mean, and then no other is known: "
        "`ingest: {grades: {4: exact, 3: exact, 2: substitute, 1: irrelevant}}`.\n"
        "Another setting holds for files delivered from then on."
    )


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(
        "| " + " | ".join(c.replace("|", "\\|") for c in line) + " |" for line in lines
    )
