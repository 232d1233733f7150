"""Saving a bundle as an MLflow model that carries its own code and loads without this project."""

from __future__ import annotations

import shutil
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from csrm_tasks.artifacts import Artifact

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel

PACKAGE = Path(__file__).resolve().parents[2]
PYFUNC = "csrm_tasks.release.bundle.pyfunc"  # by name: only MLflow may import it
NEEDS = ("mlflow", "numpy", "onnxruntime", "opencc", "polars", "tokenizers", "filelock")
BUNDLE_TAG = "csrm.bundle"
OPTIONAL = ("product_id", "title", "brand", "category")  # of what predict takes beside query
NAME = "release"  # of the model among the run's outputs


def upload(api: MlflowClient, run_id: str, bundle: Artifact, work: Path) -> LoggedModel:
    """Save the bundle as a pyfunc, a logged model of the run, and return that.

    Doing it again finds the model; what a killed process has left unfinished is uploaded again.
    """
    from mlflow.entities import LoggedModelStatus

    model = logged(api, run_id, bundle)
    if model is None:
        experiment, tags = api.get_run(run_id).info.experiment_id, {BUNDLE_TAG: bundle.ref}
        model = api.create_logged_model(experiment, name=NAME, source_run_id=run_id, tags=tags)
    if model.status != LoggedModelStatus.READY:
        shutil.rmtree(work, ignore_errors=True)
        api.log_model_artifacts(model.model_id, str(save(bundle.path, work)))
        model = api.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
    return model


def logged(api: MlflowClient, run_id: str, bundle: Artifact) -> LoggedModel | None:
    """Return the run's model of a bundle, where there is one."""
    experiment = api.get_run(run_id).info.experiment_id
    asked = f"source_run_id = '{run_id}' AND tags.`{BUNDLE_TAG}` = '{bundle.ref}'"
    found = api.search_logged_models([experiment], filter_string=asked)
    return found[0] if found else None


def save(bundle: Path, work: Path) -> Path:
    """Write the pyfunc below ``work`` and return its folder."""
    import mlflow.pyfunc
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema

    text = DataType.string
    inputs = [ColSpec(text, "query")]
    inputs += [ColSpec(text, name, required=False) for name in OPTIONAL]
    outputs = [ColSpec(DataType.float, name) for name in ("em", "defect", "rank_score")]
    outputs.insert(2, ColSpec(DataType.boolean, "is_defect"))
    target = work / "pyfunc"
    with warnings.catch_warnings():  # it asks for type hints and an example; we give a signature
        warnings.simplefilter("ignore", UserWarning)
        mlflow.pyfunc.save_model(
            str(target),
            python_model=str(PACKAGE.parent.joinpath(*PYFUNC.split(".")).with_suffix(".py")),
            artifacts={"bundle": str(bundle)},
            code_paths=[str(_code(work / "code" / PACKAGE.name))],
            signature=ModelSignature(Schema(inputs), Schema(outputs)),
            pip_requirements=[f"{name}=={version(name)}" for name in NEEDS],
        )
    return target


def _code(target: Path) -> Path:
    """Copy the package as it is now, less the generated market and what was compiled."""
    shutil.copytree(PACKAGE, target, ignore=shutil.ignore_patterns("demo", "__pycache__"))
    return target
