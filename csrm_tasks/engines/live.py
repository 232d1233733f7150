"""The vectors that the live release answers with, and those of an earlier snapshot of its towers.

What is live is what servers follow: the routing document's stable release, and the snapshot that
the embeddings document names for it (A35), else the vectors in its bundle.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from csrm_tasks.artifacts import Artifact, ArtifactStore
from csrm_tasks.errors import ArtifactError, RefusedError
from csrm_tasks.release import routing, snapshots
from csrm_tasks.release.bundle.manifest import MANIFEST, TOWERS
from csrm_tasks.settings import Settings
from csrm_tasks.towers.serving.embed import Floats, open_vectors
from csrm_tasks.towers.serving.runtime import read_about


@dataclass(frozen=True)
class Catalogue:
    """Product vectors of one snapshot, mapped from disk."""

    ref: str
    ids: pl.Series  # (N,)
    vectors: Floats  # (N, 2, dim)


@dataclass(frozen=True)
class Live:
    """The live release, which towers it has, and its newest vectors."""

    release: str
    export: Mapping[str, str]  # reference and digest of its towers
    dim: int  # of one head's vector
    now: Catalogue


def open_live(settings: Settings, market: str, release: str | None = None) -> Live:
    """Open the live release's vectors; ``release``: which one it has to be.

    Raises :class:`RefusedError` where nothing is live, or another release is, and
    :class:`ArtifactError` for vectors that are not this release's.
    """
    document = routing.read(settings, market)
    if document is None:
        raise RefusedError(f"no release of {market} is live: promote one first")
    live = str(document["stable"])
    if release not in (None, live):
        raise RefusedError(
            f"--release: {release} is not live in {market}, {live} is; say that one, or promote "
            "the other first"
        )
    store = ArtifactStore(settings.artifacts, settings.cache)
    bundle = store.open(document["bundles"][live])
    export = _export_of(bundle.path / MANIFEST)
    dim = int(read_about(bundle.path / TOWERS)["dim"])
    named = snapshots.read(settings, market).releases.get(live)
    ref = bundle.ref if named is None else named.ref
    found = _catalogue(bundle if named is None else store.open(ref), export, dim)
    if found is None:
        raise ArtifactError(
            f"{ref} has no vectors of {live}'s towers ({export['ref']}); run the refresh step again"
        )
    return Live(live, export, dim, found)


def open_before(settings: Settings, market: str, live: Live, ref: str) -> Catalogue:
    """Open an earlier snapshot of the live release's towers.

    Raises :class:`RefusedError` for one that is gone, or of other towers: an index has the vectors
    of one pair of towers, or distances in it mean nothing.
    """
    store = ArtifactStore(settings.artifacts, settings.cache)
    whole = "export without --since into a new index, and switch to that"
    if not ref.startswith(f"{market}/") or store.manifest(ref) is None:
        raise RefusedError(f"--since: there is no snapshot {ref} of {market} (any more); {whole}")
    found = _catalogue(store.open(ref), live.export, live.dim)
    if found is None:
        raise RefusedError(
            f"--since: {ref} has no vectors of {live.release}'s towers ({live.export['ref']}); "
            f"{whole}"
        )
    return found


def _catalogue(artifact: Artifact, export: Mapping[str, str], dim: int) -> Catalogue | None:
    """Return the vectors in a bundle or a refresh that these towers made; None: there are none."""
    for folder, about in _folders(artifact.path):
        if _export_of(about)["digest"] == export["digest"]:
            vectors, ids = open_vectors(folder, dim)
            return Catalogue(artifact.ref, ids, vectors)
    return None


def _folders(path: Path) -> Iterator[tuple[Path, Path]]:
    """Yield folders with vectors, and the file in each that says which towers made them."""
    if (path / MANIFEST).exists():
        yield path, path / MANIFEST
    for about in sorted(path.glob(f"*/{snapshots.SNAPSHOT}")):
        yield about.parent, about


def _export_of(path: Path) -> dict[str, str]:
    about = json.loads(path.read_text(encoding="utf-8"))
    export: dict[str, str] = about["parts"]["export"] if "parts" in about else about["export"]
    return export
