#!/usr/bin/env bash
# MLflow 3.17.2: the dataset of a metric, and the model of a version, are taken and dropped.
#
# MlflowClient.log_metric takes dataset_name and dataset_digest ("the dataset associated with the
# metric"). A database store keeps them only for metrics that name a model_id, too: without one the
# call succeeds, the metric is there, and its dataset is nowhere, neither in its history nor in the
# run's. So "which figures are on this test set" cannot be asked of runs, only of logged models.
# Likewise create_model_version(model_id=…) of a database registry succeeds, and the version's model_id is
# None when it is read back, so that its metrics stay empty; what leads from one to the other is the
# artifact location (and a tag that the tracking server, not the client, writes on the model).
#
# Prints what is read back. Exit 0: as described; 1: not so any more.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q "mlflow==3.17.2" 2>/dev/null
cd "$work"
cat > try.py <<'PY'
import sys

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag

api = MlflowClient("sqlite:///own.db", "sqlite:///own.db")
experiment = api.create_experiment("e")
run = api.create_run(experiment).info.run_id
gold = Dataset("gold", "d1", source_type="local", source="{}")
api.log_inputs(run, [DatasetInput(gold, [InputTag("mlflow.data.context", "eval")])])
of = {"dataset_name": "gold", "dataset_digest": "d1"}

api.log_metric(run, "f1", 0.5, **of)
[plain] = api.get_metric_history(run, "f1")
print("without a model: value", plain.value, "dataset", plain.dataset_name, plain.dataset_digest)

model = api.create_logged_model(experiment, name="m", source_run_id=run)
api.log_metric(run, "f1", 0.6, model_id=model.model_id, **of)
[told] = api.get_logged_model(model.model_id).metrics
print("with a model:    value", told.value, "dataset", told.dataset_name, told.dataset_digest)
print("of both, the run's history says", [m.dataset_name for m in api.get_metric_history(run, "f1")])

model = api.finalize_logged_model(model.model_id, "READY")
api.create_registered_model("r")
api.create_model_version("r", model.artifact_location, run_id=run, model_id=model.model_id)
version = api.get_model_version("r", "1")
print("the version: model_id", version.model_id, "metrics", version.metrics)
as_described = (
    plain.dataset_name is None
    and (told.dataset_name, told.dataset_digest) == ("gold", "d1")
    and [m.dataset_name for m in api.get_metric_history(run, "f1")] == [None, None]
    and version.model_id is None
    and not version.metrics
)
sys.exit(0 if as_described else 1)
PY
env -u MLFLOW_TRACKING_URI "$work/venv/bin/python" try.py 2>/dev/null
