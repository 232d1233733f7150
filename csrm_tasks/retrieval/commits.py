"""Which segments make up a lexical index, and which of their documents live (A20).

A folder holds immutable segments, the deletions of each, and ``index.json``, which names them and
is replaced last: a reader sees the state before a commit or after it, and what a killed commit left
is swept by the next. One writer at a time.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from csrm_tasks.errors import ArtifactError
from csrm_tasks.json_files import write_json
from csrm_tasks.lexical.analyser import identity
from csrm_tasks.retrieval.segment import Flags, Posting, Segment

SEGMENTS = 8  # at most; more are merged
STATE = "index.json"


@dataclass(frozen=True)
class LiveSegment:
    """A segment, and which of its documents live."""

    name: str
    segment: Segment
    alive: Flags  # (n,)

    @cached_property
    def whole(self) -> bool:
        """Whether nothing was deleted."""
        return bool(self.alive.all())

    def posting(self, term: str) -> Posting:
        """Return the live documents of ``term`` and its counts."""
        docs, counts = self.segment.posting(term)
        if self.whole:
            return docs, counts
        live = self.alive[docs]
        return docs[live], counts[live]

    def without(self, ids: Iterable[str]) -> LiveSegment:
        """Return the part without ``ids``."""
        rows = self.segment.rows(ids)
        if not self.alive[rows].any():
            return self
        alive = self.alive.copy()
        alive[rows] = False
        return LiveSegment(self.name, self.segment, alive)


def compact(parts: list[LiveSegment]) -> list[LiveSegment]:
    """Merge what is small, or everything when the largest is half dead or outgrown."""
    if not parts:
        return parts
    largest = max(parts, key=lambda part: len(part.segment))
    others = [part for part in parts if part is not largest]
    rest = sum(len(part.segment) for part in others)
    if 2 * int(largest.alive.sum()) < len(largest.segment) or 4 * rest > len(largest.segment):
        return _merged(parts)
    return parts if len(parts) <= SEGMENTS else [largest, *_merged(others)]


def _merged(parts: list[LiveSegment]) -> list[LiveSegment]:
    if len(parts) == 1 and parts[0].whole:
        return parts
    segment = Segment.merge([(part.segment, part.alive) for part in parts])
    return [LiveSegment("", segment, np.ones(len(segment), bool))] if len(segment) else []


def read(folder: Path) -> tuple[list[LiveSegment], bool]:
    """Open what was published last, and say whether another analyser had built it.

    Raises :class:`ArtifactError` where there is no index, or a file of it is missing.
    """
    while True:
        state = _state(folder)
        try:
            return [_load(folder, e) for e in state["segments"]], state["analyser"] != identity()
        except FileNotFoundError as e:
            if _state(folder) == state:  # else a commit swept while we read
                raise ArtifactError(f"{e.filename} is missing; run build_bm25") from e


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One writer at a time; the kernel lets go when it dies. No lock file joins the artifact."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _state(folder: Path) -> dict[str, Any]:
    try:
        state: dict[str, Any] = json.loads((folder / STATE).read_text(encoding="utf-8"))
    except FileNotFoundError as e:
        raise ArtifactError(f"{folder} holds no BM25 index; run build_bm25") from e
    return state


def _load(folder: Path, entry: dict[str, str]) -> LiveSegment:
    segment = Segment.load(folder / entry["name"])
    dead = np.load(folder / entry["dead"]) if entry["dead"] else []
    alive = np.ones(len(segment), bool)
    alive[dead] = False
    return LiveSegment(entry["name"], segment, alive)


def publish(folder: Path, parts: list[LiveSegment]) -> None:
    """Write what is new under names not used before, then replace the state, then sweep."""
    commit = 1 + max((int(p.name.split("-")[1]) for p in folder.glob("*-*")), default=0)
    entries = []
    for number, part in enumerate(parts):
        name = part.name or f"segment-{commit}-{number}"
        if not part.name:
            part.segment.save(folder / name)
        dead = "" if part.whole else f"dead-{commit}-{number}.npy"
        if dead:
            np.save(folder / dead, np.flatnonzero(~part.alive))
        entries.append({"name": name, "dead": dead})
    state = {"analyser": identity(), "segments": entries}
    fresh = folder / f"{STATE}.part"
    write_json(fresh, state, sort_keys=False)
    fresh.replace(folder / STATE)
    named = {name for entry in entries for name in entry.values()}
    for path in folder.glob("*-*"):
        if path.name not in named:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
