"""What servers add to a day's figures: each request once, whatever the store answers."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from csrm_tasks.blobs import LocalBlobs
from csrm_tasks.serving.figures import Figures

AT = datetime(2026, 1, 5, 9, tzinfo=UTC)


class Trouble(LocalBlobs):
    """A store that goes wrong once, in a way that a test says."""

    once: Callable[[Callable[[], bool]], bool] | None = None

    def replace(self, key: str, data: bytes, expected: bytes | None) -> bool:
        """Replace, or go wrong."""
        how, self.once = self.once, None

        def write() -> bool:
            return super(Trouble, self).replace(key, data, expected)

        return how(write) if how else write()


def lost(write: Callable[[], bool]) -> bool:
    write()
    raise TimeoutError


def refused_again(write: Callable[[], bool]) -> bool:
    write()
    return False


def away(write: Callable[[], bool]) -> bool:
    raise TimeoutError


def note(figures: Figures, release: str = "a", *, failed: bool = False, at: datetime = AT) -> None:
    figures.note(at, release, 0.004, failed=failed, generation=3, remembered=False)


def flushed(figures: Figures, blobs: LocalBlobs, fails: bool = False) -> None:
    if fails:
        with pytest.raises(TimeoutError):
            figures.flush(blobs)
    else:
        figures.flush(blobs)


def counts(blobs: LocalBlobs, day: str = "2026-01-05") -> dict[str, Any]:
    """Return release → requests, failures, requests in windows."""
    found = json.loads(blobs.read(f"m/serving/{day}.json") or b"{}")
    return {
        r: (e["requests"], e["errors"], sum(w["requests"] for w in e["windows"].values()))
        for r, e in found.items()
    }


@pytest.mark.parametrize("trouble", [lost, refused_again, away])
def test_a_request_is_counted_once_whatever_is_answered(
    tmp_path: Path, trouble: Callable[[Callable[[], bool]], bool]
) -> None:
    blobs, one, other = Trouble(tmp_path), Figures("m"), Figures("m")
    for figures in (one, other):
        note(figures)
        flushed(figures, blobs)
    note(one)
    note(one, "b", failed=True)
    blobs.once = trouble
    flushed(one, blobs, fails=trouble is not refused_again)
    note(one)
    note(other, "b")
    flushed(other, blobs)  # between the two tries of one
    flushed(one, blobs)
    flushed(one, blobs)
    assert counts(blobs) == {"a": (4, 0, 4), "b": (2, 1, 2)}


def test_while_the_store_is_away_requests_add_up_to_one_part_and_other_days_are_written(
    tmp_path: Path,
) -> None:
    blobs, figures = Trouble(tmp_path), Figures("m")
    for _ in range(5):
        note(figures)
        blobs.once = away
        flushed(figures, blobs, fails=True)
    note(figures, at=AT.replace(day=6))
    blobs.once = away
    flushed(figures, blobs, fails=True)
    assert (counts(blobs), counts(blobs, "2026-01-06")) == ({}, {"a": (1, 0, 1)})
    flushed(figures, blobs)
    assert counts(blobs) == {"a": (5, 0, 5)}


def test_figures_of_a_server_of_before_are_added_to(tmp_path: Path) -> None:
    blobs, figures = Trouble(tmp_path), Figures("m")
    before = {"a": {"requests": 2, "errors": 1, "p99_ms": 4.0, "buckets": {"0": 1}}}
    assert blobs.replace("m/serving/2026-01-05.json", json.dumps(before).encode(), None)
    note(figures)
    flushed(figures, blobs)
    assert counts(blobs) == {"a": (3, 1, 1)}
