"""An installation with gated and registered releases whose training is made up."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy as sa
import yaml

from csrm_tasks.artifacts import Artifact
from csrm_tasks.blobs import LocalBlobs
from csrm_tasks.markets import MarketConfig
from csrm_tasks.release import ledger, promote, rollback, rollout, rollout_moves, routing, verdicts
from csrm_tasks.release import mlflow_aliases as registry
from csrm_tasks.release.bundle.manifest import release_id
from csrm_tasks.release.registration import version_tags
from csrm_tasks.settings import Settings
from csrm_tasks.store import open_store, writing
from csrm_tasks.store.models import LedgerEntry
from tests.release_fixtures import MARKET, market, publish

AUTO = market()
MODEL = AUTO.model_name
RUN = "0" * 32  # of no run: nothing is loaded from these versions


class Registry:
    """What MlflowClient does for us, in memory; two versions a page."""

    def __init__(self) -> None:
        self.versions: list[Any] = []
        self.aliases: dict[str, int] = {}
        self.tags: dict[str, str] = {}

    def create_registered_model(self, name: str) -> None:
        """Accept any model."""

    def create_model_version(
        self, name: str, source: str, run_id: str, tags: dict[str, str],
        model_id: str | None = None,
    ) -> None:  # fmt: skip
        self.versions.append(SimpleNamespace(version=len(self.versions) + 1, tags=tags))

    def search_model_versions(self, query: str, page_token: str | None = None) -> Any:
        start = int(page_token or 0)

        class Page(list[Any]):
            token = str(start + 2) if start + 2 < len(self.versions) else None

        return Page(self.versions[start : start + 2])

    def get_registered_model(self, name: str) -> Any:
        return SimpleNamespace(aliases=dict(self.aliases), tags=dict(self.tags))

    def set_registered_model_alias(self, name: str, alias: str, version: str) -> None:
        self.aliases[alias] = int(version)

    def set_registered_model_tag(self, name: str, key: str, value: str) -> None:
        self.tags[key] = value

    def delete_registered_model_alias(self, name: str, alias: str) -> None:
        del self.aliases[alias]


class World:
    """One installation with any number of gated and registered releases."""

    def __init__(self, settings: Settings, api: Any = None) -> None:
        self.settings = settings
        self.api = api or Registry()

    def at_the_command_line(self, config: MarketConfig, patch: pytest.MonkeyPatch) -> None:
        """Let ``csrm`` and the DAGs find this installation and this market's file."""
        folder = self.settings.home / "markets"
        folder.mkdir(parents=True, exist_ok=True)
        text = yaml.safe_dump(config.model_dump(mode="json", exclude_defaults=True))
        (folder / f"{MARKET}.yaml").write_text(text)
        patch.setenv("CSRM_HOME", str(self.settings.home))
        patch.setenv("CSRM_MARKETS", str(folder))

    def clear(self) -> None:
        """Forget every release; artifacts are addressed by content and may stay."""
        with writing(open_store(self.settings.db_url), MARKET) as connection:
            connection.execute(sa.delete(LedgerEntry))
        (Path(self.settings.routing) / f"{MARKET}.json").unlink(missing_ok=True)

    def release(
        self, key: str, outcome: str = "PASS", registered: bool = True, write: Any = None,
        **inputs: str,
    ) -> Any:  # fmt: skip
        """Publish a bundle (``write`` fills its folder) and its verdict against what is live."""
        bundle = publish(
            self.settings, "bundle", key, write or (lambda f: (f / "note").write_text(key)),
            inputs={"embeddings": f"{MARKET}/embed_products/{key}"} | inputs,
        )  # fmt: skip
        body = {
            "bundle_digest": bundle.digest, "champion": self.live(), "outcome": outcome,
            "reasons": ["because"],
        }  # fmt: skip
        sealed = verdicts.seal(body)
        gate = publish(
            self.settings, "gate", key,
            lambda f: (f / verdicts.FILE).write_text(json.dumps(sealed)),
            facts={"digest": sealed["digest"]},
        )  # fmt: skip
        if registered:
            self.register(bundle, sealed, gate.ref)
        return SimpleNamespace(bundle=bundle, gate=gate, id=release_id(bundle), verdict=sealed)

    def register(self, bundle: Artifact, sealed: dict[str, Any], gate: str = "") -> None:
        release = release_id(bundle)
        payload = {
            "bundle": bundle.ref, "digest": bundle.digest, "verdict": sealed["digest"],
            "outcome": sealed["outcome"], "gate": gate,
        }  # fmt: skip
        tags = version_tags(payload)
        registry.ensure_version(
            self.api, MODEL, release, source="s3://nowhere/made", run_id=RUN, tags=tags
        )
        ledger.append(
            self.settings, MARKET, "registered", release, actor="t", reason="", payload=payload
        )

    def promote(self, made: Any, config: MarketConfig = AUTO) -> ledger.Entry:
        return promote.promote(self.settings, config, made.bundle, made.gate, self.api)

    def start(self, made: Any, config: MarketConfig) -> ledger.Entry:
        return rollout_moves.start(self.settings, config, self.api, made.id)

    def opened(self) -> rollout.CurrentRollout | None:
        return rollout.current_rollout(ledger.verified(self.settings, MARKET))

    def judgement(self, outcome: str = "SUCCESS", day: int = 1) -> dict[str, Any]:
        """Return what judging said of ``day`` days of data after this step began."""
        state = self.opened()
        assert state is not None
        until = datetime.fromisoformat(state.windows[-1].since) + timedelta(days=day)
        return {
            "release": state.release, "step": rollout.step_name(state), "turn": state.turn,
            "day": until.date().isoformat(), "until": until.isoformat(), "outcome": outcome,
            "reasons": [outcome.lower()],
        }  # fmt: skip

    def settle(self, judgement: dict[str, Any], config: MarketConfig) -> str:
        return rollout_moves.apply_decision(
            self.settings, config, self.api, judgement, "tiny/look/1"
        )

    def doc(self) -> dict[str, Any]:
        found = routing.read(self.settings, MARKET)
        assert found is not None
        return found

    def roll_back(self, leaving: str | None = None) -> ledger.Entry:
        given = {"actor": "t", "reason": "drill", "leaving": leaving}
        return rollback.roll_back(self.settings, AUTO, self.api, **given)

    def live(self) -> str | None:
        return ledger.live(ledger.verified(self.settings, MARKET))

    def moves(self) -> list[tuple[str, str]]:
        rows = ledger.verified(self.settings, MARKET)
        return [(e.action, e.release_id) for e in rows if e.action in ledger.LIVE_ACTIONS]

    def refresh(self) -> list[str]:
        """Bring aliases and routing up to the ledger."""
        return promote.refresh_views(self.settings, AUTO, self.api)

    def aliases(self) -> dict[str, str]:
        """Return MLflow's alias → release id."""
        release = {version: r for r, version in registry.versions(self.api, MODEL).items()}
        known = self.api.get_registered_model(MODEL).aliases
        return {alias: release[str(version)] for alias, version in known.items()}

    def agrees(self) -> None:
        """Assert that aliases and routing say what the ledger says."""
        rows = ledger.verified(self.settings, MARKET)
        wanted = {a: r for a, r in registry.desired(rows).items() if r is not None}
        assert self.aliases() == wanted
        assert routing.read(self.settings, MARKET) == routing.document(MARKET, rows)


class Killed(BaseException):
    """The process died here."""


def kill_after(monkeypatch: pytest.MonkeyPatch, nth: int) -> Callable[[], int]:
    """Die after the nth durable write; returns how many there were."""
    done = 0

    def deadly(owner: Any, name: str) -> None:
        true = getattr(owner, name)

        def write(*args: Any, **given: Any) -> Any:
            nonlocal done
            result = true(*args, **given)
            done += 1
            if done == nth:
                raise Killed
            return result

        monkeypatch.setattr(owner, name, write)

    deadly(ledger, "append")
    deadly(Registry, "set_registered_model_alias")
    deadly(Registry, "delete_registered_model_alias")
    deadly(LocalBlobs, "replace")
    return lambda: done
