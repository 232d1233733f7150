"""The release board within Airflow: what is served, what may be next, and the decisions on it.

Wiring only: :mod:`csrm_tasks.board` reads, draws and acts. Airflow imports plugin files into each
of its processes, so everything else is imported when the first request comes. Airflow guards no
route of a plugin's application: a middleware in front of all of them (also of what does not exist)
asks Airflow's own auth manager who it is and what they may.

401: nobody is logged in. 403: without permission, or a form that another site may have sent. Read
needs GET on ``csrm_rollout__{market}``, a decision POST on its runs (of ``csrm_rollback__{market}``
for the way back); approve and reject also a name in ``rollout.approvers``, where there are some.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, Literal
from urllib.parse import parse_qs, quote, urlsplit

from airflow.configuration import conf
from airflow.plugins_manager import AirflowPlugin

if TYPE_CHECKING:
    from airflow.api_fastapi.auth.managers.models.base_user import BaseUser
    from fastapi import FastAPI, Request, Response

    from csrm_tasks.board.actions import Action
    from csrm_tasks.board.notices import Notice
    from csrm_tasks.board.page import Around, Run
    from csrm_tasks.settings import Settings

log = logging.getLogger("csrm")
PREFIX = "/csrm"
AIRFLOW = urlsplit(conf.get("api", "base_url", fallback="")).path.rstrip("/")  # "" or "/prefix"
ROOT = f"{AIRFLOW}{PREFIX}"
MOST_BYTES = 10_000  # of a form
DAGS = ("csrm_ingest", "csrm_refresh", "csrm_retrain", "csrm_cold_start", "csrm_rollout",
        "csrm_rollback", "csrm_drill")  # fmt: skip
HEADERS = {
    "Cache-Control": "no-store",
    "Referrer-Policy": "same-origin",  # with no-referrer browsers send forms with Origin: null
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "SAMEORIGIN",  # Airflow's own page frames it
}


Channel = Callable[..., Awaitable[Any]]  # of an ASGI application


class Refused(Exception):
    """An answer of one line: status, title, text."""

    def __init__(self, status: int, title: str, text: str) -> None:
        super().__init__(text)
        self.answer = (status, title, text)


async def board(scope: dict[str, Any], receive: Channel, send: Channel) -> None:
    """The application, made when it is first asked for."""
    app = await asyncio.to_thread(application)
    await app(scope, receive, send)


@cache
def application() -> FastAPI:
    """Return the application; :func:`guard` stands before all of its routes."""
    from fastapi import FastAPI

    app = FastAPI(title="CSRM release board", docs_url=None, redoc_url=None, openapi_url=None)
    # Pages, not an API: routes of Starlette's kind, which answer nothing but what they are given
    app.add_route("/", index, methods=["GET"])
    app.add_route("/static/board.css", style, methods=["GET"])
    app.add_route("/markets/{market}", show, methods=["GET"])
    app.add_route("/markets/{market}/reports/{release}", report, methods=["GET"])
    app.add_route("/markets/{market}/{action}", decide, methods=["POST"])
    app.middleware("http")(guard)
    return app


async def guard(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
    """Let in who is logged in and may look at a market; no error's text leaves."""
    from csrm_tasks.board.page import CSP
    from csrm_tasks.errors import CsrmError

    try:
        user = await logged_in(request)
        if user is None:
            response = message(401, "Not logged in", "Log in to Airflow first.", login())
        elif not (readable := await asyncio.to_thread(readable_markets, user)) and market_names():
            response = message(403, "Not allowed", "You may look at no market's rollout.")
        else:
            request.state.csrm = (user, readable)
            response = await call_next(request)
            if response.status_code in (404, 405):
                response = message(response.status_code, "Not here", "There is no such page.")
    except Refused as e:
        response = message(*e.answer)
    except CsrmError as e:
        response = message(500, "Not possible", str(e))
    except Exception as e:
        log.exception("board: %s failed", request.url.path)
        response = message(500, "Failed", f"The API server's log says why ({type(e).__name__}).")
    for name, value in HEADERS.items():
        response.headers[name] = value
    response.headers.setdefault("Content-Security-Policy", CSP)
    return response


async def logged_in(request: Request) -> BaseUser | None:
    """Return who asks, as Airflow's own routes find out, or None."""
    from airflow.api_fastapi.core_api.security import bearer_scheme, get_user
    from fastapi import HTTPException

    try:
        return await get_user(request, None, await bearer_scheme(request))
    except HTTPException:
        return None


def login() -> str:
    """Return where to log in, and come back from."""
    from airflow.api_fastapi.app import get_auth_manager

    return get_auth_manager().get_url_login(next_url=f"{ROOT}/")


def message(status: int, title: str, text: str, login: str = "") -> Response:
    """Return a page that says one thing."""
    from fastapi.responses import HTMLResponse

    from csrm_tasks.board.page import message_page

    return HTMLResponse(message_page(title, text, ROOT, login), status)


def market_names() -> list[str]:
    """Return the markets of this installation, also those whose file is damaged."""
    from csrm_tasks.settings import load_settings

    return sorted(p.stem for p in load_settings().markets.glob("*.yaml"))


def readable_markets(user: BaseUser) -> list[str]:
    """Return the markets whose rollout the user may look at."""
    return [name for name in market_names() if may(user, "GET", f"csrm_rollout__{name}")]


def may(
    user: BaseUser, method: Literal["GET", "POST"], dag_id: str, entity: str | None = None
) -> bool:
    """Ask Airflow's auth manager."""
    from airflow.api_fastapi.app import get_auth_manager
    from airflow.api_fastapi.auth.managers.models.resource_details import (
        DagAccessEntity,
        DagDetails,
    )
    from airflow.models.dag import DagModel

    details = DagDetails(id=dag_id, team_name=DagModel.get_team_name(dag_id))
    of = DagAccessEntity[entity] if entity else None
    return get_auth_manager().is_authorized_dag(
        method=method, access_entity=of, details=details, user=user
    )


def allowed(user: BaseUser, market: str, approvers: Sequence[str]) -> frozenset[Action]:
    """Return what the user may decide about a market, whatever there is to decide."""
    from airflow.api_fastapi.app import get_auth_manager

    found: set[Action] = set()
    if may(user, "POST", f"csrm_rollout__{market}", "RUN"):
        found |= {"hold", "resume", "advance"}
        who = set(approvers)
        if not who or get_auth_manager().is_authorized_hitl_task(assigned_users=who, user=user):
            found |= {"approve", "reject"}
    if may(user, "POST", f"csrm_rollback__{market}", "RUN"):
        found |= {"roll_back"}
    return frozenset(found)


def around(request: Request) -> Around:
    """Return what the page says of who looks."""
    from csrm_tasks.board.page import Around

    user, readable = request.state.csrm
    return Around(ROOT, AIRFLOW, user.get_name(), readable)


def style(request: Request) -> Response:
    """The style sheet."""
    from fastapi.responses import Response

    from csrm_tasks.board import page

    return Response(page.style(), media_type="text/css")


def index(request: Request) -> Response:
    """The list of markets."""
    from fastapi.responses import HTMLResponse

    from csrm_tasks.board import page
    from csrm_tasks.board.board import summary
    from csrm_tasks.settings import load_settings

    who = around(request)
    summaries = [summary(load_settings(market=name), name) for name in who.markets]
    return HTMLResponse(page.index_page(summaries, who))


def settings_of(request: Request, market: str) -> Settings:
    """Return where a market keeps its state; raises :class:`Refused` to who may not look at it."""
    from csrm_tasks.settings import load_settings

    user, readable = request.state.csrm
    if market in readable:
        return load_settings(market=market)
    if may(user, "GET", f"csrm_rollout__{market}"):
        raise Refused(404, "Not here", "There is no such market.")
    raise Refused(403, "Not allowed", "You may not look at this market's rollout.")


def show(request: Request) -> Response:
    """The page of a market; its ``row`` is the ledger row of a decision that was just made."""
    market, row = request.path_params["market"], request.query_params.get("row", "")
    return drawn(request, market, settings_of(request, market), row=row)


def drawn(
    request: Request, market: str, settings: Settings, *, row: str = "", refused: str = "",
    status: int = 200,
) -> Response:  # fmt: skip
    """Draw a market's page."""
    from fastapi.responses import HTMLResponse

    from csrm_tasks.board import forms, page
    from csrm_tasks.board.board import board
    from csrm_tasks.board.notices import Notice

    user, now = request.state.csrm[0], datetime.now(UTC)
    found = board(settings, market, now, os.environ.get("CSRM_MLFLOW_UI", ""))
    approvers = () if isinstance(found.config, Notice) else found.config.rollout.approvers
    rows = () if isinstance(found.history, Notice) else found.history
    done = next((e for e in rows if str(e.seq) == row), None)
    decisions = page.Decisions(
        forms.token(secret(), user.get_id(), market, now.timestamp()),
        allowed(user, market, approvers),
        f"Row {done.seq}: {done.release_id} was {done.action} by {done.actor}." if done else "",
        refused,
    )
    text = page.market_page(found, around(request), decisions, newest_runs(user, market))
    return HTMLResponse(text, status)


def report(request: Request) -> Response:
    """The report that the gate wrote of a release, within a sandbox."""
    from fastapi.responses import HTMLResponse

    from csrm_tasks.artifacts import ArtifactStore
    from csrm_tasks.board import page, releases
    from csrm_tasks.release import ledger

    market, release = request.path_params["market"], request.path_params["release"]
    settings = settings_of(request, market)
    gate = releases.gate_of(ledger.verified(settings, market), release)
    if not gate:
        raise Refused(404, "Not here", "There is no report of such a release.")
    found = ArtifactStore(settings.artifacts, settings.cache).read(gate, releases.REPORT)
    return HTMLResponse(found, headers={"Content-Security-Policy": page.REPORT_CSP})


async def decide(request: Request) -> Response:
    """Take a decision that a form of this page asks for; answers with the page."""
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MOST_BYTES:
            raise Refused(413, "Too long", "A form is not as long as that.")
    fields = parse_qs(body.decode("utf-8", "replace"), max_num_fields=20)
    form = {name: values[-1] for name, values in fields.items()}
    return await asyncio.to_thread(decided, request, form)


def decided(request: Request, form: Mapping[str, str]) -> Response:
    """Check who decides and where the form came from, and do what it asks."""
    from fastapi.responses import RedirectResponse

    from csrm_tasks.board import actions
    from csrm_tasks.errors import CsrmError

    market = request.path_params["market"]
    settings, user = settings_of(request, market), request.state.csrm[0]
    chosen = next((a for a in actions.ACTIONS if a == request.path_params["action"]), None)
    if chosen is None:
        raise Refused(404, "Not here", "There is no such decision.")
    require_permission(user, settings, market, chosen)
    require_own_form(request, user, market, form)
    try:
        asked = actions.Asked(
            chosen, form.get("release", ""), actions.reason_of(form.get("reason", "")),
            form.get("seen", ""),
        )  # fmt: skip
        row = actions.act(settings, market, asked, user.get_name())
    except CsrmError as e:
        return drawn(request, market, settings, refused=str(e), status=409)
    return RedirectResponse(f"{ROOT}/markets/{market}?row={row.seq}", 303)


def require_permission(user: BaseUser, settings: Settings, market: str, action: Action) -> None:
    """Raise :class:`Refused` where the user may not decide that."""
    from csrm_tasks.markets import load_market

    approvers = load_market(market, settings.markets).rollout.approvers
    if action not in allowed(user, market, approvers):
        raise Refused(403, "Not allowed", "You may not decide this about this market.")


def require_own_form(
    request: Request, user: BaseUser, market: str, form: Mapping[str, str]
) -> None:
    """Raise :class:`Refused` for a form that this page did not draw for this user.

    Browsers say in Origin (and Sec-Fetch-Site) which site a form is from; the token, which no other
    site can know, is asked for all the same.
    """
    from csrm_tasks.board import forms

    origin = request.headers.get("origin", "")
    own = {
        request.headers.get("host", ""),
        urlsplit(conf.get("api", "base_url", fallback="")).netloc,
    }
    fetched = request.headers.get("sec-fetch-site", "same-origin")
    if urlsplit(origin).netloc not in own - {""} or fetched != "same-origin":
        raise Refused(403, "Not allowed", "The form did not come from this page.")
    now = datetime.now(UTC).timestamp()
    if not forms.accepts(secret(), user.get_id(), market, now, form.get("token", "")):
        raise Refused(403, "Not allowed", "The form has expired, or is not yours: load it anew.")


def secret() -> str:
    """Return what form tokens are signed by; the same in each process of the API server."""
    from airflow.api_fastapi.auth.tokens import get_signing_key

    return conf.get("api_auth", "jwt_secret", fallback="") or get_signing_key("api", "secret_key")


def newest_runs(user: BaseUser, market: str) -> Sequence[Run] | Notice:
    """Return the newest run of each of the market's DAGs that the user may see runs of."""
    from csrm_tasks.board.notices import part

    names = [f"{name}__{market}" for name in DAGS]
    seen = [dag for dag in names if may(user, "GET", dag, "RUN")]
    return part("runs", lambda: _newest(seen))


def _newest(dags: Sequence[str]) -> list[Run]:
    from airflow.models.dagrun import DagRun
    from airflow.utils.session import create_session
    from sqlalchemy import select

    from csrm_tasks.board.page import Run

    found = []
    with create_session() as session:
        for dag in dags:
            row = session.scalar(
                select(DagRun).where(DagRun.dag_id == dag).order_by(DagRun.id.desc()).limit(1)
            )
            page = f"{AIRFLOW}/dags/{quote(dag)}"
            if row is None:
                found.append(Run(dag, "", "", "", page))
                continue
            at = row.start_date or row.queued_at or ""
            run = f"{page}/runs/{quote(row.run_id, safe='')}"
            found.append(Run(dag, row.run_id, str(row.state), str(at), run))
    return found


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
