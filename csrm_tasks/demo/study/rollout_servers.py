"""Servers of a simulated rollout: quarters of an hour with incidents, bursts and changing shares.

Everything that makes equal releases look different is there: the day has hours, an incident fails
requests and slows the others for a while, one shopper's retries fail together, and a new release
remembers few queries at first. The first two happen to both alike.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from csrm_tasks.release.online.served import STEP, Served

Floats = NDArray[np.float64]
QUARTERS = 96  # of a day
SEARCHES = 1.2  # requests of a session
FAILED = 0.0005  # of requests, without an incident
REMEMBERED, QUICKER = 0.9, 0.25  # share of the control's queries, and how long they take
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


def a_day(
    servers: Servers, sessions: int, shares: Floats, day: int, rng: np.random.Generator
) -> Served:
    """Draw day 1, 2, … of a rollout. ``shares``: (QUARTERS,) of the sessions that got the judged
    release; at 0 it is in shadow and gets a copy of every request.
    """
    failing, slow = _incidents(servers.incidents, rng)
    expected = sessions * SEARCHES * HOURS / HOURS.sum()
    seen = rng.poisson(expected)  # (QUARTERS,)
    judged = np.where(shares > 0, rng.binomial(seen, shares), seen)
    requests = np.stack([judged, np.where(shares > 0, seen - judged, seen)], axis=1)
    rates = FAILED + servers.failing, FAILED
    errors = np.stack(
        [_failures(requests[:, arm], failing, rates[arm], rng) for arm in (0, 1)], axis=1
    )
    # Each quarter's windows: queries that were remembered, and those that were not.
    known = [REMEMBERED * day / (day + 1), REMEMBERED]
    quick, quick_errors = rng.binomial(requests, known), rng.binomial(errors, known)
    quick_errors = np.minimum(quick, np.maximum(quick_errors, errors - (requests - quick)))
    level = np.log(USUAL_MS) + 0.1 * rng.standard_normal() + slow  # (QUARTERS,)
    means = level[:, None] + np.log([servers.slower, 1.0])  # (QUARTERS, 2)
    requests = np.concatenate([quick, requests - quick])
    errors = np.concatenate([quick_errors, errors - quick_errors])
    means = np.concatenate([means + np.log(QUICKER), means])
    quarters = day * QUARTERS + np.tile(np.arange(QUARTERS), 2)
    both = (requests > 0).all(axis=1)  # as evidence is read
    requests, errors = requests[both], errors[both]
    times = _times(requests - errors, means[both], rng)
    return Served(requests, errors, times, FIRST, quarters[both])


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
        np.concatenate([d.quarters for d in days]),
    )
