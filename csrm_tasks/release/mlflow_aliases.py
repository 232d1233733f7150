"""MLflow's registry as a view of the ledger: versions found by release id, aliases repaired.

MLflow aliases are last-writer-wins and keep no history, so nothing here decides anything: the
aliases are computed from the ledger and set where they differ. ``api`` is an ``MlflowClient``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from csrm_tasks.errors import RefusedError
from csrm_tasks.release import approval, ledger, rollout

if TYPE_CHECKING:
    from mlflow import MlflowClient

RELEASE_TAG = "csrm.release"
SEEN_TAG = "csrm.ledger"  # of the model: hash of the ledger row that its aliases were last set for


def ensure_version(
    api: MlflowClient,
    model: str,
    release_id: str,
    *,
    source: str,
    run_id: str,
    tags: Mapping[str, str],
    model_id: str | None = None,
) -> str:
    """Return the model version of a release, creating it once; found again by its tag.

    ``model_id``: of the logged model that ``source`` is the place of.
    """
    _ensure_model(api, model)
    known = versions(api, model)
    if release_id not in known:
        all_tags = {RELEASE_TAG: release_id, **tags}
        api.create_model_version(model, source, run_id=run_id, tags=all_tags, model_id=model_id)
        known = versions(api, model)  # two creators: both read the lower number
    return known[release_id]


def _ensure_model(api: MlflowClient, model: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        api.create_registered_model(model)
    except MlflowException as e:
        if e.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def versions(api: MlflowClient, model: str) -> dict[str, str]:
    """Return release id → lowest version number that carries it."""
    numbers: dict[str, str] = {}
    token = None
    while True:
        page = api.search_model_versions(f"name='{model}'", page_token=token)
        for v in page:
            release = v.tags.get(RELEASE_TAG)
            number = str(v.version)  # int from a database, str over REST
            if release and int(number) <= int(numbers.get(release, number)):
                numbers[release] = number
        token = page.token
        if not token:
            return numbers


def desired(entries: Sequence[ledger.Entry]) -> dict[str, str | None]:
    """Return alias → release that the ledger implies.

    The challenger is the newest release whose last verdict is a PASS, which nobody has rejected
    under that verdict, and which was neither promoted nor given up.
    """
    stack = ledger.live_stack(entries)
    waiting = (
        e.release_id
        for e in rollout.passed(entries)
        if approval.decided(entries, e.release_id, e.payload["verdict"]).word != "rejected"
        and ledger.find(entries, "promoted", e.release_id) is None
        and ledger.find(entries, "aborted", e.release_id) is None
    )
    return {
        "champion": stack[-1] if stack else None,
        "previous": stack[-2] if len(stack) > 1 else None,
        "challenger": next(waiting, None),
    }


@dataclass(frozen=True)
class AliasState:
    """Aliases (alias → version) and tags of a registered model, at one moment."""

    aliases: Mapping[str, str]
    tags: Mapping[str, str]


def read_aliases(api: MlflowClient, model: str) -> AliasState:
    """Read aliases and tags; both empty where the model does not exist."""
    from mlflow.exceptions import MlflowException

    try:
        registered = api.get_registered_model(model)
    except MlflowException as e:
        if e.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return AliasState({}, {})
    return AliasState({a: str(v) for a, v in registered.aliases.items()}, dict(registered.tags))


@dataclass(frozen=True)
class ManualMove:
    """A champion alias that a person moved."""

    version: str | None  # None: it was removed
    release: str | None  # of that version; None: of no release of ours
    after: str  # hash of the ledger row that the alias was last set for


def moved_by_hand(
    seen: AliasState, versions: Mapping[str, str], entries: Sequence[ledger.Entry]
) -> ManualMove | None:
    """Return the champion that a hand chose since the aliases were last set, or None.

    ``seen`` must have been read before ``entries``: then an alias that a promotion has just set is
    never older than what the ledger says.
    """
    after, live = _mark(entries), ledger.live(entries)
    version = seen.aliases.get("champion")
    wanted = None if live is None else versions.get(live)
    if seen.tags.get(SEEN_TAG) != after or version == wanted:
        return None
    release = next((r for r, v in versions.items() if v == version), None)
    return ManualMove(version, release, after)


def _mark(entries: Sequence[ledger.Entry]) -> str:
    move = ledger.last_live_row(entries)
    return move.hash if move else ledger.GENESIS


def reconcile(
    api: MlflowClient, model: str, entries: Sequence[ledger.Entry], have: AliasState
) -> list[str]:
    """Make the aliases equal what the ledger implies; returns what was repaired, in words.

    ``have``: as :func:`moved_by_hand` saw them. Read again here, a move between the two looks would
    be put back and nobody told of it; so it is left to the next look, which its own event starts.

    Raises :class:`RefusedError` when a release of the ledger has no version in MLflow.
    """
    if not entries:
        return []
    known = versions(api, model)
    repairs = []
    for alias, release in desired(entries).items():
        version = None if release is None else _version(known, model, release)
        if have.aliases.get(alias) == version:
            continue
        if version is None:
            api.delete_registered_model_alias(model, alias)
        else:
            api.set_registered_model_alias(model, alias, version)
        repairs.append(f"{alias}: {have.aliases.get(alias)} → {version}")
    if have.tags.get(SEEN_TAG) != _mark(entries):
        api.set_registered_model_tag(model, SEEN_TAG, _mark(entries))
    return repairs


def ensure_tags(api: MlflowClient, model: str, version: str, tags: Mapping[str, str]) -> list[str]:
    """Put right the tags of a version that differ; returns which, in words."""
    have = api.get_model_version(model, version).tags
    wrong = {key: value for key, value in tags.items() if have.get(key) != value}
    for key, value in wrong.items():
        api.set_model_version_tag(model, version, key, value)
    return [f"version {version}, {key}: {have.get(key)} → {v}" for key, v in wrong.items()]


def _version(known: Mapping[str, str], model: str, release: str) -> str:
    if release not in known:
        raise RefusedError(
            f"MLflow model {model} has no version of {release}; run csrm release reconcile"
        )
    return known[release]
