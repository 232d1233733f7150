"""Whether files are as they were, and the digest of a folder once for each state of its files.

A state is what the file system says of every file: size, times of change of content and of entry,
inode. Copying tools set the first time back, none the second, so a file that was put in another's
place is noticed though it has its size and its time.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from csrm_tasks.artifacts import describe_files, json_digest

DIGEST = 64  # characters of a digest
# Seconds after a change in which another one may bear the same time: nothing is kept of it.
SETTLED = 2.0
_kept_in: ContextVar[Path | None] = ContextVar("digests_kept_in", default=None)


def file_state(files: Iterable[Path]) -> str:
    """Return twenty hex digits that stay the same while none of ``files`` is changed or moved."""
    digest = hashlib.sha256()
    for path in files:
        about = path.stat()
        numbers = (about.st_size, about.st_mtime_ns, about.st_ctime_ns, about.st_ino)
        digest.update(f"{path}\0{numbers}\n".encode())
    return digest.hexdigest()[:20]


@contextmanager
def digests_kept_in(folder: Path) -> Iterator[None]:
    """Keep below ``folder`` what :func:`folder_digest` finds in the block, and find it there."""
    token = _kept_in.set(folder)
    try:
        yield
    finally:
        _kept_in.reset(token)


def where_kept() -> Path | None:
    """Return the folder of :func:`digests_kept_in`, to hand to another process."""
    return _kept_in.get()


def folder_digest(folder: Path) -> str:
    """Return the digest of all files of ``folder``; read anew where one has changed.

    Reading takes some three CPU-seconds a gigabyte, and a step asks for its base model's digest
    three times: before it, in it and after it.
    """
    state, kept = _state(folder), _kept_in.get()
    path = None if kept is None else kept / state
    found = path.read_text(encoding="utf-8") if path is not None and path.exists() else ""
    if len(found) == DIGEST:  # a killed process may have left a part of it
        return found
    found = json_digest(describe_files(folder))
    if path is not None and _settled(folder) and _state(folder) == state:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(found, encoding="utf-8")
    return found


def _files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file())


def _state(folder: Path) -> str:
    return file_state(_files(folder))


def _settled(folder: Path) -> bool:
    last = max((p.stat().st_ctime for p in _files(folder)), default=0.0)
    return last + SETTLED < time.time()
