"""What a demo runs: the first day, the cold start and beside it the nights, the retraining.

Read off the landing zone: its first day is what a market brings to its cold start, each later day
is a night, and the last day's ISO week is the week to retrain. A run's id is made from its window
and from the code and configuration that it runs, so the same demo finds its finished runs, and one
whose steps changed runs anew (steps that the change does not touch are found by their fingerprint).
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from csrm_tasks.errors import CsrmError
from csrm_tasks.settings import PROJECT_ROOT, Settings
from csrm_tasks.steps.code_digest import code_digest
from csrm_tasks.steps.declaration import all_steps

INGEST = "csrm_ingest"


@dataclass(frozen=True)
class Stage:
    """One DAG run."""

    title: str
    dag_id: str
    run_id: str
    conf: Mapping[str, str]
    after: tuple[str, ...] = ()  # ids of the runs it waits for

    @property
    def trains(self) -> bool:
        """Whether it learns anything, or only takes a night in."""
        return not self.dag_id.startswith(f"{INGEST}__")


def plan(market: str, settings: Settings) -> list[Stage]:
    """Return the DAG runs of a demo on what has been landed, each behind those it waits for.

    Raises :class:`CsrmError` where nothing has been landed.
    """
    folder = settings.landing / market
    days = sorted(p.name for p in folder.glob("*-*-*") if p.is_dir())
    if not days:
        raise CsrmError(f"{folder} has no day folder (YYYY-MM-DD): generate or land data first")
    year, week, _ = date.fromisoformat(days[-1]).isocalendar()
    version = code_version(market, settings)
    nights: list[Stage] = []
    for day in days:  # one after another, as nights are
        last = tuple(night.run_id for night in nights[-1:])
        name = f"ingest-{day}-{version}"
        nights.append(_stage(INGEST, market, f"ingest {day}", name, last, day=day))
    cold = _stage(
        "csrm_cold_start", market, f"cold start {days[0]}", f"cold-start-{days[0]}-{version}",
        (nights[0].run_id,), until=days[0],
    )  # fmt: skip
    iso = f"{year}-W{week:02d}"
    retrain = _stage(
        "csrm_retrain", market, f"retrain {iso}", f"retrain-{iso}-{version}",
        (cold.run_id, nights[-1].run_id), week=iso,
    )  # fmt: skip
    return [nights[0], cold, *nights[1:], retrain]


def _stage(
    dag: str, market: str, title: str, run: str, after: tuple[str, ...], **conf: str
) -> Stage:
    return Stage(title, f"{dag}__{market}", f"demo-{run}", conf, after)


def code_version(market: str, settings: Settings) -> str:
    """Return eight hex digits of the digest of what runs: steps' code, DAGs, the market's file.

    Code that no step reaches (a page, a command, a formula of costs) is not among it.
    """
    digest = hashlib.sha256()
    for name, step in all_steps().items():
        code = code_digest(step.function, settings.cache / "code")
        declared = step.inputs, step.optional, step.many, step.config
        digest.update(f"{name}\0{code}\0{declared}\0".encode())
    dags = sorted(PROJECT_ROOT.glob("dags/*.py"))
    for p in [*dags, settings.markets / f"{market}.yaml"]:
        digest.update(p.name.encode() + b"\0" + p.read_bytes() + b"\0")
    return digest.hexdigest()[:8]


def finished(stages: list[Stage], airflow_db: Path) -> bool:
    """Whether Airflow's own database says that every run has ended well.

    Read directly so that a second ``make demo`` need not start Airflow to learn that.
    """
    if not airflow_db.exists():
        return False
    with sqlite3.connect(f"file:{airflow_db}?mode=ro", uri=True) as db:
        rows = db.execute("SELECT dag_id, run_id FROM dag_run WHERE state = 'success'").fetchall()
    return {(s.dag_id, s.run_id) for s in stages} <= set(rows)
