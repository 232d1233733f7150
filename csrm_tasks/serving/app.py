"""The service's routes; ``docs/SERVING.md`` has examples."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import to_json
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

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
from csrm_tasks.serving.requests import Asked, Events, Listing, Search, reason
from csrm_tasks.serving.second_stage import SecondStages
from csrm_tasks.serving.ubi import UbiLog
from csrm_tasks.settings import Settings

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

log = logging.getLogger("csrm")

POLL = 2.0  # seconds between looks at the documents
FLUSH = 30.0  # seconds between additions to the day's figures
REASON = 300  # characters of a reason: it never gives a long text back
FLAG: TypeAdapter[bool] = TypeAdapter(bool)

B = TypeVar("B", bound=BaseModel)


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
            lambda: datetime.now(UTC), market.schedule.timezone,
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


def create_app(service: Service, token: str) -> Starlette:
    """Return the ASGI application of a service.

    Starlette's, without FastAPI's layer over it: a body is read by pydantic from its bytes, once.
    """

    @asynccontextmanager
    async def life(_: Starlette) -> AsyncIterator[None]:
        service.start()
        yield
        await service.answers.settle()
        service.stop()

    routes = _routes(service)
    measured = Middleware(Measured, metrics=service.metrics, paths=[r.path for r in routes])
    return Starlette(
        routes=routes, lifespan=life, exception_handlers=_errors(),
        middleware=[Middleware(Guard, token=token), measured],
    )  # fmt: skip


class Measured:
    """ASGI middleware that counts and times what the routes answered."""

    def __init__(self, app: ASGIApp, metrics: Metrics, paths: Sequence[str]) -> None:
        self._app = app
        self._metrics = metrics
        self._names = {path: path for path in paths}  # a path that nobody serves is no label

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
            name = self._names.get(scope["path"], "other")
            self._metrics.seconds.labels(name).observe(time.perf_counter() - began)
            self._metrics.requests.labels(name, str(status)).inc()


def _routes(service: Service) -> list[Route]:
    answers = service.answers

    async def score(request: Request) -> Response:
        body = await _body(request, Listing)
        return _answer(await answers.score(body, explain=_flag(request, "explain")))

    async def rank(request: Request) -> Response:
        return _answer(await answers.rank(await _body(request, Search)))

    async def embed(request: Request) -> Response:
        return _answer(await answers.embed(await _body(request, Asked)))

    async def events(request: Request) -> Response:
        logged, refused = answers.events((await _body(request, Events)).events)
        return _partly(logged, refused)

    async def healthz(_: Request) -> Response:
        return _answer({"alive": True})

    async def readyz(request: Request) -> Response:
        health = service.health()
        if not request.scope[KNOWN]:  # alarms may name files and buckets
            health["alarms"] = sorted(health["alarms"])
        return _answer(health, 200 if health["ready"] else 503)

    async def metrics(_: Request) -> Response:
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4")

    posted, got = (score, rank, embed, events), (healthz, readyz, metrics)
    routes = [Route(f"/{each.__name__}", each, methods=["POST"]) for each in posted]
    routes += [Route(f"/{each.__name__}", each, methods=["GET"]) for each in got]
    for route in routes:
        route.methods = (route.methods or set()) - {"HEAD"}  # it comes with GET, but nobody asked
    return routes


async def _body(request: Request, kind: type[B]) -> B:
    """Read the request's JSON; raises :class:`DataError` naming the first field that is wrong."""
    try:
        return kind.model_validate_json(await request.body())
    except ValidationError as e:
        first = e.errors(include_input=False, include_url=False)[0]
        raise DataError(reason({**first, "loc": ("body", *first["loc"])})) from e


def _flag(request: Request, name: str) -> bool:
    """Return whether the address says ``name``; raises :class:`DataError` for what says neither."""
    if not request.scope["query_string"]:
        return False
    try:
        return FLAG.validate_python(request.query_params.get(name, "0"))
    except ValidationError as e:
        raise DataError(f"query.{name}: {reason(e.errors()[0])}") from e


def _errors() -> dict[Any, Any]:
    """Every answer that is no success says why in one line, and repeats no long text."""

    async def data(_: Request, error: Exception) -> Response:
        return _refusal(422, str(error))

    async def http(_: Request, error: HTTPException) -> Response:
        return _refusal(error.status_code, str(error.detail))

    async def early(_: Request, error: Exception) -> Response:
        return _refusal(503, "no release is loaded yet; see /readyz")

    async def gone(_: Request, error: Exception) -> Response:
        return _refusal(400, "the request's body did not come to its end")

    async def failed(_: Request, error: Exception) -> Response:
        return _refusal(500, "the answer could not be made; the service's log says why")

    return {
        DataError: data, HTTPException: http, NotReadyError: early, ClientDisconnect: gone,
        Exception: failed,
    }  # fmt: skip


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
