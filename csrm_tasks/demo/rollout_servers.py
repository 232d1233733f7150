"""Servers of a simulated rollout: quarters of an hour with incidents, bursts and changing shares.

Everything that makes equal releases look different happens to both alike: the day has hours, an
incident fails requests and slows the others for a while, one shopper's retries fail together.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from csrm_tasks.release.served import STEP, Served

Floats = NDArray[np.float64]
QUARTERS = 96  # of a day
SEARCHES = 1.2  # requests of a session
FAILED = 0.0005  # of requests, without an incident
BURST = 3.0  # requests that fail together, in the mean (one shopper's retries)
FIRST, LAST = 0, 170  # buckets of times: 1 ms to 4 s
USUAL_MS, SPREAD = 20.0, 0.5  # time of a request: log-normal
LONGEST = 8  # quarters of an hour of an incident
HOURS = 1 + 0.8 * np.sin(np.arange(QUARTERS) / QUARTERS * 2 * np.pi - 2)  # a day's traffic


@dataclass(frozen=True)
class Servers:
    """How the judged release differs from the control, and what happens to both."""

    slower: float = 1.0  # times the control's time
    failing: float = 0.0  # share of requests that fail beside the control's
    incidents: float = 0.3  # a day, each hitting both releases


def a_day(servers: Servers, sessions: int, shares: Floats, rng: np.random.Generator) -> Served:
    """Draw one day. ``shares``: (QUARTERS,) of the sessions that got the judged release; at 0 it
    is in shadow and gets a copy of every request.
    """
    failing, slow = _incidents(servers.incidents, rng)
    expected = sessions * SEARCHES * HOURS / HOURS.sum()
    seen = rng.poisson(expected)  # (QUARTERS,)
    judged = np.where(shares > 0, rng.binomial(seen, shares), seen)
    requests = np.stack([judged, np.where(shares > 0, seen - judged, seen)], axis=1)
    errors = np.stack(
        [
            _failures(requests[:, 0], failing, FAILED + servers.failing, rng),
            _failures(requests[:, 1], failing, FAILED, rng),
        ],
        axis=1,
    )
    level = np.log(USUAL_MS) + 0.1 * rng.standard_normal() + slow  # (QUARTERS,)
    means = level[:, None] + np.log([servers.slower, 1.0])  # (QUARTERS, 2)
    both = (requests > 0).all(axis=1)  # as evidence is read
    requests, errors = requests[both], errors[both]
    return Served(requests, errors, _times(requests - errors, means[both], rng), FIRST)


def _incidents(expected: float, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Return by quarter the share of requests that an incident fails, and log of how much slower
    the others are.
    """
    failing, slow = np.zeros(QUARTERS), np.zeros(QUARTERS)
    for _ in range(rng.poisson(expected)):
        start = rng.integers(QUARTERS)
        hit = slice(start, start + rng.integers(1, LONGEST + 1))
        failing[hit], slow[hit] = rng.uniform(0, 0.5), np.log(rng.uniform(1, 10))
    return failing, slow


def _failures(
    requests: NDArray[np.int64], failing: Floats, usual: float, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Draw failures: some for an incident, some in bursts whose lengths are geometric."""
    bursts = rng.poisson(requests * usual / BURST)
    lengths = bursts + np.where(bursts, rng.negative_binomial(np.maximum(bursts, 1), 1 / BURST), 0)
    failed: NDArray[np.int64] = np.minimum(requests, rng.binomial(requests, failing) + lengths)
    return failed


def _times(
    answered: NDArray[np.int64], means: Floats, rng: np.random.Generator
) -> NDArray[np.int32]:
    """Draw times of answered requests (QUARTERS, 2) about ``means`` (log ms) and count them."""
    size, number = LAST - FIRST + 1, answered.ravel()
    starts = np.arange(number.size) * size
    places = np.repeat((means.ravel() / STEP).astype(np.float32), number)  # of buckets
    places += np.float32(SPREAD / STEP) * rng.standard_normal(places.size, np.float32)
    buckets = np.clip(np.ceil(places) - FIRST, 0, size - 1).astype(np.int64)
    counted = np.bincount(buckets + np.repeat(starts, number), minlength=number.size * size)
    return counted.reshape(*answered.shape, size).astype(np.int32)


def joined(days: list[Served]) -> Served | None:
    """Return all windows of several days, or None where there are none."""
    if not days:
        return None
    return Served(
        np.concatenate([d.requests for d in days]),
        np.concatenate([d.errors for d in days]),
        np.concatenate([d.times for d in days]),
        FIRST,
    )
