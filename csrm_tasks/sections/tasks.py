"""Which judged tasks a market's LLM learns."""

from __future__ import annotations

from typing import Literal

Task = Literal["relevance", "qc", "qi"]
BINARY: tuple[Task, ...] = ("qc", "qi")  # paper 2's: query-category, query-item


def check_tasks(tasks: tuple[Task, ...]) -> None:
    """Raise :class:`ValueError` where no task is named, or one twice."""
    if not tasks:
        raise ValueError("tasks is empty; name at least one of relevance, qc, qi")
    for task in set(tasks):
        if tasks.count(task) > 1:
            raise ValueError(f"tasks names {task!r} twice; name each task once")
