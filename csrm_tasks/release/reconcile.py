"""Repairing MLflow from the ledger, and what becomes of a ``champion`` alias moved by hand.

The ledger is the truth; versions, tags and aliases are a view of it. An alias that differs is
either behind (a promotion was killed before it was set) or was moved by a person in MLflow. The
model's tag :data:`registry.SEEN_TAG` tells which: it holds the ledger row that the aliases were
last set for. By the market's policy a hand's choice is adopted, if it stands what any other
promotion must stand (verdict, approval, steps), or put back; the ledger says which, and why.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from csrm_tasks import tracking
from csrm_tasks.artifacts import ArtifactStore
from csrm_tasks.errors import AwayError, CsrmError
from csrm_tasks.markets import MarketConfig
from csrm_tasks.release import away, denied, ledger, registration, rollback, rollout, routing
from csrm_tasks.release import mlflow_aliases as registry
from csrm_tasks.release.no_steps import end_without_steps
from csrm_tasks.release.promote import promote
from csrm_tasks.release.views import HAND, few_retries, follow
from csrm_tasks.settings import Settings

if TYPE_CHECKING:
    from mlflow import MlflowClient


@away.one_line
def reconcile(settings: Settings, config: MarketConfig, api: MlflowClient) -> list[str]:
    """Make routing and MLflow say what the ledger says; returns what was repaired, in words.

    Routing comes first. Raises :class:`AwayError` where MLflow does not answer, and
    :class:`DeniedError` where it does not let us in.
    """
    entries = ledger.verified(settings, config.market)
    state = rollout.current_rollout(entries)
    before = routing.published_row(settings, config.market)
    ended = end_without_steps(settings, config, api, keep=state.release if state else None)
    if ended is not None:
        entries = ledger.including(settings, entries, ended)
    document = routing.publish(settings, config.market, entries)
    repairs = []
    if document is not None and document["ledger_seq"] != before:
        repairs.append(f"routing: row {before} → {document['ledger_seq']}")
    try:
        with few_retries():
            return repairs + _in_mlflow(settings, config, api)
    except CsrmError:
        raise
    except Exception as e:  # whatever its client, its server or its database raise
        if denied.by(e) is not None:
            raise away.told_of(settings, config.market, away.MLFLOW, e) from e
        raise AwayError(
            f"{config.model_name} in MLflow could not be brought up ({away.kind(e)}); "
            f"{away.served(settings, config.market)}; run it again when MLflow answers"
        ) from e


def _in_mlflow(settings: Settings, config: MarketConfig, api: MlflowClient) -> list[str]:
    name = config.model_name
    seen = registry.read_aliases(api, name)  # before the ledger: a promoter writes there first
    entries = ledger.verified(settings, config.market)
    if not entries:
        return []
    repairs = _versions(settings, config, api, entries)
    why = "the market's policy is to put it back"
    moved = registry.moved_by_hand(seen, registry.versions(api, name), entries)
    if moved is not None and moved.release and config.release.alias_moved == "adopt":
        try:
            row = _adopt(settings, config, api, entries, moved.release)
            repairs.append(
                f"champion: {row.release_id} was chosen by hand and is adopted, row {row.seq}"
            )
        except CsrmError as e:
            why = str(e)
    return repairs + follow(settings, config, api, why)


def _versions(
    settings: Settings, config: MarketConfig, api: MlflowClient, entries: Sequence[ledger.Entry]
) -> list[str]:
    """Make versions that MLflow lost again, and put their tags right."""
    rows = {e.release_id: e for e in entries if e.action == "registered"}  # the newest of each
    known = registry.versions(api, config.model_name)
    repairs = []
    for release in dict.fromkeys(filter(None, registry.desired(entries).values())):
        if release in rows and release not in known:
            version = _again(settings, config, api, rows[release])
            repairs.append(f"version of {release}: none → {version}")
    for release, version in registry.versions(api, config.model_name).items():
        if release in rows:
            tags = registration.version_tags(rows[release].payload)
            repairs += registry.ensure_tags(api, config.model_name, version, tags)
    return repairs


def _again(settings: Settings, config: MarketConfig, api: MlflowClient, row: ledger.Entry) -> str:
    bundle = ArtifactStore(settings.artifacts, settings.cache).open(row.payload["bundle"])
    tags = registration.version_tags(row.payload)
    run_id = tracking.log_run(
        settings, config.market, bundle.ref, params={"release": row.release_id}, tags=tags
    )
    work = settings.work / bundle.ref / "model"
    return registration.ensure(api, config.model_name, run_id, bundle, tags, work)


def _adopt(
    settings: Settings,
    config: MarketConfig,
    api: MlflowClient,
    entries: list[ledger.Entry],
    release: str,
) -> ledger.Entry:
    stack = ledger.live_stack(entries)
    if len(stack) > 1 and release == stack[-2]:
        given = {"actor": HAND, "reason": "moved back by hand", "leaving": stack[-1]}
        return rollback.roll_back(settings, config, api, **given)
    made = ledger.registration(entries, release)
    store = ArtifactStore(settings.artifacts, settings.cache)
    bundle, gate = store.open(made["bundle"]), store.open(made["gate"])
    return promote(settings, config, bundle, gate, api, actor=HAND)
