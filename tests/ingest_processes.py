"""Runs one night in a process that can be killed at any durable step; imported by forked ones.

A durable step is what outlives the process: a rename or link of a file, a commit. They are counted
by wrapping them here, in the child; the product knows nothing of it.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ibis
import psycopg2
import sqlalchemy as sa

import csrm_tasks.ingest.sums
from csrm_tasks.cli import main
from csrm_tasks.steps.registry import all_steps

PRELOADED = (ibis.duckdb, psycopg2, csrm_tasks.ingest.sums, all_steps())  # once, before the forks

DURABLE = ("replace", "rename", "link")  # of os; pathlib and shutil call these


class Counter:
    """Counts durable steps; the process dies just before number ``deadly`` (0: it lives)."""

    def __init__(self, deadly: int) -> None:
        self.seen: list[str] = []
        self._deadly = deadly

    def step(self, name: str) -> None:
        self.seen.append(name)
        if len(self.seen) == self._deadly:
            os.kill(os.getpid(), signal.SIGKILL)

    def wrap(self, name: str) -> None:
        original: Callable[..., Any] = getattr(os, name)

        def counted(source: Any, target: Any, *args: Any, **more: Any) -> Any:
            self.step(f"{name} {Path(target).name}")
            return original(source, target, *args, **more)

        setattr(os, name, counted)


def night(environment: dict[str, str], day: str, deadly: int, told: Any) -> None:
    """``csrm ingest --market tiny --day DAY``, killed before durable step ``deadly``."""
    os.environ.update(environment)
    counter = Counter(deadly)
    for name in DURABLE:
        counter.wrap(name)

    def commits(connection: sa.Connection) -> None:
        if connection.get_execution_options().get("writing"):  # else there is nothing to commit
            counter.step("commit")

    sa.event.listen(sa.Engine, "commit", commits)
    code = main(["ingest", "--market", "tiny", "--day", day])
    if told is not None:
        told.put((code, counter.seen))


def gated_night(environment: dict[str, str], day: str, gate: Any) -> None:
    """``csrm ingest`` once all who share ``gate`` are ready; the exit code is the command's."""
    os.environ.update(environment)
    gate.wait()
    raise SystemExit(main(["ingest", "--market", "tiny", "--day", day]))
