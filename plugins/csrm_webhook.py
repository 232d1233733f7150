"""Where MLflow's webhook comes in: ``POST {Airflow}/csrm-mlflow/aliases`` of the API server.

Nobody is logged in here: an event counts by its signature alone, and nothing but a repair from the
ledger can come of it. docs/OPERATIONS.md, "MLflow's webhook", says how it is set up.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.plugins_manager import AirflowPlugin

if TYPE_CHECKING:
    from fastapi import FastAPI, Request, Response

    from csrm_tasks.markets import MarketConfig

PREFIX = "/csrm-mlflow"
Channel = Callable[..., Awaitable[Any]]  # of an ASGI application

log = logging.getLogger("csrm")


async def webhook(scope: dict[str, Any], receive: Channel, send: Channel) -> None:
    """The application, made when it is first asked for."""
    await application()(scope, receive, send)


@cache
def application() -> FastAPI:
    """Return the application: one route."""
    from fastapi import FastAPI

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    app.add_route("/aliases", take, methods=["POST"])
    return app


async def take(request: Request) -> Response:
    """Answer an event: 200 done, 401 not MLflow's, 413 too long, 422 no event, 503 try again.

    MLflow sends it again (three times, within seconds) after a 503; then the night repairs it.
    """
    from fastapi.responses import PlainTextResponse

    from csrm_tasks.errors import ConfigError, DataError, DeniedError
    from csrm_tasks.release import alias_webhook

    body = b""
    async for part in request.stream():
        body += part
        if len(body) > alias_webhook.MAX_BYTES:
            return PlainTextResponse("too long", 413)
    try:
        secret = alias_webhook.read_secret()
        alias_webhook.require_signature(secret, request.headers, body, time.time())
    except (ConfigError, DeniedError) as e:
        log.warning("MLflow's webhook: %s", e)
        return PlainTextResponse("not signed", 401)
    try:
        told = await asyncio.to_thread(repair, body)
    except DataError as e:
        return PlainTextResponse(str(e), 422)
    except Exception as e:  # noqa: BLE001 whatever it is, MLflow asks again and the night repairs
        log.warning("MLflow's webhook: %s", _said(e))
        return PlainTextResponse("not repaired", 503)
    return PlainTextResponse(told)


def repair(body: bytes) -> str:
    """Reconcile each market that an event is about; returns their names."""
    from csrm_tasks.release import alias_webhook, manage
    from csrm_tasks.settings import load_settings

    found = alias_webhook.moved(body, list(_markets(load_settings().markets)))
    for market in found:
        for repaired in manage.reconcile(load_settings(market=market), market):
            log.warning("%s: MLflow told of a moved alias: %s", market, repaired)
    return " ".join(found)


def _markets(folder: Path) -> Iterator[MarketConfig]:
    """Yield the markets; one whose file is damaged holds up no other."""
    from csrm_tasks.errors import ConfigError
    from csrm_tasks.markets import load_market

    for path in sorted(folder.glob("*.yaml")):
        try:
            yield load_market(path.stem, folder)
        except ConfigError as e:
            log.warning("MLflow's webhook: %s", e)


def _said(error: Exception) -> str:
    from csrm_tasks.errors import CsrmError

    return str(error) if isinstance(error, CsrmError) else type(error).__name__


class CsrmWebhook(AirflowPlugin):
    """Registers the application."""

    name = "csrm_webhook"
    fastapi_apps: ClassVar[list[Any]] = [
        {"app": webhook, "url_prefix": PREFIX, "name": "CSRM: MLflow's webhook"}
    ]
