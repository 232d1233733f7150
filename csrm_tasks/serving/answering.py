"""Scoring and ranking one listing with the release that its session is assigned to."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

from csrm_tasks.errors import DataError
from csrm_tasks.ranking import best_first
from csrm_tasks.release.bundle.scorer import Scored
from csrm_tasks.serving import ubi
from csrm_tasks.serving.alarms import Alarms
from csrm_tasks.serving.figures import Figures
from csrm_tasks.serving.follower import Follower, State
from csrm_tasks.serving.lists import Ranking, interleave
from csrm_tasks.serving.loading import LoadedRelease
from csrm_tasks.serving.metrics import Metrics
from csrm_tasks.serving.requests import Asked, Item, Listing, Search, judged
from csrm_tasks.serving.second_stage import FirstStage, SecondStages
from csrm_tasks.text import normalise
from csrm_tasks.towers.serving.embed import RETRIEVAL

log = logging.getLogger("csrm")

SHADOWED = 32  # copies under way at most: a slow newcomer must not starve who answers
EVENT_AGE = timedelta(days=1)
CLOCKS = timedelta(minutes=5)  # that a shop's clock may be ahead of ours
INTERLEAVED, SHADOW = "interleaved", "shadow"  # arms beside those of the routing document


class NotReadyError(Exception):
    """No release is loaded yet."""


class ScoringService:
    """What the routes do; one object per service."""

    def __init__(
        self, follower: Follower, log: ubi.UbiLog, figures: Figures, alarms: Alarms,
        metrics: Metrics, second: SecondStages,
    ) -> None:  # fmt: skip
        self._follower = follower
        self._log = log
        self._figures = figures
        self._alarms = alarms
        self._metrics = metrics
        self._second = second
        self._shadows: set[asyncio.Task[None]] = set()

    async def score(self, listing: Listing, *, explain: bool = False) -> dict[str, Any]:
        """Score every product; raises :class:`DataError` naming those that are unknown.

        ``explain``: with what each part adds to the logits of both heads (A50). Of an interleaved
        session by the stable release, which the answer does not name: so what comes of it is logged
        as no release's.
        """
        state, arm, release = self._assigned(listing)
        ids = listing.ids()
        rows = release.products.rows(ids)
        unknown = [i for i, row in enumerate(rows) if row is None and _title(listing, i) is None]
        if unknown:
            named = ", ".join(repr(ids[i]) for i in unknown[:3])
            raise DataError(
                f"{len(unknown)} products are unknown to {release.release} ({named}); give titles"
            )
        with self._counted(state, release, arm, listing) as query:
            titles = _titles(release, listing, rows, range(len(rows)))
            scored, read = await release.score(query, rows, [*titles.values()])
        self._shadow(state, listing)
        columns = (column.tolist() for column in scored)
        products: list[dict[str, Any]] = [  # written out: a hundred times a request
            {"id": i, "em": em, "defect": p, "is_defect": bad, "rank_score": rank}
            for i, em, p, bad, rank in zip(ids, *columns, strict=True)
        ]
        if explain:
            parts = release.scorer.explain(*read)
            for product, table in zip(products, _tables(parts), strict=True):
                product["explain"] = table
        name = "" if arm == INTERLEAVED else release.release
        answer = {"release": name, "bucket": arm, "products": products}
        # Scores are the first stage's; /rank says what the second one has made of them.
        return answer | {"stage": "first"} if explain and self._second.serves(release) else answer

    async def embed(self, asked: Asked) -> dict[str, Any]:
        """Return the vector to look for a query's products by in an index of exported vectors.

        Those are the stable release's (``csrm export vectors``), and so is this.
        """
        state = self._follower.state
        if state is None:
            raise NotReadyError
        release = state.releases[state.document.stable]
        vectors = await release.queries.vector(normalise(asked.query))  # (2, dim)
        return {"release": release.release, "vector": vectors[RETRIEVAL].tolist()}

    async def rank(self, search: Search) -> dict[str, Any]:
        """Leave out defects, put exact products first by their probability, keep the rest's order.

        A release's second stage then re-ranks the first of them, as far as time allows; the answer
        says how many.
        A product that the release does not know, and that has no title, keeps its place among the
        rest: a search must not fail, nor a product vanish, because it is new.
        """
        deadline = self._second.deadline()
        state, arm, release = self._assigned(search)
        if arm == INTERLEAVED:
            ranking = await self._interleaved(state, release, search, deadline)
        else:
            ranking = await self._ranking(state, release, arm, search, deadline)
        self._metrics.unknown.inc(len(ranking.unknown))
        self._shadow(state, search)
        ids, query_id = search.ids(), uuid.uuid4().hex
        name = "" if arm == INTERLEAVED else release.release
        ranked = [ids[i] for i in ranking.order]
        who = {
            "session_id": search.session_id, "client_id": search.client_id, "bucket": arm,
            "release": name,
        }  # fmt: skip
        at = ubi.stamp(datetime.now(UTC))
        reranked = [one.as_json() for one in ranking.reranked]
        more = {"second_stage": reranked} if reranked else {}
        self._write(
            "ubi_queries", [ubi.query_record(query_id, search.query, ranked, who, at, more)]
        )
        answer = {
            "query_id": query_id, "release": name, "bucket": arm, "products": ranked,
            "defects": [ids[i] for i in ranking.defects],
            "unknown": [ids[i] for i in ranking.unknown], **more,
        }  # fmt: skip
        return answer if ranking.releases is None else answer | {"releases": ranking.releases}

    async def _ranking(
        self, state: State, release: LoadedRelease, arm: str, search: Search, deadline: float
    ) -> Ranking:
        """Rank a search by one release: by its first stage, then by its second, if it has one."""
        rows, known = _readable(release, search)
        with self._counted(state, release, arm, search) as query:
            titles = _titles(release, search, rows, known)
            asked = [rows[i] for i in known]
            scored, _ = await release.score(query, asked, [*titles.values()])
            order, defects = _order(scored, known, len(rows), release.scorer.em_threshold)
            found = []
            if self._second.serves(release):
                em = dict(zip(known, scored.em.tolist(), strict=True))
                first = FirstStage(query, order, em, rows, titles)
                order, one = await self._second.rerank(release, first, deadline, copy=arm == SHADOW)
                found.append(one)
        unknown = sorted({*range(len(rows))} - {*known})
        return Ranking(order, defects, unknown, reranked=tuple(found))

    async def _interleaved(
        self, state: State, stable: LoadedRelease, search: Search, deadline: float
    ) -> Ranking:
        """Rank a search by both releases, in one list (A57); by the stable one where the other
        fails, which is counted: it must not cost a shopper the answer.
        """
        both = [stable, state.releases[str(state.document.next)]]
        found = await asyncio.gather(
            *(self._ranking(state, release, INTERLEAVED, search, deadline) for release in both),
            return_exceptions=True,
        )
        ours, theirs = found
        if isinstance(ours, BaseException):
            raise ours
        if isinstance(theirs, BaseException):
            log.warning("serving: %s failed: %s", both[1].release, type(theirs).__name__)
            theirs = ours  # one list twice: nobody has a credit
        return interleave(ours, theirs, [r.release for r in both], state.document.seed, search)

    def events(self, sent: Sequence[Any]) -> tuple[int, dict[int, str]]:
        """Log what shoppers did; returns how many were good, and why the others are not, by index.

        A bad one costs no other: who sent it would send all of them again, or none.
        """
        now = datetime.now(UTC)
        good, refused = judged(sent)
        for index, event in good.items():
            if not now - EVENT_AGE <= (event.timestamp or now) <= now + CLOCKS:
                refused[index] = "timestamp: is not within a day of now; mend the clock"
        records = [
            ubi.event_record(
                e.query_id, e.action_name, e.object_id, e.position,
                {name: getattr(e, name) for name in ("session_id", "client_id", "bucket",
                                                     "release")},
                ubi.stamp(e.timestamp or now),
            )
            for index, e in good.items() if index not in refused
        ]  # fmt: skip
        if records:
            self._write("ubi_events", records)
        return len(records), dict(sorted(refused.items()))

    def _assigned(self, listing: Listing) -> tuple[State, str, LoadedRelease]:
        state = self._follower.state
        if state is None:
            raise NotReadyError
        return state, *state.answers(listing.session_id)

    @contextmanager
    def _counted(
        self, state: State, release: LoadedRelease, arm: str, listing: Listing
    ) -> Iterator[str]:
        """Time what a release does of a request, and count how that went.

        Yields the normalised query.
        """
        began, failed = time.perf_counter(), True
        query = normalise(listing.query)
        remembered = release.queries.remembers(query)
        try:
            yield query
            failed = False
        finally:
            seconds = time.perf_counter() - began
            # Without a session a request is always the stable release's, except that a release in
            # shadow gets a copy of every one.
            drawn = state.document.shadow or bool(listing.session_id)
            self._figures.note(
                datetime.now(UTC), release.release, seconds, failed=failed,
                generation=state.document.ledger_seq if drawn else None, remembered=remembered,
            )  # fmt: skip
            outcome = "failed" if failed else "answered"
            self._metrics.answers.labels(release.release, arm, outcome).inc()

    def _shadow(self, state: State, listing: Listing) -> None:
        """Let a release in shadow score a copy, after the answer; its result is only counted."""
        release = state.shadow
        if release is None:
            return
        if len(self._shadows) >= SHADOWED:
            self._metrics.dropped.inc()
            return
        task = asyncio.create_task(self._copy(state, release, listing))
        self._shadows.add(task)
        task.add_done_callback(self._shadows.discard)

    async def settle(self) -> None:
        """Wait for the copies that are under way."""
        await asyncio.gather(*self._shadows)

    async def _copy(self, state: State, release: LoadedRelease, listing: Listing) -> None:
        try:
            if isinstance(listing, Search):
                await self._ranking(state, release, SHADOW, listing, self._second.deadline())
                return
            rows, known = _readable(release, listing)
            with self._counted(state, release, SHADOW, listing) as query:
                titles = _titles(release, listing, rows, known)
                await release.score(query, [rows[i] for i in known], [*titles.values()])
        except Exception as e:  # noqa: BLE001 it is counted; who asked was answered by another release
            log.warning("serving: %s failed in shadow: %s", release.release, type(e).__name__)

    def _write(self, kind: ubi.Kind, records: list[Any]) -> None:
        """Log, or raise an alarm: a full disk must not stop the shop's search."""
        try:
            self._log.write(kind, records)
        except OSError as e:
            self._alarms.raise_("ubi", e)
            return
        self._alarms.clear("ubi")
        self._metrics.logged.labels(kind).inc(len(records))


def _tables(parts: Mapping[str, Any]) -> list[dict[str, dict[str, float]]]:
    """Turn (n, 2) of each part into a table for each of the n products."""
    rows = [[(name, *pair) for pair in values.tolist()] for name, values in parts.items()]
    return [
        {name: {"em": em, "defect": defect} for name, em, defect in table}
        for table in zip(*rows, strict=True)
    ]


def _readable(release: LoadedRelease, listing: Listing) -> tuple[list[int | None], list[int]]:
    """Return each product's row of the release, and which have one or bring a title."""
    rows = release.products.rows(listing.ids())
    known = [i for i, row in enumerate(rows) if row is not None or _title(listing, i) is not None]
    return rows, known


def _titles(
    release: LoadedRelease, listing: Listing, rows: Sequence[int | None], chosen: Sequence[int]
) -> dict[int, str]:
    """Return what is read of those ``chosen`` products that the release has no row of."""
    lacking = ((i, listing.products[i]) for i in chosen if rows[i] is None)
    return {
        i: release.scorer.product_text(p.title, p.brand, p.category)
        for i, p in lacking
        if isinstance(p, Item)
    }


def _title(listing: Listing, i: int) -> str | None:
    product = listing.products[i]
    return None if isinstance(product, str) else product.title


def _order(
    scored: Scored, known: Sequence[int], size: int, threshold: float
) -> tuple[list[int], list[int]]:
    """Return positions in ranked order, and those left out as defects."""
    rank_score, defect = scored.rank_score.tolist(), scored.is_defect.tolist()
    out = {i for i, bad in zip(known, defect, strict=True) if bad}
    exact: list[float | None] = [None] * size  # None: keeps its place among the rest
    for i, p in zip(known, rank_score, strict=True):
        if p >= threshold and i not in out:
            exact[i] = p
    return [i for i in best_first(exact).tolist() if i not in out], sorted(out)
