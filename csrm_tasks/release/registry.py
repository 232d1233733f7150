"""MLflow's registry as a view of the ledger: versions found by release id, aliases repaired.

MLflow aliases are last-writer-wins and keep no history, so nothing here decides anything: the
aliases are computed from the ledger and set where they differ. ``api`` is an ``MlflowClient``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from csrm_tasks.errors import RefusedError
from csrm_tasks.release import ledger

RELEASE_TAG = "csrm.release"
ALIASES = ("champion", "previous", "challenger")


def ensure_version(
    api: Any, model: str, release_id: str, *, source: str, run_id: str, tags: Mapping[str, str]
) -> str:
    """Return the model version of a release, creating it once; found again by its tag."""
    _ensure_model(api, model)
    known = versions(api, model)
    if release_id not in known:
        all_tags = {RELEASE_TAG: release_id, **tags}
        api.create_model_version(model, source, run_id=run_id, tags=all_tags)
        known = versions(api, model)  # two creators: both read the lower number
    return known[release_id]


def _ensure_model(api: Any, model: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        api.create_registered_model(model)
    except MlflowException as e:
        if e.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def versions(api: Any, model: str) -> dict[str, str]:
    """Return release id → lowest version number that carries it."""
    found: dict[str, str] = {}
    token = None
    while True:
        page = api.search_model_versions(f"name='{model}'", page_token=token)
        for v in page:
            release = v.tags.get(RELEASE_TAG)
            number = str(v.version)  # int from a database, str over REST
            if release and int(number) <= int(found.get(release, number)):
                found[release] = number
        token = page.token
        if not token:
            return found


def desired(entries: Sequence[ledger.Entry]) -> dict[str, str | None]:
    """Return alias → release that the ledger implies.

    The challenger is the newest registered release with a PASS, neither promoted nor given up.
    """
    stack = ledger.lives(entries)
    waiting = [
        e.release_id
        for e in entries
        if e.action == "registered"
        and e.payload["outcome"] == "PASS"
        and ledger.find(entries, "promoted", e.release_id) is None
        and ledger.find(entries, "aborted", e.release_id) is None
    ]
    return {
        "champion": stack[-1] if stack else None,
        "previous": stack[-2] if len(stack) > 1 else None,
        "challenger": waiting[-1] if waiting else None,
    }


def reconcile(api: Any, model: str, entries: Sequence[ledger.Entry]) -> list[str]:
    """Make the aliases equal what the ledger implies; returns what was repaired, in words.

    Raises :class:`RefusedError` when a release of the ledger has no version in MLflow.
    """
    if not entries:
        return []
    known = versions(api, model)
    have = {a: str(v) for a, v in api.get_registered_model(model).aliases.items()}
    repairs = []
    for alias, release in desired(entries).items():
        version = None if release is None else _version(known, model, release)
        if have.get(alias) == version:
            continue
        if version is None:
            api.delete_registered_model_alias(model, alias)
        else:
            api.set_registered_model_alias(model, alias, version)
        repairs.append(f"{alias}: {have.get(alias)} → {version}")
    return repairs


def _version(known: Mapping[str, str], model: str, release: str) -> str:
    if release not in known:
        raise RefusedError(f"MLflow model {model} has no version of {release}; register it again")
    return known[release]
