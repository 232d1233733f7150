"""A proposal as a part of the market's file, for a person to read and to confirm."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from csrm_tasks.errors import ConfigError, DataError
from csrm_tasks.ingest.contract.contracts import CONTRACTS
from csrm_tasks.ingest.proposal.match import Found, grades_of, kind_of, match
from csrm_tasks.ingest.proposal.sample import Sample, read_sample


@dataclass(frozen=True)
class Proposal:
    """What of a file is which of the contract's columns; ``grades`` is word → meaning."""

    sample: Sample
    kind: str
    found: tuple[Found, ...]
    grades: dict[str, str]
    unknown_grades: tuple[str, ...]

    @property
    def sure(self) -> dict[str, str]:
        """Column to name, of those that stand as proposed."""
        return {f.column: f.name for f in self.found if f.sure}

    @property
    def missing(self) -> tuple[str, ...]:
        """Required columns without a sure one."""
        return tuple(
            c.name for c in CONTRACTS[self.kind].columns if c.required and c.name not in self.sure
        )


def propose(path: Path, kind: str | None = None) -> Proposal:
    """Propose the columns of a file; raises :class:`DataError` where it has none to speak of."""
    if not path.is_file():
        raise DataError(f"{path}: there is no such file")
    sample = read_sample(path)
    chosen = kind or kind_of(sample)
    found = tuple(match(sample, chosen))
    grade = next((f for f in found if f.column == "grade" and f.sure), None)
    # Values of a column that may be something else are not shown: they may be of persons.
    grades, unknown = grades_of(sample.rows[grade.name]) if grade else ({}, [])
    return Proposal(sample, chosen, found, grades, tuple(unknown))


def written(proposal: Proposal) -> str:
    """Return the proposal as YAML: unsure columns and grades are comments."""
    return "\n".join(_lines(proposal)) + "\n"


def _lines(proposal: Proposal) -> Iterator[str]:
    name, rows = _quoted(proposal.sample.path.name), proposal.sample.rows.height
    yield f"# Proposed by csrm import propose from {name} ({rows} rows of it)."
    yield "# Read it, put it into the market's file, and set confirmed: true there."
    if proposal.sample.written == "tsv":
        yield "# Ingest reads CSV, JSONL and Parquet: deliver this TSV as one of them."
    yield from ("ingest:", "  columns:", "    confirmed: false")
    yield f"    {proposal.kind}:" + ("" if proposal.sure else " {}")
    for one in proposal.found:
        mark = "" if one.sure else "# unsure: "
        why = "; ".join(one.reasons)
        yield f"      {mark}{one.column}: {_quoted(one.name)}  # {one.confidence:.2f}: {why}"
    named = {f.column for f in proposal.found}
    for column in proposal.missing:
        if column not in named:
            yield f"      # not found, and required: {column}"
    if proposal.grades or proposal.unknown_grades:
        yield "  # Words of other rows than those looked at: add them." + (
            "" if proposal.grades else " Their meaning is not known:"
        )
        if proposal.grades:
            yield "  grades:"
        yield from (f"    {_quoted(w)}: {m}" for w, m in proposal.grades.items())
        for word in proposal.unknown_grades:
            yield f"    # unsure: {_quoted(word)}: exact, substitute or irrelevant?"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def write_proposal(path: Path, proposal: Proposal) -> None:
    """Write the YAML, whole or not at all; raises :class:`ConfigError` for a file that exists."""
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_text(written(proposal), encoding="utf-8")
        path.hardlink_to(part)
    except FileExistsError as e:
        raise ConfigError(f"{path} exists already; name another file by --out") from e
    except OSError as e:
        raise ConfigError(f"{path}: cannot be written ({e.strerror}); name another by --out") from e
    finally:
        part.unlink(missing_ok=True)
