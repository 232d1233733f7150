"""MLflow: reachable, of our version, its runs are read, its registry keeps aliases.

The registry is tried on a model of its own name, which is deleted again.
"""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from email.utils import parsedate_to_datetime
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import urlopen

from csrm_tasks import tracking
from csrm_tasks.doctor.findings import Asked, Finding, Said, address, explained
from csrm_tasks.doctor.places import unwritable

if TYPE_CHECKING:
    from mlflow import MlflowClient

say = Said("mlflow")
NAME = "csrm-doctor-"  # begins the name of the model that is tried
SOURCE = "s3://csrm-doctor/nothing"  # of its version; nobody loads it
OLD_SCHEMA = "out-of-date database schema"
SECONDS = 10.0
VERSION = re.compile(r"\d+\.\d+\.\w+")


def mlflow(asked: Asked) -> Iterator[Finding]:
    """Check the MLflow of ``MLFLOW_TRACKING_URI``."""
    uri = asked.settings.mlflow_uri
    where = address(uri)
    if find_spec("mlflow") is None:
        yield say.skipped("MLflow is not installed here: this machine neither trains nor releases")
        return
    if uri.startswith("sqlite:"):
        path = Path(uri.removeprefix("sqlite:///"))
        if why := unwritable(path.parent):
            yield say.fault(f"{path.parent} cannot be written: {why}", "let this user write there")
            return
        if not path.exists():
            yield say.ok(f"no MLflow database yet; the first run makes {path}")
            return
    api = tracking.client(asked.settings)
    api.search_experiments(max_results=1)
    yield say.ok(f"{where} answers, and its runs are read")
    if uri.startswith("http"):
        yield from _server(uri)
    yield from _registry(api, where)


def _server(uri: str) -> Iterator[Finding]:
    """Yield whether the server's version and clock are ours."""
    before = time.time()
    base = f"{urlsplit(uri).scheme}://{address(uri).partition('://')[2].rstrip('/')}"
    try:
        with urlopen(f"{base}/version", timeout=SECONDS) as answer:
            date, theirs = answer.headers.get("date"), answer.read(40).decode().strip()
    except (HTTPError, ValueError):  # what stands before it does not pass this on without a login
        yield say.skipped("its version and its clock are not told to us")
        return
    if date:
        yield say.clock(parsedate_to_datetime(date).timestamp(), before, "MLflow's server")
    ours = version("mlflow")
    if not VERSION.fullmatch(theirs):
        yield say.skipped("its version is not told to us")
    elif theirs.split(".")[:2] != ours.split(".")[:2]:
        yield say.warning(
            f"the server is MLflow {theirs}, the client here {ours}",
            "install one version for both (locks/)",
        )
    else:
        yield say.ok(f"server and client are MLflow {theirs} and {ours}")


def _registry(api: MlflowClient, where: str) -> Iterator[Finding]:
    """Make a model with a version, move an alias onto it, find it by that, and delete all of it."""
    name = f"{NAME}{uuid.uuid4().hex[:12]}"
    api.create_registered_model(name)
    try:
        made = api.create_model_version(name, SOURCE)
        api.set_registered_model_alias(name, "champion", made.version)
        found = api.get_model_version_by_alias(name, "champion")
        api.delete_registered_model_alias(name, "champion")
        api.delete_registered_model(name)
    except Exception:
        with suppress(Exception):
            api.delete_registered_model(name)
        raise
    if str(found.version) != str(made.version):
        yield say.fault(f"{where}: an alias does not lead where it was set", "use another server")
    else:
        yield say.ok("its registry keeps versions and aliases, and deletes them")


def in_words(error: BaseException, asked: Asked) -> tuple[str, str]:
    """Return what an error of this check means, and the cure."""
    where = f"MLflow {address(asked.settings.mlflow_uri)}"
    if OLD_SCHEMA in str(error):
        return (
            f"{where}: its database is of an older version of MLflow",
            "back it up and run: mlflow db upgrade with its URL",
        )
    return explained(error, where)
