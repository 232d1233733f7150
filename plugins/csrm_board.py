"""The release board within Airflow: what is served, what may be next, and the decisions on it.

Airflow guards no route of a plugin's application: a guard in front of all of them, also of what
does not exist, asks who it is and what they may (``csrm_board_access.py``). The routes are those of
``csrm_board_pages.py``. docs/OPERATIONS.md, "Release board", says who needs which permission.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.plugins_manager import AirflowPlugin
from csrm_board_access import PREFIX, ROOT

if TYPE_CHECKING:
    from fastapi import FastAPI

Channel = Callable[..., Awaitable[Any]]  # of an ASGI application


async def board(scope: dict[str, Any], receive: Channel, send: Channel) -> None:
    """The application, made when it is first asked for."""
    app = await asyncio.to_thread(application)
    await app(scope, receive, send)


@cache
def application() -> FastAPI:
    """Return the application; :func:`csrm_board_pages.guard` stands before all of its routes."""
    import csrm_board_pages as pages
    from fastapi import FastAPI

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    # Pages, not an API: routes of Starlette's kind, which answer nothing but what they are given
    app.add_route("/", pages.index, methods=["GET"])
    app.add_route("/static/board.css", pages.style, methods=["GET"])
    app.add_route("/markets/{market}", pages.show, methods=["GET"])
    app.add_route("/markets/{market}/reports/{release}", pages.report, methods=["GET"])
    app.add_route("/markets/{market}/{action}", pages.decide, methods=["POST"])
    app.middleware("http")(pages.guard)
    return app


class CsrmBoard(AirflowPlugin):
    """Registers the application, and its page in the navigation: framed, and by itself."""

    name = "csrm_board"
    fastapi_apps: ClassVar[list[Any]] = [
        {"app": board, "url_prefix": PREFIX, "name": "CSRM release board"}
    ]
    # Airflow's frame lets no link open a window: MLflow opens from the board in its own tab only
    external_views: ClassVar[list[Any]] = [
        {"name": "Release board", "href": f"{ROOT}/", "destination": "nav",
         "url_route": "release-board"},
        {"name": "Release board (own tab)", "href": f"{ROOT}/", "destination": "nav"},
    ]  # fmt: skip
