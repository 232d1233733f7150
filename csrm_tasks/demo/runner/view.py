"""Progress of a demo: a live table on a terminal, one line per event elsewhere."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from csrm_tasks.airflow_api import RunState, named
from csrm_tasks.demo.runner.plan import Stage

DONE = ("success", "skipped")
SHOWN = {"success": "green", "failed": "red", "running": "cyan"}


class RunProgress:
    """What each stage is doing; call :meth:`update` as often as its state is read."""

    def __init__(self, console: Console, stages: Sequence[Stage]) -> None:
        self._console = console
        self._stages = stages
        self._states: dict[str, RunState] = {}
        self._told: set[tuple[str, str, str]] = set()
        self._live: Live | None = None

    def __enter__(self) -> RunProgress:
        """Draw the table where the console is a terminal."""
        if self._console.is_terminal:
            self._live = Live(self._table(), console=self._console, refresh_per_second=4)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the last table on the screen."""
        if self._live:
            self._live.update(self._table())
            self._live.stop()

    def say(self, text: str) -> None:
        """Print one line beside the table."""
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def known(self, stage: Stage, state: RunState, how: str) -> None:
        """Say in one line what of a run that is there already (``how``) was done before."""
        ended = [t for t in state.tasks if t["state"] in DONE]
        self._told |= {(stage.run_id, named(t), t["state"]) for t in ended}
        self.say(f"{stage.title}: {how}, {done(state)}/{len(state.tasks)} tasks were done before")

    def update(self, stage: Stage, state: RunState) -> None:
        """Take in what was read of one stage."""
        self._states[stage.run_id] = state
        if self._live:
            self._live.update(self._table())
            return
        for task in state.tasks:
            key = (stage.run_id, named(task), task["state"] or "")
            if key[2] in (*DONE, "failed", "up_for_retry") and key not in self._told:
                self._told.add(key)
                self.say(_line(stage, state, task))

    def _table(self) -> Table:
        table = Table(box=None, pad_edge=False)
        for title in ("run", "state", "tasks", "now", "time"):
            table.add_column(title)
        for stage in self._stages:
            state = self._states.get(stage.run_id)
            if state is None:
                table.add_row(stage.title, "", "", "", "")
                continue
            color = SHOWN.get(state.state, "yellow")
            now = ", ".join(named(t) for t in state.tasks if t["state"] == "running")
            table.add_row(
                stage.title,
                f"[{color}]{state.state}[/]",
                f"{done(state)}/{len(state.tasks)}",
                now,
                f"{seconds(state):.0f} s",
            )
        return table


def done(state: RunState) -> int:
    """Return how many tasks have ended well."""
    return sum(t["state"] in DONE for t in state.tasks)


def seconds(state: RunState) -> float:
    """Return seconds from the first task's start to the last one's end, or to now."""
    starts = [_moment(t["start_date"]) for t in state.tasks if t["start_date"]]
    ends = [_moment(t["end_date"]) for t in state.tasks if t["end_date"]]
    if not starts:
        return 0.0
    over = state.state in ("success", "failed")
    return (max(ends) if over and ends else time.time()) - min(starts)


def _moment(text: str) -> float:
    return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()


def _line(stage: Stage, state: RunState, task: dict[str, Any]) -> str:
    took = f"{task['duration']:.1f} s" if task["duration"] else ""
    clock = time.strftime("%H:%M:%S")
    count = f"{done(state)}/{len(state.tasks)}"
    return f"{clock}  {stage.title:<20} {count:>6}  {named(task):<22} {task['state']} {took}"
