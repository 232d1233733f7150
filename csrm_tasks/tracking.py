"""MLflow runs of steps: found again by artifact reference, so that a rerun adds no second one."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from csrm_tasks.settings import PROJECT_ROOT, Settings
from csrm_tasks.store.engine import writing

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import DatasetInput

    from csrm_tasks.artifacts import Artifact

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
DIGEST = 36  # characters of a dataset's digest that MLflow takes


@dataclass(frozen=True)
class Begun:
    """When a step began, in seconds of the clock and of CPUs (children that have ended included).

    Of this attempt: what a killed one spent before is not known.
    """

    wall: float = field(default_factory=time.monotonic)
    cpu: float = field(default_factory=lambda: sum(os.times()[:4]))

    def spent(self) -> dict[str, float]:
        """Return wall_seconds and cpu_seconds since then.

        Far fewer CPU-seconds than threads times wall seconds: the step waited, for other jobs, a
        disk or a database.
        """
        now = Begun()
        return {
            "wall_seconds": round(now.wall - self.wall, 3),
            "cpu_seconds": round(now.cpu - self.cpu, 3),
        }


_step: ContextVar[Begun | None] = ContextVar("step_begun", default=None)
_data: ContextVar[Artifact | None] = ContextVar("step_data", default=None)


@contextmanager
def measured_step(data: Artifact | None = None) -> Iterator[Begun]:
    """Have runs that are logged in the block say what the step has spent until then.

    And of which ``data`` they are: the snapshot that the step reads, where it reads one.
    """
    begun = Begun()
    tokens = _step.set(begun), _data.set(data)
    try:
        yield begun
    finally:
        _step.reset(tokens[0])
        _data.reset(tokens[1])


def dataset(name: str, digest: str, ref: str) -> DatasetInput:
    """Return what MLflow takes as a dataset of a run: part ``name`` of artifact ``ref``."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    about = Dataset(name, digest[:DIGEST], source_type="csrm", source=json.dumps({"ref": ref}))
    return DatasetInput(about, [InputTag("mlflow.data.context", name)])


def client(settings: Settings) -> MlflowClient:
    """Return an ``MlflowClient`` of this installation."""
    from mlflow.tracking import MlflowClient

    uri = settings.mlflow_uri
    with _one_at_a_time(uri) if uri not in _opened else nullcontext():
        made = MlflowClient(tracking_uri=uri, registry_uri=uri)
    _opened.add(uri)
    return made


_opened: set[str] = set()  # tracking URIs that this process has opened


@contextmanager
def _one_at_a_time(uri: str) -> Iterator[None]:
    """Keep others out while a database is opened: MLflow makes its tables at the first opening.

    Its tracking store does so without a lock, and of two processes that open a new database one
    fails, or both do. A server's (``http``) are made by the server alone.
    """
    from sqlalchemy import NullPool, create_engine, make_url

    path = make_url(uri).database if uri.startswith("sqlite") else None
    if path:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            yield
    elif uri.startswith("postgresql"):
        engine = create_engine(uri, poolclass=NullPool)  # no connection is kept
        with writing(engine, "MLflow's tables"):
            yield
    else:
        yield


class LaterClient:
    """An ``MlflowClient`` that is made when it is first used.

    Making one may wait for MLflow's database (minutes, where it is away); who goes back to the
    release before does not.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._made: MlflowClient | None = None

    def __getattr__(self, name: str) -> object:
        if self._made is None:
            self._made = client(self._settings)
        return getattr(self._made, name)


def experiment_id(api: MlflowClient, market: str, settings: Settings) -> str:
    """Return the id of the market's experiment, creating it once."""
    from mlflow.exceptions import MlflowException

    name = f"csrm/{market}"
    found = api.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    local = not settings.mlflow_uri.startswith("http")
    location = (settings.home / "mlartifacts").as_uri() if local else None
    try:
        return str(api.create_experiment(name, artifact_location=location))
    except MlflowException:
        found = api.get_experiment_by_name(name)
        if found is None:
            raise
        return str(found.experiment_id)  # another process created it first


@cache
def code_tags() -> dict[str, str]:
    """Return which code this is: the installed version, and the commit where it is a checkout."""
    found = {"csrm.version": version("csrm")}
    git = ["git", "-C", str(PROJECT_ROOT)]
    try:
        done = [
            subprocess.run([*git, *of], capture_output=True, text=True, check=True).stdout.strip()
            for of in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        ]
    except (OSError, subprocess.CalledProcessError):  # no git, or no checkout
        return found
    commit, changed = done
    return found | {"mlflow.source.git.commit": commit, "csrm.changed": str(bool(changed)).lower()}


def log_run(
    settings: Settings,
    market: str,
    ref: str,
    *,
    params: Mapping[str, Any] | None = None,
    metrics: Mapping[str, float] | None = None,
    curves: Mapping[str, Sequence[tuple[int, float]]] | None = None,
    tags: Mapping[str, str] | None = None,
    files: Sequence[Path] = (),
) -> str:
    """Record what step output ``ref`` measured and return the MLflow run id.

    ``curves`` maps a metric's name to (step, value). In a step, what it has spent so far is there
    as ``step_wall_seconds`` and ``step_cpu_seconds``, and the snapshot that it reads as the run's
    dataset. One run per reference: a second call with the
    same ``ref`` returns the finished run untouched; an unfinished one (killed) is deleted first.
    """
    from mlflow.entities import Metric, Param, RunTag

    api = client(settings)
    experiment = experiment_id(api, market, settings)
    for run in api.search_runs([experiment], f"tags.`csrm.ref` = '{ref}'"):
        if run.info.status == "FINISHED":
            return str(run.info.run_id)
        api.delete_run(run.info.run_id)
    step_name = ref.split("/")[1]
    run = api.create_run(experiment, run_name=f"{step_name}-{ref.split('/')[2][:8]}")
    run_id = str(run.info.run_id)
    all_tags = {"csrm.ref": ref, "csrm.step": step_name, "csrm.market": market}
    all_tags |= code_tags() | dict(tags or {})
    begun = _step.get()
    spent = {f"step_{k}": v for k, v in begun.spent().items()} if begun else {}
    api.log_batch(
        run_id,
        metrics=[Metric(k, float(v), 0, 0) for k, v in (spent | dict(metrics or {})).items()],
        params=[Param(k, str(v)) for k, v in (params or {}).items()],
        tags=[RunTag(k, v) for k, v in all_tags.items()],
    )
    data = _data.get()
    if data is not None:
        api.log_inputs(run_id, [dataset("snapshot", data.digest, data.ref)])
    points = [Metric(k, float(v), 0, s) for k, curve in (curves or {}).items() for s, v in curve]
    for start in range(0, len(points), 1000):
        api.log_batch(run_id, metrics=points[start : start + 1000])
    for f in files:
        api.log_artifact(run_id, str(f))
    api.set_terminated(run_id, "FINISHED")
    return run_id
