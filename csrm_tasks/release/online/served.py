"""Requests that both releases served, by times in which nothing else differed.

A window is a quarter of an hour of one routing document, of queries whose vectors were remembered
or of those that were not: the arms' shares are the same all through it, an incident that hits both
hits them alike, and a new release is not compared by what it has not been asked yet. Times are
counted in buckets 5 % apart, which add up over servers, restarts and days.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from csrm_tasks.release.online.sequential import Counts

STEP = math.log(1.05)
FIRST, LAST = -142, 284  # buckets: from a microsecond to a quarter of an hour
P99 = 0.99


def bucket_of(seconds: float) -> int:
    """Return the bucket whose upper edge is the first that is not below ``seconds``."""
    bucket = math.ceil(math.log(max(seconds, 1e-6) * 1e3) / STEP)
    return min(max(bucket, FIRST), LAST)


def upper_ms(bucket: int) -> float:
    """Return a bucket's upper edge in ms."""
    return math.exp(bucket * STEP)


@dataclass(frozen=True)
class Slow:
    """Requests beyond the control's p99 (of the judged release: beyond a multiple of it)."""

    counts: Counts  # (K, 4)
    judged_ms: float  # p99
    control_ms: float


@dataclass(frozen=True)
class Served:
    """Counts of K windows in which both releases served; first the judged one, then the control."""

    requests: NDArray[np.int64]  # (K, 2)
    errors: NDArray[np.int64]  # (K, 2)
    times: NDArray[np.int32]  # (K, 2, B): answered requests by bucket
    first: int  # bucket of the first of B columns
    quarters: NDArray[np.int64]  # (K,): equal for windows of one quarter of an hour

    def failed(self) -> Counts:
        """Return requests and failures of both, by window: (K, 4)."""
        return _interleaved(self.requests, self.errors)

    def slow(self, ratio: float) -> Slow:
        """Count requests above the control's p99, or above ``ratio`` times it.

        Both p99 are those of the windows as they are compared, n₁n₀/(n₁+n₀) times each one's
        distribution: a change of shares moves neither. A release as fast as the control has at
        most as many slow requests, whatever the p99: then ``ratio`` only makes its requests
        faster. Buckets are compared by their upper edges.
        """
        answered = self.times.sum(axis=2, dtype=np.int64)  # (K, 2)
        weights = answered.prod(axis=1) / np.maximum(answered.sum(axis=1), 1)  # (K,)
        each = weights[:, None] / np.maximum(answered, 1)  # (K, 2), of one request
        # Not by BLAS: on busy cores its threads wait for each other longer than this takes.
        mixed = (np.einsum("k,kb->b", each[:, a], self.times[:, a]) for a in (0, 1))
        ours, theirs = map(_p99, mixed)  # columns
        beyond = theirs + math.floor(math.log(ratio) / STEP + 1e-9)
        slow = [
            self.times[:, arm, max(0, limit + 1) :].sum(axis=1)
            for arm, limit in enumerate((beyond, theirs))
        ]
        edges = (upper_ms(self.first + column) for column in (ours, theirs))
        return Slow(_interleaved(answered, np.stack(slow, axis=1)), *edges)


def _interleaved(seen: NDArray[np.int64], hits: NDArray[np.int64]) -> Counts:
    return np.stack([seen, hits], axis=2).reshape(-1, 4).astype(np.int64)


def _p99(weight_of: NDArray[np.float64]) -> int:
    """Return the column in which 99 % of the weight is reached; (B,) → column."""
    reached = np.cumsum(weight_of)
    return int(np.searchsorted(reached, P99 * reached[-1] * (1 - 1e-12)))
