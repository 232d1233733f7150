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

VERSIONS_TAG = "mlflow.modelVersions"  # of a logged model: what it is registered as


def version_tags(payload: Mapping[str, str]) -> dict[str, str]:
    """Return the tags of a version, from the payload of the ledger row that registered it."""
    tags = {"csrm.bundle": payload["bundle"], "csrm.verdict": payload["outcome"]}
    return tags | {f"csrm.{k}": payload[k] for k in ("gate", "evaluation", "asked") if k in payload}


def ensure(
    api: MlflowClient, name: str, run_id: str, bundle: Artifact, tags: Mapping[str, str], work: Path
) -> str:
    """Upload the bundle as a model of the run and return its one version of model ``name``."""
    made = model.upload(api, run_id, bundle, work)
    # By its place: a client without a server resolves models:/ID by another tracking URI (3.17.2).
    version = registry.ensure_version(
        api, name, release_id(bundle), source=made.artifact_location, run_id=run_id, tags=tags,
        model_id=made.model_id,
    )  # fmt: skip
    # A server says this itself when it makes the version; MLflow's pages go by it.
    shown = json.dumps([{"name": name, "version": version}])
    api.set_logged_model_tags(made.model_id, {VERSIONS_TAG: shown})
    return version


def log_figures(api: MlflowClient, run_id: str, bundle: Artifact, evaluation: Artifact) -> None:
    """Say of the run's model of ``bundle`` what ``evaluation`` has found on gold; once.

    MLflow shows the figures beside the version, and finds models by them and by the gold set.
    """
    from mlflow.entities import Metric

    made = model.logged(api, run_id, bundle)
    if made is None:
        return  # registered before models were logged
    summary = json.loads(evaluation.file("metrics.json").read_text(encoding="utf-8"))
    gold = tracking.dataset("gold", summary["gold"]["digest"], evaluation.ref)
    of = {"dataset_name": gold.dataset.name, "dataset_digest": gold.dataset.digest}
    of |= {"model_id": made.model_id, "run_id": run_id}
    known = {m.key for m in api.get_logged_model(made.model_id).metrics or ()}
    found = evaluation.facts["metrics"]
    new = [Metric(k, float(v), 0, 0, **of) for k, v in found.items() if k not in known]
    api.log_inputs(run_id, [gold])
    if new:
        api.log_batch(run_id, metrics=new)
