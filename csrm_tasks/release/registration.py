"""One model version per release: made when it is registered, made again when MLflow lost it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from csrm_tasks.artifacts import Artifact
from csrm_tasks.release import mlflow_aliases as registry
from csrm_tasks.release.bundle import model
from csrm_tasks.release.bundle.manifest import release_id

if TYPE_CHECKING:
    from mlflow import MlflowClient


def version_tags(payload: Mapping[str, str]) -> dict[str, str]:
    """Return the tags of a version, from the payload of the ledger row that registered it."""
    tags = {"csrm.bundle": payload["bundle"], "csrm.verdict": payload["outcome"]}
    return tags | {f"csrm.{k}": payload[k] for k in ("gate", "evaluation", "asked") if k in payload}


def ensure(
    api: MlflowClient, name: str, run_id: str, bundle: Artifact, tags: Mapping[str, str], work: Path
) -> str:
    """Upload the bundle to the run and return its one version of model ``name``."""
    source = model.upload(api, run_id, bundle, work)
    release = release_id(bundle)
    return registry.ensure_version(api, name, release, source=source, run_id=run_id, tags=tags)
