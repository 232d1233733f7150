#!/usr/bin/env bash
# MLflow 3.17.2: where nobody listens at the tracking URI, the client raises an MlflowException that
# says INTERNAL_ERROR and HTTP status 500, though no server has answered. So does every one that is
# made without a code (the default), before anybody was asked. No class, code, status or cause tells
# the two apart; the text "API request to" does.
#
# Why it matters: "try again, MLflow is away" and "this call is wrong, do not try again" are two
# answers (in Airflow: retry, or fail at once). Who goes by status >= 500 retries mistakes for ever.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q mlflow-skinny==3.17.2
cat > "$folder/look.py" <<'PY'
import os
import socket

os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"
from mlflow.exceptions import MlflowException  # noqa: E402
from mlflow.tracking import MlflowClient  # noqa: E402

with socket.socket() as unused:
    unused.bind(("127.0.0.1", 0))
    address = f"http://127.0.0.1:{unused.getsockname()[1]}"


def shape(error: MlflowException) -> tuple[object, ...]:
    cause = type(error.__cause__).__name__
    return type(error).__name__, error.error_code, error.get_http_status_code(), cause


def raised(act: object) -> MlflowException:
    try:
        act()
    except MlflowException as e:
        return e
    raise SystemExit("nothing was raised: the behaviour has changed")


client = MlflowClient(tracking_uri=address, registry_uri=address)
away = raised(lambda: client.get_experiment_by_name("x"))
plain = MlflowException("nobody was asked")
print("nobody listens:", shape(away), str(away)[:15])
print("made without a code:", shape(plain))
same = shape(away) == shape(plain) == ("MlflowException", "INTERNAL_ERROR", 500, "NoneType")
if not same or not str(away).startswith("API request to"):
    raise SystemExit("the behaviour has changed")
PY
"$folder/venv/bin/python" "$folder/look.py"
