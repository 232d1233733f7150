"""MLflow runs of steps: found again by artifact reference, so that a rerun adds no second one."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from csrm_tasks.settings import PROJECT_ROOT, Settings

if TYPE_CHECKING:
    from mlflow import MlflowClient

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")


def client(settings: Settings) -> MlflowClient:
    """Return an ``MlflowClient`` of this installation."""
    from mlflow.tracking import MlflowClient

    return MlflowClient(tracking_uri=settings.mlflow_uri, registry_uri=settings.mlflow_uri)


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

    ``curves`` maps a metric's name to (step, value). One run per reference: a second call with the
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
    api.log_batch(
        run_id,
        metrics=[Metric(k, float(v), 0, 0) for k, v in (metrics or {}).items()],
        params=[Param(k, str(v)) for k, v in (params or {}).items()],
        tags=[RunTag(k, v) for k, v in all_tags.items()],
    )
    points = [Metric(k, float(v), 0, s) for k, curve in (curves or {}).items() for s, v in curve]
    for start in range(0, len(points), 1000):
        api.log_batch(run_id, metrics=points[start : start + 1000])
    for f in files:
        api.log_artifact(run_id, str(f))
    api.set_terminated(run_id, "FINISHED")
    return run_id
