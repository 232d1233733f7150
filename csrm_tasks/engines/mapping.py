"""What an index that is there must be, to hold the live release's vectors."""

from __future__ import annotations

import json
from pathlib import Path

from csrm_tasks.engines.formats.records import Engine, Field, Mapped
from csrm_tasks.errors import DataError


def check_mapping(engine: Engine, field: Field, path: Path) -> None:
    """Compare an index's schema with the vectors; raises :class:`DataError` where they differ.

    Vectors have length 1: cosine, inner product and Euclidean distance rank them alike.
    """
    try:
        text = path.read_text(encoding="utf-8")
        found = engine.mapped(text, field.name)
    except (OSError, UnicodeDecodeError) as e:
        raise DataError(f"{path}: cannot be read as text; give {engine.ask}") from e
    except json.JSONDecodeError as e:
        raise DataError(f"{path}: is not JSON (line {e.lineno}); give {engine.ask}") from e
    if not found:
        raise DataError(
            f"{path}: has no field {field.name}; give {engine.ask}, or say --field for another name"
        )
    for one in found:
        _check(engine, field, f"{path}: {one.where}{': ' if one.where else ''}{field.name}", one)


def _check(engine: Engine, field: Field, where: str, one: Mapped) -> None:
    new = "make a new index by the schema of an export without --mapping"
    if (one.kind, one.element) != (engine.kind, "float"):
        raise DataError(
            f"{where} is a {one.kind} of {one.element}, not a {engine.kind} of float; {new}"
        )
    if one.dim != field.dim:
        raise DataError(
            f"{where} has dimension {one.dim}, the vectors of {field.release} have {field.dim}; "
            f"{new}"
        )
    if one.similarity not in engine.similarities:
        able = ", ".join(engine.similarities)
        raise DataError(
            f"{where} compares by {one.similarity}, which does not rank as the towers do "
            f"({able} do); {new}"
        )
