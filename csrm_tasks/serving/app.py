"""The service's routes; ``docs/SERVING.md`` has examples."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic_core import to_json
from starlette.exceptions import HTTPException

from csrm_tasks.blobs import open_blobs
from csrm_tasks.errors import DataError
from csrm_tasks.markets import MarketConfig
from csrm_tasks.serving.alarms import Alarms
from csrm_tasks.serving.answering import NotReadyError, ScoringService
from csrm_tasks.serving.figures import Figures
from csrm_tasks.serving.follower import Follower
from csrm_tasks.serving.guard import KNOWN, Guard
from csrm_tasks.serving.loading import Loader
from csrm_tasks.serving.metrics import Metrics
from csrm_tasks.serving.requests import Events, Listing, Search, reason
from csrm_tasks.serving.second_stage import SecondStages
from csrm_tasks.serving.ubi import UbiLog
from csrm_tasks.settings import Settings

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

log = logging.getLogger("csrm")

POLL = 2.0  # seconds between looks at the documents
FLUSH = 30.0  # seconds between additions to the day's figures
REASON = 300  # characters of a reason: it never gives a long text back


class Service:
    """The parts of one running service."""

    def __init__(self, settings: Settings, market: MarketConfig, instance: str) -> None:
        self.metrics = Metrics()
        self.alarms = Alarms(self.metrics)
        self.pool = ThreadPoolExecutor(max(1, settings.threads), "csrm-encode")
        loader = Loader(settings, self.pool, self.metrics)
        self.follower = Follower(settings, market.market, loader, self.alarms, self.metrics)
        self.ubi = UbiLog(
            settings.landing, market.market, market.target_locale, instance,
            lambda: datetime.now(UTC),
        )  # fmt: skip
        self.figures = Figures(market.market)
        self.second = SecondStages(market.second_stage, settings.threads, self.metrics)
        self.answers = ScoringService(
            self.follower, self.ubi, self.figures, self.alarms, self.metrics, self.second
        )
        self._routing = settings.routing
        self._flushed = time.monotonic()

    def tend(self, *, flush: bool = False) -> None:
        """Publish past days' logs and, from time to time, the day's figures."""
        try:
            self.ubi.rotate()
        except OSError as e:
            self.alarms.raise_("ubi", e)
        if not flush and time.monotonic() - self._flushed < FLUSH:
            return
        self._flushed = time.monotonic()
        try:
            self.figures.flush(open_blobs(self._routing))
            self.alarms.clear("figures")
        except Exception as e:  # noqa: BLE001
            self.alarms.raise_("figures", e)

    def start(self, every: float = POLL) -> None:
        """Begin to follow the documents."""
        self.follower.start(every, self.tend)

    def stop(self) -> None:
        """End in order: what was answered is in the logs before anything that may take long."""
        try:
            self.ubi.close()
        except OSError as e:
            self.alarms.raise_("ubi", e)
        self.tend(flush=True)
        self.follower.stop()  # a release that is being loaded is loaded first
        self.pool.shutdown()
        self.second.close()

    def health(self) -> dict[str, Any]:
        """Return what answers now, and which alarms are on."""
        state = self.follower.state
        health: dict[str, Any] = {"ready": state is not None, "alarms": self.alarms.texts()}
        if state is not None:
            document = state.document
            health |= {name: getattr(document, name) for name in ("stable", "next", "holdout")}
            health |= {"ledger_seq": document.ledger_seq, "loaded": sorted(state.releases)}
        return health


def create_app(service: Service, token: str) -> FastAPI:
    """Return the ASGI application of a service."""

    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        service.start()
        yield
        await service.answers.settle()
        service.stop()

    app = FastAPI(title="CSRM", lifespan=life, docs_url=None, redoc_url=None, openapi_url=None)
    _routes(app, service)
    _errors(app)

    app.add_middleware(Measured, metrics=service.metrics)
    app.add_middleware(Guard, token=token)
    return app


class Measured:
    """ASGI middleware that counts and times what the routes answered."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on and note its status."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.perf_counter(), 500

        async def noted(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            await self._app(scope, receive, noted)
        finally:
            route = scope.get("route")  # a path that nobody serves is no label
            name = route.path if route is not None else "other"
            self._metrics.seconds.labels(name).observe(time.perf_counter() - began)
            self._metrics.requests.labels(name, str(status)).inc()


def _routes(app: FastAPI, service: Service) -> None:
    answers = service.answers

    @app.post("/score")
    async def score(body: Listing, explain: bool = False) -> Response:
        return _answer(await answers.score(body, explain=explain))

    @app.post("/rank")
    async def rank(body: Search) -> Response:
        return _answer(await answers.rank(body))

    @app.post("/events")
    async def events(body: Events) -> Response:
        logged, refused = answers.events(body.events)
        return _partly(logged, refused)

    @app.get("/healthz")
    async def healthz() -> Response:
        return _answer({"alive": True})

    @app.get("/readyz")
    async def readyz(request: Request) -> Response:
        health = service.health()
        if not request.scope[KNOWN]:  # alarms may name files and buckets
            health["alarms"] = sorted(health["alarms"])
        return _answer(health, 200 if health["ready"] else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4")


def _errors(app: FastAPI) -> None:
    """Every answer that is no success says why in one line, and repeats no long text."""

    async def invalid(_: Request, error: RequestValidationError) -> Response:
        return _refusal(422, reason(error.errors()[0]))

    async def data(_: Request, error: Exception) -> Response:
        return _refusal(422, str(error))

    async def http(_: Request, error: HTTPException) -> Response:
        return _refusal(error.status_code, str(error.detail))

    async def early(_: Request, error: Exception) -> Response:
        return _refusal(503, "no release is loaded yet; see /readyz")

    async def failed(_: Request, error: Exception) -> Response:
        return _refusal(500, "the answer could not be made; the service's log says why")

    # Starlette's types want every handler to take any exception, whatever it is registered for.
    app.add_exception_handler(RequestValidationError, invalid)  # type: ignore[arg-type]
    app.add_exception_handler(DataError, data)
    app.add_exception_handler(HTTPException, http)  # type: ignore[arg-type]
    app.add_exception_handler(NotReadyError, early)
    app.add_exception_handler(Exception, failed)


def _partly(logged: int, refused: dict[int, str]) -> Response:
    """Return 200 when all was good, 207 when some was, 422 when nothing was."""
    body: dict[str, Any] = {"logged": logged}
    if refused:
        body["refused"] = [{"index": i, "detail": _short(why)} for i, why in refused.items()]
    if logged or not refused:
        return _answer(body, 207 if refused else 200)
    index, why = next(iter(refused.items()))
    return _answer(body | {"error": _short(f"events.{index}.{why}")}, 422)


def _short(why: str) -> str:
    return why if len(why) <= REASON else f"{why[:REASON]}…"


def _answer(value: object, status: int = 200) -> Response:
    return Response(to_json(value), status_code=status, media_type="application/json")


def _refusal(status: int, why: str) -> Response:
    return _answer({"error": _short(why)}, status)
