"""What nothing names: work folders of failed steps, data without a manifest, replaced lake files.

A killed or failed task leaves them, and a correction leaves the lake file that it replaced. None
can be reached any more. All have a guard of age, the market's ``retention: {recent_days}``: a task
that runs now has written lately, and a reader that began before a correction has ended.
"""

from __future__ import annotations

import shutil
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa
from filelock import FileLock, Timeout

from csrm_tasks.artifacts import ArtifactStore
from csrm_tasks.blobs import Entry, open_blobs
from csrm_tasks.ingest.storage.days import behaviour_files, position_file
from csrm_tasks.settings import Settings
from csrm_tasks.store import open_store, reading
from csrm_tasks.store.lake import Lake, Stored
from csrm_tasks.store.tables import FILES


@dataclass(frozen=True)
class Left:
    """What is swept, each with its bytes."""

    work: dict[Path, int]  # folders of this machine
    data: dict[str, int]  # below CSRM_ARTIFACTS: market/step/fingerprint/data-…
    lake: dict[str, int]  # keys below CSRM_LAKE
    before: float  # when it was written to for the last time, at the latest

    def lines(self) -> Iterator[tuple[str, int]]:
        """Return what is where, for people."""
        for kind, sizes in (("work", self.work), ("artifacts", self.data), ("lake", self.lake)):
            for name, size in sizes.items():
                yield f"{kind}: {name}", size


def find(settings: Settings, market: str, before: float) -> Left:
    """Find what nothing names and nobody has written to since ``before`` (seconds since 1970)."""
    return Left(
        _work(settings.work / market, before),
        _data(settings, market, before),
        _lake(settings, market, before),
        before,
    )


def _work(root: Path, before: float) -> dict[Path, int]:
    """Work folders are ``market/step/fingerprint``; each has a lock beside it."""
    folders = sorted(p for p in root.glob("*/*") if p.is_dir())
    return {f: size for f in folders if (size := _untouched(f, before)) is not None}


def _untouched(folder: Path, before: float) -> int | None:
    """Return the bytes in a folder that nobody has written to since ``before``, else None."""
    try:
        about = [p.lstat() for p in (folder, *folder.rglob("*"))]
    except FileNotFoundError:  # somebody works on it
        return None
    return None if any(a.st_mtime >= before for a in about) else sum(a.st_size for a in about)


def _data(settings: Settings, market: str, before: float) -> dict[str, int]:
    store = ArtifactStore(settings.artifacts, settings.cache)
    attempts: dict[str, list[Entry]] = defaultdict(list)
    for key, entry in open_blobs(settings.artifacts).entries(market).items():
        parts = key.split("/")
        if len(parts) > 4 and parts[3].startswith("data-"):
            attempts["/".join(parts[:4])].append(entry)
    sizes = {}
    for attempt, entries in sorted(attempts.items()):
        ref, data = attempt.rsplit("/", 1)
        if all(e.written < before for e in entries):
            manifest = store.manifest(ref)
            if manifest is None or manifest["data"] != data:
                sizes[attempt] = sum(e.size for e in entries)
    return sizes


def _lake(settings: Settings, market: str, before: float) -> dict[str, int]:
    """Of days in which a file was written lately nothing is taken: it may have replaced another."""
    lake = Lake(settings.lake, market)
    sizes: dict[str, int] = {}
    written = lake.entries()
    with reading(open_store(settings.db_url)) as connection:
        for day, entries in sorted(written.items()):
            if any(e.written >= before for e in entries.values()):
                continue
            named = _named(connection, lake, market, day)
            sizes |= {key: e.size for key, e in entries.items() if named and key not in named}
    return sizes


def _named(connection: sa.Connection, lake: Lake, market: str, day: str) -> set[str]:
    """Return the lake files of a day that count; none where the store knows nothing of the day."""
    file = FILES.c
    statement = sa.select(file.kind, file.day, file.locale, file.part, file.known_part).where(
        file.market == market, file.day == day, file.live
    )
    rows = connection.execute(statement).all()
    stored = [Stored(*row[:4]) for row in rows if row.part]
    if behaviour := behaviour_files(connection, market, day):
        stored.append(position_file(behaviour))
    return lake.names(stored, [Stored(*row[:3], row.known_part) for row in rows if row.known_part])


def sweep(settings: Settings, market: str, left: Left) -> None:
    """Delete what :func:`find` returned. A work folder that a task has taken up again stays."""
    for folder in left.work:
        # The step's own lock: see csrm_tasks.steps.running.
        with suppress(Timeout), FileLock(folder.with_name(f"{folder.name}.lock"), timeout=0):
            if _untouched(folder, left.before) is not None:
                shutil.rmtree(folder, ignore_errors=True)
    blobs, lake = open_blobs(settings.artifacts), Lake(settings.lake, market)
    for attempt in left.data:
        blobs.delete_tree(attempt)
    for key in left.lake:
        lake.delete(key)
