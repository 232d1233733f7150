"""Live releases whose catalogue's vectors a test chooses."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import uvicorn

from csrm_tasks.cli.main import main
from csrm_tasks.release import snapshots
from csrm_tasks.serving.app import Service, create_app
from csrm_tasks.settings import Settings
from tests.ports import reserve_port
from tests.release_fixtures import DIM, MARKET, market, publish, store_of
from tests.serving_fixtures import TOKEN, ByHand

Vectors = Mapping[str, np.ndarray[Any, Any]]  # (2, DIM) by product


def drawn(*products: str, seed: int = 0) -> dict[str, np.ndarray[Any, Any]]:
    """Return vectors of length 1, other ones for each product and seed."""
    rng = np.random.default_rng(seed)
    made = rng.normal(size=(len(products), 2, DIM))
    made /= np.linalg.norm(made, axis=2, keepdims=True)
    return dict(zip(products, made.astype(np.float32), strict=True))


def refresh(settings: Settings, key: str, live: tuple[str, str], vectors: Vectors) -> str:
    """Publish vectors of a release's catalogue, and let servers take them; returns their artifact.

    ``live`` is the release and its bundle.
    """
    name, bundle = live
    manifest = json.loads(store_of(settings).open(bundle).file("release.json").read_text())

    def write(folder: Path) -> None:
        inner = folder / name
        inner.mkdir(parents=True)
        np.save(inner / "embeddings.npy", np.stack(list(vectors.values())))
        pl.DataFrame({"product_id": list(vectors)}).write_parquet(inner / "product_ids.parquet")
        about = snapshots.about(name, manifest["parts"]["export"])
        (inner / snapshots.SNAPSHOT).write_text(json.dumps(about))

    ref = publish(settings, "refresh", key, write).ref
    figures = {"products": len(vectors), "encoded": 1, "coverage": 1.0, "stale": 0.0}
    made = snapshots.Snapshot(ref=ref, day="2026-01-02", **figures)
    others = list(snapshots.read(settings, MARKET).releases)
    snapshots.publish(settings, MARKET, {name: made}, others)
    return ref


def run(capsys: Any, *args: object, code: int = 0) -> str:
    """Run ``csrm export``; returns what it printed, or its error."""
    capsys.readouterr()
    assert main(("export", args[0], "--market", MARKET, *map(str, args[1:]))) == code, (  # type: ignore[arg-type]
        capsys.readouterr()
    )
    out, err = capsys.readouterr()
    assert not code or err.count("\n") == 1
    return err if code else out


@contextmanager
def scoring(settings: Settings) -> Iterator[tuple[str, Service]]:
    """Run the scoring service on a real socket; yields its address."""
    service, port = ByHand(settings, market(), "t"), reserve_port()
    config = uvicorn.Config(
        create_app(service, TOKEN), host="127.0.0.1", port=port, log_level="warning"
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        yield f"http://127.0.0.1:{port}", service
    finally:
        server.should_exit = True
        thread.join()
