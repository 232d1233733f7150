"""What shoppers asked and did, as User Behavior Insights records in the landing zone.

A record goes to a file whose name begins with a dot (an upload under way, which ingest leaves
alone) in the folder of its day, whole or not at all; after midnight, and when the service ends,
the file gets its name by one rename. Days and midnight are those of the market's clocks, by which
its nights begin, too: by others a file would be finished hours after its night, and never read.
What a killed service left is published by the next one that starts, whatever its name, less a last
line that was cut. A file that is ready only when its day may have been ingested already is
delivered with today: ingest takes late events.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any, BinaryIO, Literal

from filelock import FileLock, Timeout

from csrm_tasks import clocks
from csrm_tasks.errors import ConfigError
from csrm_tasks.ingest.contract.contracts import OWN

Kind = Literal["ubi_queries", "ubi_events"]
Clock = Callable[[], datetime]

IN_TIME = timedelta(hours=1)  # after midnight; a night's ingest starts later than that


@dataclass
class _Open:
    """A file that is being written."""

    part: Path
    file: BinaryIO  # unbuffered: what the disk did not take is not kept for later


class UbiLog:
    """Writes one instance's records for one locale; safe to call from several threads."""

    def __init__(
        self, landing: Path, market: str, locale: str, instance: str, now: Clock, zone: str = "UTC"
    ) -> None:
        """Take the instance's name and publish what killed services left.

        Days are those of ``zone``. Raises :class:`ConfigError` when another running service has
        that name, or the landing zone takes no files.
        """
        self._root = landing / market
        self._locale = locale
        self._instance = instance
        self._now, self._zone = now, zone
        self._open: dict[str, _Open] = {}
        self._mutex = threading.Lock()
        self._name = self._lock(instance)
        try:
            self._root.mkdir(parents=True, exist_ok=True)
            self._name.acquire()
            self._publish_left()
        except Timeout as e:
            raise ConfigError(
                f"another service writes as {instance} below {self._root}; give --instance"
            ) from e
        except OSError as e:
            raise ConfigError(f"the landing zone {self._root} takes no files: {e}") from e

    def _lock(self, instance: str) -> FileLock:
        """A lock that the kernel frees when its holder dies; whichever thread may give it back."""
        path = self._root / f".serving-{instance}.lock"
        return FileLock(path, timeout=0, thread_local=False)

    def _publish_left(self) -> None:
        """Publish what services left that are no more: a container has another name each time."""
        for part in sorted(self._root.glob(f"*/{self._locale}/.ubi_*-*.*.jsonl")):
            owner = part.name.split("-", 1)[1].split(".", 1)[0]
            dead = nullcontext() if owner == self._instance else self._lock(owner)
            with suppress(Timeout), dead:  # who lives still writes to it
                if part.exists():  # its service has not just ended by itself
                    _cut_torn_line(part)
                    self._publish(part)

    def write(self, kind: Kind, records: list[Mapping[str, Any]]) -> None:
        """Append all records; raises OSError, and has written none, when the disk is full."""
        lines = [json.dumps(r, ensure_ascii=False, separators=(",", ":")) + "\n" for r in records]
        with self._mutex:
            _append(self._file(kind), "".join(lines).encode())

    def rotate(self) -> None:
        """Publish the files of past days."""
        with self._mutex:
            self._close(lambda part: part.parent.parent.name != self._day())

    def close(self) -> None:
        """Publish everything and give the name back; what fails is left to the next service."""
        try:
            with self._mutex:
                self._close(lambda part: True)
        finally:
            self._name.release()

    def _day(self) -> str:
        return clocks.day_of(self._now(), self._zone).isoformat()

    def _file(self, kind: Kind) -> BinaryIO:
        day = self._day()
        opened = self._open.get(kind)
        if opened and opened.part.parent.parent.name == day:
            return opened.file
        self._close(lambda part: part.parent.parent.name != day)
        folder = self._root / day / self._locale
        folder.mkdir(parents=True, exist_ok=True)
        part = folder / f".{self._free(folder, kind)}"
        self._open[kind] = _Open(part, part.open("xb", buffering=0))
        return self._open[kind].file

    def _free(self, folder: Path, kind: str) -> str:
        """Return the first name of this instance that is not taken, without its dot."""
        taken = {p.name.removeprefix(".") for p in folder.glob(f"*{kind}-{self._instance}.*")}
        names = (f"{kind}-{self._instance}.{n}.jsonl" for n in count())
        return next(name for name in names if name not in taken)

    def _close(self, chosen: Callable[[Path], bool]) -> None:
        for kind, one in list(self._open.items()):
            if chosen(one.part):
                os.fsync(one.file.fileno())
                one.file.close()
                del self._open[kind]
                self._publish(one.part)

    def _publish(self, part: Path) -> None:
        """Give a finished file its name: in its day's folder, or today's when that is too late."""
        if part.stat().st_size == 0:
            part.unlink()
            return
        day = date.fromisoformat(part.parent.parent.name)
        in_time = self._now() < clocks.ends(day, self._zone) + IN_TIME
        folder = part.parent if in_time else self._root / self._day() / self._locale
        folder.mkdir(parents=True, exist_ok=True)
        kind = part.name[1:].split("-", 1)[0]
        part.rename(folder / (part.name[1:] if in_time else self._free(folder, kind)))


def _append(file: BinaryIO, data: bytes) -> None:
    """Write all of ``data``; where that fails, take back what a disk took of it as it filled up."""
    start = file.tell()
    try:
        while data:
            data = data[file.write(data) :]
    except OSError:
        file.seek(start)
        file.truncate()
        raise


def _cut_torn_line(part: Path) -> None:
    """Drop what follows the last line break: a record of which not everything was written."""
    with part.open("r+b") as f:
        f.truncate(f.read().rfind(b"\n") + 1)


def stamp(moment: datetime) -> str:
    """Return a UTC time in ISO 8601 with milliseconds."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def query_record(
    query_id: str, query: str, hits: list[str], who: Mapping[str, str], at: str,
    more: Mapping[str, Any],
) -> dict[str, Any]:  # fmt: skip
    """Return the UBI 1.3 query record of a search; ``who``: session, client, bucket, release.

    ``more``: further attributes.
    """
    return {
        "application": OWN,
        "query_id": query_id,
        "client_id": who["client_id"],
        "session_id": who["session_id"],
        "user_query": query,
        "timestamp": at,
        "query_response_id": query_id,
        "query_response_hit_ids": hits,
        "query_attributes": {"bucket": who["bucket"], "release": who["release"], **more},
    }


def event_record(
    query_id: str, action: str, object_id: str, position: int | None, who: Mapping[str, str],
    at: str,
) -> dict[str, Any]:  # fmt: skip
    """Return the UBI 1.3 event record of what was done with a product."""
    attributes = {
        "object": {"object_id": object_id, "object_id_field": "product_id"},
        "position": {"ordinal": position},  # UBI 1.3 requires it; null: not known
        "bucket": who["bucket"],
        "release": who["release"],
    }
    return {
        "application": OWN,
        "action_name": action,
        "query_id": query_id,
        "client_id": who["client_id"],
        "session_id": who["session_id"],
        "timestamp": at,
        "message_type": "INFO",
        "message": action,
        "event_attributes": attributes,
    }
