"""A day's requests, failures and times by release: what a rollout is judged by (docs/ROUTING.md).

Beside the day's totals stand windows: a quarter of an hour of one routing document, in which the
shares of the releases did not change. Only these are compared, and only requests that a release
got by chance are in them. Each server adds what is new to the day's document by compare-and-swap,
and notes there which of its parts was the last: one whose answer was lost is not added twice.
"""

from __future__ import annotations

import json
import threading
import uuid
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from csrm_tasks.blobs import BlobStore
from csrm_tasks.errors import RefusedError
from csrm_tasks.release.online.served import bucket_of, upper_ms

ATTEMPTS = 20
MINUTES = 15  # of a window
PARTS = "parts"  # of a release's entry: server → number of the last part that it added


@dataclass
class _Counts:
    requests: int = 0
    errors: int = 0
    buckets: Counter[str] = field(default_factory=Counter)  # of answered requests

    def count(self, bucket: str | None) -> None:
        """Count one request, None: a failed one. Every request comes here: no sum of buckets."""
        self.requests += 1
        if bucket is None:
            self.errors += 1
        else:
            self.buckets[bucket] += 1

    def add(self, other: _Counts) -> None:
        self.requests += other.requests
        self.errors += other.errors
        self.buckets += other.buckets

    def as_json(self) -> dict[str, Any]:
        return {"requests": self.requests, "errors": self.errors, "buckets": dict(self.buckets)}


@dataclass
class _Tally(_Counts):
    windows: dict[str, _Counts] = field(default_factory=lambda: defaultdict(_Counts))

    def take(self, other: _Tally) -> None:
        self.add(other)
        for name, counts in other.windows.items():
            self.windows[name].add(counts)


@dataclass(frozen=True)
class _Part:
    """What one server adds to a day at once."""

    number: int  # from 1, rising
    tallies: dict[str, _Tally]  # by release


def window(at: datetime, generation: int, remembered: bool) -> str:
    """Name the window of a request: when its quarter of an hour began (UTC), the ledger row of the
    routing document that it was assigned by, and whether its query's vectors were there already.
    """
    quarter = f"{at.hour:02}:{at.minute // MINUTES * MINUTES:02}"
    return f"{quarter}/{generation}{'/remembered' if remembered else ''}"


class Figures:
    """What was not yet added to the documents; safe to call from several threads."""

    def __init__(self, market: str) -> None:
        self._market = market
        self._mutex = threading.Lock()
        self._new: dict[tuple[str, str], _Tally] = defaultdict(_Tally)  # by day and release
        self._flushing = threading.Lock()
        self._server = uuid.uuid4().hex[:12]
        self._parts = 0  # numbers that were given
        self._tried: dict[str, _Part] = {}  # by day: it may be in the document, or not

    def note(
        self, at: datetime, release: str, seconds: float, *, failed: bool, generation: int | None,
        remembered: bool,
    ) -> None:  # fmt: skip
        """Count one request. ``at``: UTC. ``generation``: ledger row of the routing document by
        which chance gave the request to the release; None: chance had no part in it.
        ``remembered``: whether its query had not to be encoded.
        """
        bucket = None if failed else str(bucket_of(seconds))
        with self._mutex:
            tally = self._new[at.date().isoformat(), release]
            tally.count(bucket)
            if generation is not None:
                tally.windows[window(at, generation, remembered)].count(bucket)

    def flush(self, blobs: BlobStore) -> None:
        """Add what is new to the days' documents, once; what could not be written stays."""
        failure: Exception | None = None
        with self._flushing:
            for day in sorted(self._days()):
                try:
                    self._flush(blobs, day)
                except Exception as e:  # noqa: BLE001
                    failure = e
        if failure is not None:
            raise failure

    def _days(self) -> set[str]:
        with self._mutex:
            return {*self._tried, *(day for day, _ in self._new)}

    def _flush(self, blobs: BlobStore, day: str) -> None:
        """Add what was tried before and nobody knows whether it is there, then what is new."""
        if day in self._tried:
            self._add(blobs, day, self._tried[day])
            del self._tried[day]
        if new := self._take(day):
            self._parts += 1
            self._tried[day] = _Part(self._parts, new)
            self._add(blobs, day, self._tried[day])
            del self._tried[day]

    def _take(self, day: str) -> dict[str, _Tally]:
        with self._mutex:
            return {key[1]: self._new.pop(key) for key in [*self._new] if key[0] == day}

    def _add(self, blobs: BlobStore, day: str, part: _Part) -> None:
        key = f"{self._market}/serving/{day}.json"
        for _ in range(ATTEMPTS):
            raw = blobs.read(key)
            document: dict[str, Any] = json.loads(raw) if raw else {}
            for release, tally in part.tallies.items():
                before = document.get(release, {})
                parts = before.get(PARTS, {})
                if parts.get(self._server, 0) >= part.number:
                    return  # with the releases before it: a part is written as a whole
                parts |= {self._server: part.number}
                document[release] = _sum(before, tally) | {PARTS: parts}
            if blobs.replace(key, json.dumps(document, sort_keys=True).encode(), raw):
                return
        raise RefusedError(f"{key}: others kept replacing it; figures are kept for the next time")


def _sum(before: dict[str, Any], new: _Tally) -> dict[str, Any]:
    """Return a release's entry with ``new`` added; p99 in ms, 0 when none was answered."""
    total = _Tally()
    if before:
        total.add(_read(before))
        # A server of before this had no windows: its share of the day is in the totals only.
        total.windows |= {name: _read(w) for name, w in before.get("windows", {}).items()}
    total.take(new)
    windows = {name: counts.as_json() for name, counts in total.windows.items()}
    return total.as_json() | {"p99_ms": _quantile(total.buckets, 0.99), "windows": windows}


def _read(entry: dict[str, Any]) -> _Counts:
    return _Counts(entry["requests"], entry["errors"], Counter(entry["buckets"]))


def _quantile(buckets: Counter[str], share: float) -> float:
    wanted, seen = share * buckets.total(), 0
    for bucket in sorted(buckets, key=int):
        seen += buckets[bucket]
        if seen >= wanted:
            return round(upper_ms(int(bucket)), 3)
    return 0.0
