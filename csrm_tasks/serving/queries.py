"""Query vectors of one release: remembered, and encoded in batches that form by themselves.

While one batch is being encoded, whatever else is asked waits and makes the next one: nothing is
delayed for the sake of a batch, and under load batches grow. A query that several requests ask for
at once is encoded once. Lives on one event loop; only the encoding itself runs in another thread.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor

import numpy as np
import numpy.typing as npt
from cachetools import LRUCache

from csrm_tasks.serving.metrics import Metrics

Floats = npt.NDArray[np.float32]
Encode = Callable[[list[str]], Floats]

CACHED = 50_000  # queries; 1 kB each at the paper's width
MOST = 64  # queries of one batch


class QueryEncoder:
    """Normalised query → vectors (2, dim)."""

    def __init__(self, encode: Encode, pool: Executor, metrics: Metrics) -> None:
        self._encode = encode
        self._pool = pool
        self._metrics = metrics
        self._cache: LRUCache[str, Floats] = LRUCache(CACHED)
        self._asked: dict[str, asyncio.Future[Floats]] = {}
        self._waiting: list[str] = []
        self._worker: asyncio.Task[None] | None = None

    def remembers(self, query: str) -> bool:
        """Whether the query's vectors are there already."""
        return query in self._cache

    async def vector(self, query: str) -> Floats:
        """Return the query's vectors; raises what the encoding raised."""
        known: Floats | None = self._cache.get(query)
        self._metrics.cache.labels("miss" if known is None else "hit").inc()
        if known is not None:
            return known
        future = self._asked.get(query)
        if future is None:
            future = self._asked[query] = asyncio.get_running_loop().create_future()
            self._waiting.append(query)
            if self._worker is None or self._worker.done():
                self._worker = asyncio.create_task(self._drain())
        return await asyncio.shield(future)  # who goes away takes nothing from the others

    async def _drain(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            batch, self._waiting = self._waiting[:MOST], self._waiting[MOST:]
            self._metrics.batch.observe(len(batch))
            try:
                vectors = await loop.run_in_executor(self._pool, self._encode, batch)
            except Exception as e:  # noqa: BLE001 each request fails for itself; the next batch goes on
                for query in batch:
                    _fail(self._asked.pop(query), e)
                continue
            for query, vector in zip(batch, vectors, strict=True):
                own = vector.copy()  # a view would keep its whole batch alive
                self._cache[query] = own
                self._asked.pop(query).set_result(own)


def _fail(future: asyncio.Future[Floats], error: Exception) -> None:
    future.set_exception(error)
    future.exception()  # retrieved: nobody may be waiting any more
