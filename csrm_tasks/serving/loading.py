"""Loading a release as the routing document names it, and the newest vectors of its catalogue.

Everything is checked before it can answer: the artifact's digests, the bundle's own, that the
bundle is the release it is called, and that vectors were made by this release's towers.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from cachetools import LRUCache

from csrm_tasks.artifacts import ArtifactStore
from csrm_tasks.errors import ArtifactError
from csrm_tasks.lexical.features import QueryTerms
from csrm_tasks.lexical.terms import ProductTerms
from csrm_tasks.release.bundle.manifest import release_id
from csrm_tasks.release.bundle.scorer import ProductVectors, ReleaseScorer, Scored
from csrm_tasks.release.snapshots import SNAPSHOT, Snapshot
from csrm_tasks.serving.metrics import Metrics
from csrm_tasks.serving.queries import QueryEncoder
from csrm_tasks.settings import Settings
from csrm_tasks.towers.serving.second_stage import Costs

Floats = npt.NDArray[np.float32]

HAN = "濕"  # the first query in Chinese makes the analyser's table of forms: not while one waits
WARM = ("a", "b c d", "e f g h i j k l")  # queries of several lengths: onnxruntime plans for each
READ = 10_000  # queries whose terms are remembered, some 2 kB each


class Read(NamedTuple):
    """What one query and n products are scored from."""

    query: Floats  # (2, dim)
    products: Floats  # (n, 2, dim)
    features: Floats | None  # (n, F); None where the towers have no lexical evidence


@dataclass(frozen=True)
class LoadedRelease:
    """A release that answers; immutable, so a request keeps what it began with."""

    release: str
    scorer: ReleaseScorer
    queries: QueryEncoder
    products: ProductVectors
    embeddings: str  # where the vectors are from
    embedded_at: float  # seconds since the epoch
    pool: Executor
    costs: Costs | None = None  # of the second stage, where there is one
    terms: LRUCache[str, QueryTerms] = field(default_factory=lambda: LRUCache(READ))  # by query

    @property
    def locale(self) -> str:
        """Locale that the release is for."""
        return str(self.scorer.manifest["locale"])

    async def score(
        self, query: str, rows: Sequence[int | None], titles: Sequence[str]
    ) -> tuple[Scored, Read]:
        """Score one query against products: by row, else the next of ``titles``; (len(rows),).

        With what it was scored from, for :meth:`ReleaseScorer.explain`.
        """
        read = await self._read(query, rows, titles)
        return self.scorer.score_vectors(*read), read

    async def _read(self, query: str, rows: Sequence[int | None], titles: Sequence[str]) -> Read:
        asked = self._asked(query)
        if not titles:  # every product is known, as nearly always: one look-up, one pass
            at = np.array(rows, np.int64)
            features = self.scorer.listing_features(asked, self.products, at, None)
            return Read(await self.queries.vector(query), self.products.take(at), features)
        vectors = np.empty((len(rows), 2, self.scorer.dim), np.float32)
        known = [i for i, row in enumerate(rows) if row is not None]
        lacking = [i for i, row in enumerate(rows) if row is None]
        vectors[known] = self.products.take([row for row in rows if row is not None])
        loop = asyncio.get_running_loop()
        vectors[lacking], terms = await loop.run_in_executor(self.pool, self._titles, titles)
        features = self.scorer.listing_features(asked, self.products, rows, terms)
        return Read(await self.queries.vector(query), vectors, features)

    def _titles(self, titles: Sequence[str]) -> tuple[Floats, ProductTerms | None]:
        return self.scorer.encode_titles(titles), self.scorer.title_terms(titles)

    def _asked(self, query: str) -> QueryTerms | None:
        known = self.terms.get(query)
        if known is None:
            known = self.scorer.asked(query)
            if known is not None:
                self.terms[query] = known
        return known


class Loader:
    """Opens releases and snapshots from an installation's artifacts."""

    def __init__(self, settings: Settings, pool: Executor, metrics: Metrics) -> None:
        self._settings = settings
        self._pool = pool
        self._metrics = metrics

    def release(self, release: str, bundle: str) -> LoadedRelease:
        """Load and warm a release; raises :class:`ArtifactError` for what must not answer."""
        artifact = self._store().open(bundle)
        if release_id(artifact) != release:
            raise ArtifactError(f"{bundle} is {release_id(artifact)}, not {release}")
        scorer = ReleaseScorer(artifact.path, self._settings.threads)
        for text in WARM:
            scorer.encode_queries([text])
        scorer.encode_titles(list(WARM))
        scorer.asked(HAN)
        return LoadedRelease(
            release, scorer, QueryEncoder(scorer.encode_queries, self._pool, self._metrics),
            scorer.products, bundle, _created(self._store(), bundle), self._pool,
            scorer.second.measure() if scorer.second else None,
        )  # fmt: skip

    def vectors(self, loaded: LoadedRelease, snapshot: Snapshot) -> tuple[ProductVectors, float]:
        """Open a refreshed snapshot for a release, and say when it was made.

        Raises :class:`ArtifactError` when its vectors are not this release's.
        """
        store = self._store()
        folder = store.open(snapshot.ref).path / loaded.release
        try:
            about: dict[str, Any] = json.loads((folder / SNAPSHOT).read_text(encoding="utf-8"))
        except FileNotFoundError as e:
            raise ArtifactError(f"{snapshot.ref} has no vectors for {loaded.release}") from e
        export = loaded.scorer.manifest["parts"]["export"]
        if about["export"] != export:
            raise ArtifactError(
                f"{snapshot.ref}: its vectors are of {about['export']['ref']}, but "
                f"{loaded.release} has {export['ref']}; run the refresh step again"
            )
        return loaded.scorer.snapshot(folder), _created(store, snapshot.ref)

    def _store(self) -> ArtifactStore:
        """A new one each time: digests are checked whenever something is loaded."""
        return ArtifactStore(self._settings.artifacts, self._settings.cache)


def _created(store: ArtifactStore, ref: str) -> float:
    manifest = store.manifest(ref) or {}
    return float(manifest.get("created_at", datetime.now(UTC).timestamp()))
