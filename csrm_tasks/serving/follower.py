"""Following the routing document: load beside what answers, warm, then switch by one assignment.

A request takes :attr:`Follower.state` once and keeps it, so a switch interrupts nobody. What
cannot be read, loaded or verified changes nothing: the last good state stays and an alarm tells.
Predecessors are loaded after the switch and kept, so that going back needs no loading.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, TypeVar

from csrm_tasks.blobs import BlobStore, open_blobs
from csrm_tasks.errors import ArtifactError, RefusedError
from csrm_tasks.release import assignment, routing, snapshots
from csrm_tasks.serving.alarms import Alarms, Kind
from csrm_tasks.serving.document import Document, parse
from csrm_tasks.serving.loading import LoadedRelease, Loader
from csrm_tasks.serving.metrics import Metrics
from csrm_tasks.settings import Settings

log = logging.getLogger("csrm")

Loaded = TypeVar("Loaded")

RETRY = 30.0  # seconds until what could not be loaded is tried again


@dataclass(frozen=True)
class State:
    """What answers now."""

    document: Document
    fields: Mapping[str, Any]  # the document, for the assignment
    releases: Mapping[str, LoadedRelease]

    def answers(self, session: str) -> tuple[str, LoadedRelease]:
        """Return the session's arm and the release that serves it (interleaved: the stable one)."""
        release = assignment.assign(session, self.fields)
        return assignment.arm(session, self.fields), self.releases[release]

    @property
    def shadow(self) -> LoadedRelease | None:
        """The release that scores copies of the traffic, if there is one."""
        name = self.document.next
        return self.releases[name] if self.document.shadow and name else None


class Follower:
    """Polls one market's documents; :meth:`poll` may also be called by hand."""

    def __init__(
        self, settings: Settings, market: str, loader: Loader, alarms: Alarms, metrics: Metrics
    ) -> None:
        self.state: State | None = None
        self._settings = settings
        self._market = market
        self._loader = loader
        self._alarms = alarms
        self._metrics = metrics
        self._failed: dict[str, float] = {}  # release or snapshot → when it may be tried again
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, every: float, also: Callable[[], None]) -> None:
        """Poll every so many seconds in a thread, and call ``also`` each time."""

        def run() -> None:
            while not self._stop.is_set():
                self.poll()
                also()
                self._stop.wait(every)

        self._thread = threading.Thread(target=run, name="csrm-follower", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End polling and wait for it."""
        self._stop.set()
        if self._thread:
            self._thread.join()

    def poll(self) -> None:
        """Look at both documents once; whatever goes wrong is an alarm, never an exception."""
        try:
            self._follow()
            self._refresh()
            self._show()
        except Exception as e:  # noqa: BLE001 a bucket out of reach, a disk that is full: try again later
            self._alarms.raise_("routing", e)

    @cached_property
    def _blobs(self) -> BlobStore:
        """Opened by the first poll that can, and kept: so is its connection to S3."""
        return open_blobs(self._settings.routing)

    def _follow(self) -> None:
        document = self._document()
        if document is None:
            return
        if self.state is None or self.state.document != document:
            loaded, lost = self._loaded(document.answering, document, "release")
            if lost:
                return
            kept = self.state.releases if self.state else {}
            known = {r: kept[r] for r in document.predecessors if r in kept}
            self.state = State(document, document.fields(), {**known, **loaded})
            log.warning("serving: %s follows row %d", self._market, document.ledger_seq)
        self._alarms.clear("release")
        before, lost = self._loaded(document.predecessors, document, "predecessor")
        self.state = replace(self.state, releases={**before, **self.state.releases})
        if not lost:
            self._alarms.clear("predecessor")

    def _document(self) -> Document | None:
        """Return the published document if it can be followed, else None and an alarm."""
        try:
            raw = self._blobs.read(routing.key(self._market))
            if raw is None:
                raise RefusedError(f"routing of {self._market}: none is published")
            document = parse(self._market, raw)
            if self.state and document.ledger_seq < self.state.document.ledger_seq:
                raise RefusedError(
                    f"routing of {self._market}: row {document.ledger_seq} is older than "
                    f"{self.state.document.ledger_seq}, which is followed"
                )
        except Exception as e:  # noqa: BLE001
            self._alarms.raise_("routing", e)
            return None
        self._alarms.clear("routing")
        return document

    def _loaded(
        self, names: list[str], document: Document, kind: Kind
    ) -> tuple[dict[str, LoadedRelease], bool]:
        """Return the named releases, loaded once each, and whether one is lost, with an alarm."""
        have = self.state.releases if self.state else {}
        releases = {
            name: have.get(name)
            or self._attempt(
                name, kind, partial(self._loader.release, name, document.bundles[name])
            )
            for name in names
        }
        good = {name: loaded for name, loaded in releases.items() if loaded is not None}
        return good, len(good) < len(releases)

    def _attempt(self, name: str, kind: Kind, load: Callable[[], Loaded]) -> Loaded | None:
        """Load something, not oftener than every so many seconds once it failed."""
        if time.monotonic() < self._failed.get(name, 0.0):
            return None
        try:
            loaded = load()
        except Exception as e:  # noqa: BLE001
            self._failed[name] = time.monotonic() + RETRY
            self._alarms.raise_(kind, ArtifactError(f"{name} cannot be loaded: {e}"))
            return None
        self._failed.pop(name, None)
        return loaded

    def _refresh(self) -> None:
        """Take newer vectors of the catalogue for the releases that have some."""
        if self.state is None:
            return
        try:
            document = snapshots.parse(self._market, self._blobs.read(snapshots.key(self._market)))
        except RefusedError as e:
            self._alarms.raise_("embeddings", e)
            return
        good = True
        for name, loaded in self.state.releases.items():
            snapshot = document.releases.get(name)
            if snapshot is None or snapshot.ref == loaded.embeddings:
                continue
            made = self._attempt(
                f"{name} with {snapshot.ref}", "embeddings",
                partial(self._loader.vectors, loaded, snapshot),
            )  # fmt: skip
            good = good and made is not None
            if made is not None:
                newer = replace(
                    loaded, products=made[0], embeddings=snapshot.ref, embedded_at=made[1]
                )
                self.state = replace(self.state, releases={**self.state.releases, name: newer})
        if good:
            self._alarms.clear("embeddings")

    def _show(self) -> None:
        """Bring the metrics of loaded releases up to date."""
        if self.state is None:
            return
        document = self.state.document
        for gauge in (self._metrics.role, self._metrics.products, self._metrics.embedded):
            gauge.clear()
        for name, loaded in self.state.releases.items():
            roles = [r for r in ("stable", "next", "holdout") if getattr(document, r) == name]
            for role in roles or ["predecessor"]:
                self._metrics.role.labels(name, role, loaded.scorer.backend).set(1)
            self._metrics.products.labels(name).set(len(loaded.products))
            self._metrics.embedded.labels(name).set(loaded.embedded_at)
