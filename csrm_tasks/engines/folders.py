"""A folder of exported files that is there as a whole, or as it was before."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock

from csrm_tasks.errors import DataError, RefusedError
from csrm_tasks.json_files import write_json

ABOUT = "export.json"  # what an export says of itself; a folder without it is not ours to replace


@contextmanager
def replaced(out: Path, what: str) -> Iterator[Path]:
    """Yield an empty folder that takes the place of ``out`` when the block ends well.

    Raises :class:`DataError` where ``out`` is a file, :class:`RefusedError` where it holds anything
    but an earlier export of ``what``: nothing of anybody else's is deleted.
    """
    out = out.resolve()
    out.parent.mkdir(parents=True, exist_ok=True)
    part, old = (out.with_name(f".{out.name}.{end}") for end in ("part", "old"))
    with FileLock(out.with_name(f".{out.name}.lock")):
        _clear(out, part, old)  # what a killed process left
        _refuse_other(out, what)
        part.mkdir()
        try:
            yield part
            if out.exists():
                out.rename(old)
            part.rename(out)
        finally:
            _clear(out, part, old)


def _clear(out: Path, part: Path, old: Path) -> None:
    """Delete what is beside ``out``; the export before comes back where the new one did not."""
    if old.exists() and not out.exists():
        old.rename(out)
    for left in (part, old):
        shutil.rmtree(left, ignore_errors=True)


def describe(folder: Path, what: str, about: Mapping[str, Any]) -> None:
    """Write what an export says of itself."""
    files = sorted(path.name for path in folder.iterdir())
    write_json(folder / ABOUT, {"what": what, "files": files, **about})


def _refuse_other(out: Path, what: str) -> None:
    if not out.exists():
        return
    if not out.is_dir():
        raise DataError(f"{out}: is a file; --out is a folder")
    if any(out.iterdir()) and _described(out / ABOUT) != what:
        raise RefusedError(f"{out}: is there and holds no earlier {what}; choose another --out")


def _described(path: Path) -> str | None:
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return str(about.get("what")) if isinstance(about, dict) else None
