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

PACKAGE = Path(__file__).resolve().parents[2]
PYFUNC = "csrm_tasks.release.bundle.pyfunc"  # by name: only MLflow may import it
NEEDS = ("mlflow", "numpy", "onnxruntime", "opencc", "polars", "tokenizers", "filelock")
OPTIONAL = ("product_id", "title", "brand", "category")  # of what predict takes beside query
FOLDER = "release"  # of the run's artifacts


def upload(api: MlflowClient, run_id: str, bundle: Artifact, work: Path) -> str:
    """Save the bundle as a pyfunc among the run's artifacts and return its URI.

    Doing it again writes the same files to the same place.
    """
    shutil.rmtree(work, ignore_errors=True)
    model = save(bundle.path, work)
    api.log_artifacts(run_id, str(model), FOLDER)
    return f"{api.get_run(run_id).info.artifact_uri}/{FOLDER}"


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
