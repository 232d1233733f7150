"""A part of the page that cannot be read is a line on it; the other parts stand."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from csrm_tasks.errors import CsrmError
from csrm_tasks.release import away

log = logging.getLogger("csrm")
Found = TypeVar("Found")


@dataclass(frozen=True)
class Notice:
    """What stands in the place of a part: one line, without secrets."""

    text: str


def part(what: str, read: Callable[[], Found]) -> Found | Notice:
    """Return what ``read`` finds, or a notice that names ``what`` and why; raises nothing."""
    try:
        return read()
    except CsrmError as e:
        return Notice(f"{what}: {e}")
    except Exception as e:  # noqa: BLE001 whatever it is, the other parts are worth showing
        who = away.which(e)
        log.warning("board: %s cannot be read (%s)", what, type(e).__name__)
        return Notice(f"{what}: {away.trouble(who, e)}" if who else f"{what}: {_broken(e)}")


def _broken(error: Exception) -> str:
    """Say that something is damaged by the kind of error: its text may hold anything."""
    return f"cannot be read ({away.kind(error)})"
