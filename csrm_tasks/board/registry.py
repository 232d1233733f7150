"""What MLflow shows of a market's releases, over its REST interface: nothing heavy is imported."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.error import HTTPError
from urllib.parse import quote, urlencode
from urllib.request import Request, urlopen

from csrm_tasks.errors import AwayError
from csrm_tasks.release.mlflow_aliases import RELEASE_TAG

TIMEOUT = 2.0  # seconds; the page waits for it
LATEST = 100  # versions that are looked at


@dataclass(frozen=True)
class Registry:
    """Links into MLflow, and which version each alias names."""

    model: str  # page of the registered model
    versions: Mapping[str, str]  # release → page of its version
    aliases: Mapping[str, str]  # alias → release


def registry(base: str, model: str) -> Registry:
    """Ask the MLflow server at ``base``; raises :class:`AwayError` where it has no answer."""
    try:
        return _registry(base, model)
    except HTTPError as e:
        why = f"answers {e.code}; nothing may be registered yet"
        raise AwayError(f"{why}, and there are no links to it") from e
    except (OSError, ValueError, KeyError, TypeError) as e:
        why = f"does not answer at CSRM_MLFLOW_UI ({type(e).__name__})"
        raise AwayError(f"{why}, so there are no links to it") from e


def _registry(base: str, model: str) -> Registry:
    found = call(f"{base}/api/2.0/mlflow/registered-models/get?{urlencode({'name': model})}")
    query = urlencode({"filter": f"name='{model}'", "max_results": LATEST})
    listed = call(f"{base}/api/2.0/mlflow/model-versions/search?{query}").get("model_versions", [])
    page = f"{base}/#/models/{quote(model)}"
    releases, versions = {}, {}
    for one in listed:
        tags = {tag["key"]: tag["value"] for tag in one.get("tags", [])}
        release = tags.get(RELEASE_TAG)
        if release is None:
            continue
        releases[one["version"]] = release
        versions[release] = f"{page}/versions/{quote(str(one['version']))}"
    aliases = found["registered_model"].get("aliases", [])
    named = {a["alias"]: releases.get(a["version"], f"version {a['version']}") for a in aliases}
    return Registry(page, versions, dict(sorted(named.items())))


def call(url: str, body: bytes | None = None) -> dict[str, Any]:
    """Return the JSON that a server answers within two seconds."""
    request = Request(url, data=body, headers={"Content-Type": "application/json"})
    with urlopen(request, timeout=TIMEOUT) as response:
        found: dict[str, Any] = json.load(response)
    return found
