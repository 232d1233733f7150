"""What people are told: one message about a run, from what is known of it.

Pure functions of their arguments. Every message has a ``key``: of two with the same key one is
sent (:mod:`csrm_tasks.notify.once`). A run that was cleared and fails again has another.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from csrm_tasks.notify.masking import one_line
from csrm_tasks.sections.notify import Event

ERROR, LINE, SUBJECT, NAMED = 600, 400, 150, 5  # characters, and tasks that are named
UNKNOWN = "its log says why (killed, timed out, or it could not say so)"
AFTER = re.compile(r"\*\*A task failed\?\*\*(.+?)(?=\*\*[A-Z]|\n\s*\n|\Z)", re.DOTALL)


@dataclass(frozen=True)
class Run:
    """A run of a DAG."""

    market: str
    dag: str
    run: str
    attempt: int = 0  # how often it was cleared before
    link: str = ""  # to it in Airflow; empty where Airflow's address is not known


@dataclass(frozen=True)
class Cause:
    """A task that failed."""

    task: str  # as Airflow shows it; ``name[2]`` of mapped ones
    at: str = ""  # ISO 8601, UTC; empty where it could not say so
    error: str = ""


@dataclass(frozen=True)
class Message:
    """What is sent."""

    event: Event
    market: str
    key: str
    subject: str
    text: str
    link: str

    def as_json(self) -> dict[str, str]:
        """Return the body of a webhook; ``text`` is what chat servers show."""
        text = f"{self.subject}\n{self.text}"
        return {"text": text, "event": self.event, "market": self.market, "subject": self.subject,
                "link": self.link}  # fmt: skip


def failed(
    run: Run, causes: Sequence[Cause], advice: str, secrets: Collection[str] = ()
) -> Message:
    """Tell that a run failed: the task that failed first and why, what to do, who else failed."""
    order = sorted(causes, key=lambda c: (not c.at, c.at, c.task))
    lines = []
    if order:
        first, *others = order
        said = one_line(first.error, ERROR, secrets) or UNKNOWN
        when = f" at {first.at}" if first.at else ""
        lines.append(f"First cause: task {one_line(first.task, LINE, secrets)}{when}: {said}")
        lines += _others([c.task for c in others], secrets)
    else:
        lines.append(f"No task of it failed by itself: {UNKNOWN}")
    lines.append(f"What to do: {one_line(advice, LINE, secrets)}")
    subject = f"[{run.market}] {run.dag} failed"
    subject += f" in {order[0].task}" if order else ""
    return _message("failed", run, subject, lines, secrets)


def late(run: Run, hours: int, state: str, secrets: Collection[str] = ()) -> Message:
    """Tell that a run has not ended ``hours`` after it was queued."""
    lines = [
        f"Its run is still {one_line(state, 40)} {hours} hours after it was queued.",
        "What to do: see which task it is at; one that waits for a slot, a pool or an earlier run "
        "waits for as long as that is taken, and a missing pool is never free (csrm doctor).",
    ]
    return _message("late", run, f"[{run.market}] {run.dag} is late", lines, secrets)


def approval(
    run: Run, release: str, reasons: str, hours: int, secrets: Collection[str] = ()
) -> Message:
    """Tell that a release waits for a person, and until when."""
    lines = [
        f"The gate let it pass: {one_line(reasons, LINE, secrets)}",
        f"What to do: answer in Airflow under Required Actions within {hours} hours, or csrm "
        f"release approve (or reject) --market {run.market} --actor NAME --reason WHY {release}; "
        "no answer is a no.",
    ]
    subject = f"[{run.market}] release {release} waits for approval"
    return _message("approval", run, subject, lines, secrets, about=release)


def no_promotion(
    run: Run, live: str, days: int, limit: int, secrets: Collection[str] = ()
) -> Message:
    """Tell that what is live is ``days`` old; once for every ``limit`` days of it."""
    lines = [
        f"{live} is live since {days} days; the market expects a new release within {limit}.",
        "What to do: csrm release history says what became of the last weeks: failed runs, "
        "verdicts that were not PASS, releases that wait for approval or for a rollout step.",
    ]
    subject = f"[{run.market}] no promotion for {days} days"
    key = f"{live} {days // limit}"
    return _message("no_promotion", run, subject, lines, secrets, about=key, of_run=False)


def advice(doc: str) -> str:
    """Return what a DAG's page says to do when a task fails, as one line of plain text."""
    found = AFTER.search(doc)
    said = found.group(1) if found else "read the task's log, do what its last line says"
    line = " ".join(said.replace("`", "").split()).rstrip(".")
    return f"{line}." if "clear" in line.lower() else f"{line}. Then clear the task in Airflow."


def _others(tasks: Sequence[str], secrets: Collection[str]) -> list[str]:
    if not tasks:
        return []
    more = f" and {len(tasks) - NAMED} more" if len(tasks) > NAMED else ""
    return [one_line(f"Failed after it: {', '.join(tasks[:NAMED])}{more}", LINE, secrets)]


def _message(
    event: Event, run: Run, subject: str, lines: Sequence[str], secrets: Collection[str],
    *, about: str = "", of_run: bool = True,
) -> Message:  # fmt: skip
    which = f"{run.dag} {run.run} {run.attempt}" if of_run else ""
    where = run.link or f"run {run.run} of {run.dag}, in Airflow"
    text = "\n".join([*lines, f"See: {where}"])
    key = " ".join(part for part in (event, run.market, about, which) if part)
    return Message(event, run.market, key, one_line(subject, SUBJECT, secrets), text, run.link)
