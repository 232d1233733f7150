#!/usr/bin/env bash
# MLflow 3.17.2: making an MlflowClient is free on an http:// tracking URI and asks nobody; on a
# database URI the same line connects, and where the database is away it pauses nine times, 101
# seconds, before it raises. On http:// the first call pauses instead: six times, 246 seconds.
#
# Why it matters: a command that makes its client first ("fetch the client, then roll back") keeps a
# bad release served for minutes while MLflow is away. Make the client when it is first used, after
# what must not wait, and give that part a small MLFLOW_HTTP_REQUEST_MAX_RETRIES.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q mlflow-skinny==3.17.2 sqlalchemy==2.0.43 alembic==1.16.5 \
    psycopg2-binary==2.9.10 pandas==2.3.2
cat > "$folder/look.py" <<'PY'
import logging
import os
import time

for name in ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "MLFLOW_TRACKING_URI"):
    os.environ.pop(name, None)
pauses: list[float] = []
time.sleep = pauses.append  # only counted, not waited
from mlflow.tracking import MlflowClient  # noqa: E402

logging.disable(logging.WARNING)


def waited(what: str, act: object) -> tuple[int, float]:
    pauses.clear()
    try:
        act()
        ended = "ends well"
    except Exception as e:
        ended = f"raises {type(e).__name__}"
    print(f"{what}: {ended} after {len(pauses)} pauses, {sum(pauses):.0f} s")
    return len(pauses), sum(pauses)


nowhere = "127.0.0.1:9"
http = f"http://{nowhere}"
made_http = waited("client of http:// made", lambda: MlflowClient(http, http))
call_http = waited("its first call", lambda: MlflowClient(http, http).get_registered_model("m"))
database = f"postgresql+psycopg2://u@{nowhere}/d"
made_database = waited("client of a database made", lambda: MlflowClient(database, database))
assert made_http == (0, 0), "making a client of http:// waits now"
assert made_database[1] > 60, "making a client of a database waits no longer"
assert call_http[1] > 60, "the first call of http:// waits no longer"
PY
"$folder/venv/bin/python" "$folder/look.py" 2>/dev/null
