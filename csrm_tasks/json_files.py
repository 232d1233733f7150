"""JSON documents that people may read: indented, UTF-8, and refusing NaN, which is no JSON."""

from __future__ import annotations

import json
from pathlib import Path

from csrm_tasks.errors import ArtifactError


def json_text(value: object, *, sort_keys: bool = True) -> str:
    """Return ``value`` as readable JSON; raises :class:`ValueError` for NaN and infinity.

    ``sort_keys`` off: its own order says something, as the order of a report's parts does.
    """
    return json.dumps(value, ensure_ascii=False, indent=1, sort_keys=sort_keys, allow_nan=False)


def write_json(path: Path, value: object, *, sort_keys: bool = True) -> None:
    """Write ``value`` to ``path`` as :func:`json_text`; raises :class:`ArtifactError` for NaN."""
    try:
        text = json_text(value, sort_keys=sort_keys)
    except ValueError as e:
        raise ArtifactError(f"{path}: a figure is not finite ({e}); nothing was written") from e
    path.write_text(text, encoding="utf-8")
