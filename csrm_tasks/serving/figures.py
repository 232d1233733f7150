"""A day's requests, failures and p99 by release: what a rollout is judged by (docs/ROUTING.md).

Times are counted in buckets 5 % apart, which add up over servers and restarts; p99 is the upper
edge of its bucket. Each server adds what is new to the day's document by compare-and-swap.
"""

from __future__ import annotations

import json
import math
import threading
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any

from csrm_tasks.blobs import BlobStore
from csrm_tasks.errors import RefusedError

STEP = math.log(1.05)
ATTEMPTS = 20


@dataclass
class _Tally:
    requests: int = 0
    errors: int = 0
    buckets: Counter[str] = field(default_factory=Counter)  # of answered requests


class Figures:
    """What was not yet added to the documents; safe to call from several threads."""

    def __init__(self, market: str) -> None:
        self._market = market
        self._mutex = threading.Lock()
        self._new: dict[tuple[str, str], _Tally] = defaultdict(_Tally)  # by day and release

    def note(self, day: str, release: str, seconds: float, *, failed: bool) -> None:
        """Count one request."""
        with self._mutex:
            tally = self._new[day, release]
            tally.requests += 1
            tally.errors += failed
            if not failed:
                tally.buckets[str(math.ceil(math.log(max(seconds, 1e-6) * 1e3) / STEP))] += 1

    def flush(self, blobs: BlobStore) -> None:
        """Add what is new to the days' documents; what could not be written stays."""
        with self._mutex:
            taken, self._new = self._new, defaultdict(_Tally)
        failure: Exception | None = None
        for day in sorted({day for day, _ in taken}):
            new = {release: tally for (on, release), tally in taken.items() if on == day}
            try:
                self._add(blobs, day, new)
            except Exception as e:
                self._restore(day, new)
                failure = e
        if failure is not None:
            raise failure

    def _add(self, blobs: BlobStore, day: str, new: dict[str, _Tally]) -> None:
        key = f"{self._market}/serving/{day}.json"
        for _ in range(ATTEMPTS):
            raw = blobs.read(key)
            document: dict[str, Any] = json.loads(raw) if raw else {}
            for release, tally in new.items():
                document[release] = _sum(document.get(release), tally)
            if blobs.replace(key, json.dumps(document, indent=1, sort_keys=True).encode(), raw):
                return
        raise RefusedError(f"{key}: others kept replacing it; figures are kept for the next time")

    def _restore(self, day: str, new: dict[str, _Tally]) -> None:
        with self._mutex:
            for release, tally in new.items():
                mine = self._new[day, release]
                mine.requests += tally.requests
                mine.errors += tally.errors
                mine.buckets += tally.buckets


def _sum(before: dict[str, Any] | None, new: _Tally) -> dict[str, Any]:
    """Return a release's entry with ``new`` added; p99 in ms, 0 when none was answered."""
    old = before or {"requests": 0, "errors": 0, "buckets": {}}
    buckets = Counter(old["buckets"]) + new.buckets
    return {
        "requests": old["requests"] + new.requests,
        "errors": old["errors"] + new.errors,
        "p99_ms": _quantile(buckets, 0.99),
        "buckets": dict(buckets),
    }


def _quantile(buckets: Counter[str], share: float) -> float:
    wanted, seen = share * buckets.total(), 0
    for bucket in sorted(buckets, key=int):
        seen += buckets[bucket]
        if seen >= wanted:
            return round(math.exp(int(bucket) * STEP), 3)
    return 0.0
