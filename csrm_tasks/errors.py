"""Errors that a user can act on. The command line prints them as one line and exits with 2."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class CsrmError(Exception):
    """What is wrong, where (file, row, field), and what to do; one line, no secrets."""


class ConfigError(CsrmError):
    """A market file or a setting is wrong."""


class DataError(CsrmError):
    """An input file or table breaks its contract."""


class ArtifactError(CsrmError):
    """An artifact is missing, damaged, or not what the step asked for."""


class RefusedError(CsrmError):
    """A guarded action (promote, rollback) was refused; the message says by which guard."""


class AwayError(CsrmError):
    """A database, an object store or MLflow does not answer; the message says what is served now.

    Nothing is wrong with what was asked for: it is worth another try.
    """


class DeniedError(CsrmError):
    """A database, an object store or MLflow does not let us in; the message says what to set.

    Another try meets the same until somebody has.
    """


class DiskFullError(CsrmError):
    """A disk, quota or tablespace is full; what was being written is not visible to anybody."""


FULL = (errno.ENOSPC, errno.EDQUOT)
# How libraries that hide the number say it: safetensors, pyarrow and DuckDB, SQLite, PostgreSQL
FULL_WORDS = ("No space left on device", "disk is full", "Disk quota exceeded")


def is_disk_full(error: BaseException | None) -> bool:
    """Say whether ``error``, or what it came from, is that of a full disk."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in FULL:
            return True
        if any(words in str(error) for words in FULL_WORDS):
            return True
        error = error.__cause__ or error.__context__
    return False


@contextmanager
def disk_full_as_one_line(what: str, folder: Path) -> Iterator[None]:
    """Turn a full disk under ``what`` into a :class:`DiskFullError` that says what to do."""
    try:
        yield
    except CsrmError:
        raise
    except Exception as e:
        if not is_disk_full(e):
            raise
        where = getattr(e, "filename", None) or folder
        raise DiskFullError(
            f"{what}: no space left to write {where}; free some space and run it again "
            "(nothing half-written is visible, and what was done before is kept)"
        ) from e
