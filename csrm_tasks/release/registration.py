"""One model version per release: made when it is registered, made again when MLflow lost it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from csrm_tasks import tracking
from csrm_tasks.artifacts import Artifact
from csrm_tasks.release import mlflow_aliases as registry
from csrm_tasks.release.bundle import model
from csrm_tasks.release.bundle.manifest import release_id

if TYPE_CHECKING:
    from mlflow import MlflowClient


def version_tags(payload: Mapping[str, str]) -> dict[str, str]:
    """Return the tags of a version, from the payload of the ledger row that registered it."""
    tags = {"csrm.bundle": payload["bundle"], "csrm.verdict": payload["outcome"]}
    return tags | {f"csrm.{k}": payload[k] for k in ("gate", "evaluation") if k in payload}


def ensure(
    api: MlflowClient, name: str, run_id: str, bundle: Artifact, tags: Mapping[str, str], work: Path
) -> str:
    """Upload the bundle as a model of the run and return its one version of model ``name``."""
    model_id = model.upload(api, run_id, bundle, work)
    return registry.ensure_version(
        api, name, release_id(bundle), source=f"models:/{model_id}", run_id=run_id, tags=tags,
        model_id=model_id,
    )  # fmt: skip


def log_figures(
    api: MlflowClient, name: str, version: str, figures: Mapping[str, float], evaluation: Artifact
) -> None:
    """Say of a version's model what ``evaluation`` has found of it on gold; once.

    MLflow shows them beside the version, and finds models by them and by the gold set.
    """
    from mlflow.entities import Metric

    found = api.get_model_version(name, version)
    if not found.model_id:
        return  # registered before models were logged
    known = {m.key for m in api.get_logged_model(found.model_id).metrics or ()}
    summary = json.loads(evaluation.file("metrics.json").read_text(encoding="utf-8"))
    gold = tracking.dataset("gold", summary["gold"]["digest"], evaluation.ref)
    of = {"model_id": found.model_id, "run_id": found.run_id}
    of |= {"dataset_name": gold.dataset.name, "dataset_digest": gold.dataset.digest}
    new = [Metric(k, float(v), 0, 0, **of) for k, v in figures.items() if k not in known]
    api.log_inputs(found.run_id, [gold])
    if new:
        api.log_batch(found.run_id, metrics=new)
