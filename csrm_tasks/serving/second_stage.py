"""The second stage at work: it re-ranks the top of a search as far as the request's time allows.

A request has the budget of the market's file, from its begin. What the second stage would take is
known from batches timed when the release was loaded: as many products as fit into what is left are
re-ranked, from the first on. If a run takes longer all the same (the machine is busy), the answer
goes out in the first stage's order and the run's result is dropped. So an answer is never later for
it than the budget, and never fails by it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from csrm_tasks import sections
from csrm_tasks.serving.loading import LoadedRelease
from csrm_tasks.serving.metrics import Metrics
from csrm_tasks.towers.serving.second_stage import SecondStage, reordered

log = logging.getLogger("csrm")

Outcome = Literal["all", "fewer", "none", "late", "failed"]
Floats = npt.NDArray[np.float32]


class Reranked(NamedTuple):
    """What came of it for one release, as answers, logs and metrics say it."""

    release: str
    reranked: int  # products that took part, from the first on
    outcome: Outcome

    def as_json(self) -> dict[str, Any]:
        """Return the three by name."""
        return self._asdict()


@dataclass(frozen=True)
class FirstStage:
    """What the first stage makes of a search; positions are those in the request."""

    query: str  # normalised
    order: list[int]  # shown, best first
    em: Mapping[int, float]  # probability of each product that it could read
    rows: Sequence[int | None]  # of the release's products
    titles: Mapping[int, str]  # what is read of a product that has no row


class SecondStages:
    """Re-ranks for all releases of a service, in threads of its own: queries don't wait for it."""

    def __init__(self, config: sections.SecondStage, threads: int, metrics: Metrics) -> None:
        self._enabled = config.enabled
        self._budget = config.budget_ms / 1e3
        self._pool = ThreadPoolExecutor(max(1, threads), "csrm-second")
        self._copies = ThreadPoolExecutor(1, "csrm-second-copies")  # must not starve who answers
        self._metrics = metrics

    def deadline(self) -> float:
        """Return until when an answer that begins now must be there, by ``time.perf_counter``."""
        return time.perf_counter() + self._budget

    def serves(self, release: LoadedRelease) -> bool:
        """Whether the release has a second stage, and the market wants it used."""
        return self._enabled and release.scorer.second is not None

    async def rerank(
        self, release: LoadedRelease, first: FirstStage, deadline: float, *, copy: bool = False
    ) -> tuple[list[int], Reranked]:
        """Return the order that a release of :meth:`serves` answers with, and what came of it.

        ``copy``: of a request that another release answers.
        """
        second = release.scorer.second
        assert second is not None, "only a release with a second stage is re-ranked"
        # A product that cannot be read keeps its place.
        places = [k for k, i in enumerate(first.order[: second.top]) if i in first.em]
        chosen = [first.order[k] for k in places]
        pool = self._copies if copy else self._pool
        left = deadline - time.perf_counter()
        run = partial(_run, release, second, first, chosen, deadline)
        scores, outcome = await self._scored(pool, run, len(chosen), left)
        order = [*first.order]
        for k, i in zip(places, reordered(chosen, scores), strict=True):
            order[k] = i
        found = Reranked(release.release, len(scores), outcome)
        self._metrics.second.labels(*found[::2]).inc()
        self._metrics.reranked.labels(found.release).inc(found.reranked)
        return order, found

    async def _scored(
        self, pool: Executor, run: Callable[[], list[float]], wanted: int, left: float
    ) -> tuple[Sequence[float], Outcome]:
        """Return the scores of as many of the first products as ``left`` seconds allow."""
        if left <= 0:
            return (), "none"
        try:
            running = asyncio.get_running_loop().run_in_executor(pool, run)
            scores = await asyncio.wait_for(running, left)
        except TimeoutError:
            return (), "late"
        except Exception as e:  # noqa: BLE001 it must not cost a shopper the answer; it is counted
            log.warning("serving: the second stage failed: %s", type(e).__name__)
            return (), "failed"
        if len(scores) == wanted:
            return scores, "all"
        return scores, "fewer" if len(scores) else "none"

    def close(self) -> None:
        """End the threads; what runs is let run."""
        self._pool.shutdown()
        self._copies.shutdown()


def _run(
    release: LoadedRelease, second: SecondStage, first: FirstStage, chosen: Sequence[int],
    deadline: float,
) -> list[float]:  # fmt: skip
    """Score what fits, looking at the clock only now: another request may have gone first."""
    titles = release.scorer.title_tokens(
        release.products, [first.rows[i] for i in chosen], [first.titles.get(i) for i in chosen]
    )
    asked = len(second.cross.query_reader([first.query]).ids_of(0))
    lengths = [len(ids) for ids in titles]
    assert release.costs is not None, "a release with a second stage is timed when it is loaded"
    fit = release.costs.affordable(asked, lengths, deadline - time.perf_counter())
    if not fit:
        return []
    em: Floats = np.array([first.em[i] for i in chosen[:fit]], np.float32)
    scores: list[float] = second.score(first.query, titles[:fit], em).tolist()
    return scores
