"""The monthly rehearsal: the real rollback on a copy of the ledger, another routing document and
an in-memory copy of MLflow's aliases; then every release it went back to answers a query.

Nothing that shoppers or people look at is touched.
"""

from __future__ import annotations

import shutil
import time
import uuid
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from csrm_tasks.artifacts import ArtifactStore
from csrm_tasks.errors import RefusedError
from csrm_tasks.markets import MarketConfig
from csrm_tasks.release import ledger, rollback, rollout, routing
from csrm_tasks.release import mlflow_aliases as registry
from csrm_tasks.settings import Settings
from csrm_tasks.store import open_store, writing
from csrm_tasks.store.tables import LEDGER

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.store.entities import PagedList


class Aliases:
    """A copy of a registered model's versions, aliases and tags, with as much of MlflowClient as
    :mod:`.registry` uses.
    """

    def __init__(self, api: MlflowClient, model: str) -> None:
        """Copy what ``api`` knows of ``model``."""
        self._versions = [
            SimpleNamespace(version=v, tags={registry.RELEASE_TAG: r})
            for r, v in registry.versions(api, model).items()
        ]
        registered = api.get_registered_model(model)
        self._aliases, self._tags = dict(registered.aliases), dict(registered.tags)

    def search_model_versions(
        self, _query: str, page_token: str | None = None
    ) -> PagedList[SimpleNamespace]:
        """Return all versions as one page."""
        return type("Page", (list,), {"token": page_token})(self._versions)

    def get_registered_model(self, _name: str) -> SimpleNamespace:
        """Return aliases and tags."""
        return SimpleNamespace(aliases=dict(self._aliases), tags=dict(self._tags))

    def set_registered_model_alias(self, _name: str, alias: str, version: str) -> None:
        """Move an alias of the copy."""
        self._aliases[alias] = version

    def set_registered_model_tag(self, _name: str, key: str, value: str) -> None:
        """Tag the copy."""
        self._tags[key] = value

    def delete_registered_model_alias(self, _name: str, alias: str) -> None:
        """Remove an alias of the copy."""
        del self._aliases[alias]


def rehearse(
    settings: Settings, config: MarketConfig, api: MlflowClient, work: Path
) -> dict[str, Any]:
    """Roll back as often as predecessors must be kept; returns what was left, reached and how long
    it took. Raises :class:`RefusedError` when the way back does not end where it must.
    """
    shutil.rmtree(work / "drill", ignore_errors=True)
    entries = ledger.verified(settings, config.market)
    # Under a name of its own: a process that rehearses again still holds the last copy open.
    scratch = _copy(settings, config.market, entries, work / "drill" / uuid.uuid4().hex)
    copied = Aliases(api, config.model_name) if entries else None
    wanted = ledger.live_stack(entries)[-1 - routing.KEPT : -1][::-1]
    reached, seconds = [], []
    _finish_open(scratch, config, copied)
    for target in wanted:
        began = time.monotonic()
        leaving = ledger.live(ledger.verified(scratch, config.market))
        row = rollback.roll_back(
            scratch, config, copied, actor="csrm drill", reason="rehearsal", leaving=leaving
        )
        seconds.append(round(time.monotonic() - began, 3))
        doc = routing.read(scratch, config.market)
        if row.release_id != target or doc is None or doc["stable"] != target:
            raise RefusedError(f"the drill ended at {row.release_id} instead of {target}")
        _answers(settings, doc["bundles"][target])
        reached.append(target)
    shutil.rmtree(work / "drill", ignore_errors=True)
    return {"live": ledger.live(entries), "reached": reached, "seconds": seconds}


def _finish_open(scratch: Settings, config: MarketConfig, api: MlflowClient) -> None:
    """A rollout under way is what a rollback takes back first."""
    state = rollout.current_rollout(ledger.verified(scratch, config.market))
    if state is not None and not state.launched:
        rollback.roll_back(scratch, config, api, actor="csrm drill", reason="rehearsal")


def _copy(settings: Settings, market: str, entries: list[ledger.Entry], folder: Path) -> Settings:
    """Return settings whose ledger and routing are copies below ``folder``."""
    scratch = replace(
        settings, db_url=f"sqlite:///{folder / 'drill.db'}", routing=str(folder / "routing")
    )
    with writing(open_store(scratch.db_url), market) as connection:
        rows = [{c.name: getattr(e, c.name) for c in LEDGER.c} for e in entries]
        if rows:
            connection.execute(sa.insert(LEDGER), rows)
    routing.publish(scratch, market)
    return scratch


def _answers(settings: Settings, bundle: str) -> None:
    """Load a release as a server does and score one pair."""
    from csrm_tasks.release.bundle.scorer import ReleaseScorer

    artifact = ArtifactStore(settings.artifacts, settings.cache).open(bundle)
    scored = ReleaseScorer(artifact.path).score(["drill"], [None], ["drill"])
    if not 0 <= float(scored.em[0]) <= 1:
        raise RefusedError(f"{bundle} loads but answers {scored.em[0]}")
