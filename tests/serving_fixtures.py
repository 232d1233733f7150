"""A service over made-up releases: tiny real towers, routing documents written by hand."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from starlette.testclient import TestClient

from csrm_tasks.blobs import open_blobs
from csrm_tasks.markets import MarketConfig
from csrm_tasks.release import routing, snapshots
from csrm_tasks.release.bundle.manifest import release_id
from csrm_tasks.release.snapshots import Snapshot
from csrm_tasks.serving.app import Service, create_app
from csrm_tasks.settings import Settings
from csrm_tasks.steps import run_step
from tests.release_fixtures import (
    DIM,
    MARKET,
    market,
    parts,
    publish,
    store_of,
    write_embeddings,
    write_terms,
)

TOKEN = "a-token-for-tests-only"
HEAD = {"Authorization": f"Bearer {TOKEN}"}


class ByHand(Service):
    """Looks at the documents when a test says so, and not by the clock."""

    def start(self, every: float = 0.0) -> None:
        """Look once."""
        self.follower.poll()


def release(settings: Settings, key: str, *, evidence: bool = False) -> tuple[str, str]:
    """Publish a release with vectors of its own; returns its id and the bundle's reference."""

    def vectors(folder: Path) -> None:
        write_embeddings(folder)
        if evidence:
            write_terms(folder)
        drawn = np.random.default_rng(len(key) + ord(key[0])).normal(size=(3, 2, DIM))
        length = np.linalg.norm(drawn, axis=2, keepdims=True)
        np.save(folder / "embeddings.npy", (drawn / length).astype(np.float32))

    part = parts(settings, key, stage=1, evidence=evidence)
    of = {"snapshot": part["snapshot"], "export": part["export"]}
    part["embeddings"] = publish(settings, "embed_products", f"{key}-own", vectors, inputs=of).ref
    bundle = store_of(settings).open(run_step("bundle", market(), part, {}, settings))
    return release_id(bundle), bundle.ref


def refreshed(settings: Settings, key: str, name: str, of: str, *, terms: bool = False) -> Snapshot:
    """Publish other vectors of three products for a release, made by the towers of a bundle."""
    manifest = json.loads(store_of(settings).open(of).file("release.json").read_text())

    def write(folder: Path) -> None:
        inner = folder / name
        inner.mkdir(exist_ok=True)
        write_embeddings(inner)
        if terms:
            write_terms(inner)
        vectors = np.load(inner / "embeddings.npy")
        np.save(inner / "embeddings.npy", vectors[[2, 1, 0]])
        text = json.dumps(snapshots.about(name, manifest["parts"]["export"]))
        (inner / snapshots.SNAPSHOT).write_text(text)

    ref = publish(settings, "refresh", key, write).ref
    return Snapshot(ref=ref, day="2026-01-02", products=3, encoded=1, coverage=1.0, stale=0.3)


def document(*releases: tuple[str, str], seq: int = 1, **changed: Any) -> dict[str, Any]:
    """Return a routing document: the first release is stable, the others are predecessors."""
    names = [name for name, _ in releases]
    return {
        "version": routing.VERSION, "market": MARKET, "stable": names[0], "next": None,
        "holdout": None, "shadow": False, "weights": {"stable": 100, "next": 0, "holdout": 0},
        "seed": "tiny:1", "predecessors": names[1:], "ledger_seq": seq, "bundles": dict(releases),
        "embeddings": {}, **changed,
    }  # fmt: skip


def route(settings: Settings, found: dict[str, Any] | bytes) -> None:
    """Publish a routing document as it is."""
    blobs = open_blobs(settings.routing)
    data = found if isinstance(found, bytes) else json.dumps(found).encode()
    key = routing.key(MARKET)
    assert blobs.replace(key, data, blobs.read(key))


@contextmanager
def serving(
    settings: Settings, config: MarketConfig | None = None
) -> Iterator[tuple[TestClient, Service]]:
    """Run the application over ``settings``; the client brings the token."""
    service = ByHand(settings, config or market(), "t")
    with TestClient(create_app(service, TOKEN), headers=HEAD) as client:
        yield client, service
