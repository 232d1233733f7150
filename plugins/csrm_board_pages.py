"""Routes of the release board, and the guard in front of all of them.

Wiring only: :mod:`csrm_tasks.board` reads, draws and acts. Everything but the standard library is
imported when a request comes, for Airflow imports plugin files into each of its processes.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, quote

import csrm_board_question as question
from csrm_board_access import (
    AIRFLOW,
    ROOT,
    Refused,
    allowed,
    logged_in,
    login,
    may,
    readable_markets,
    require_own_form,
    require_permission,
    secret,
    settings_of,
)

if TYPE_CHECKING:
    from airflow.api_fastapi.auth.managers.models.base_user import BaseUser
    from fastapi import Request, Response

    from csrm_tasks.board.notices import Notice
    from csrm_tasks.board.page import Around, Run
    from csrm_tasks.settings import Settings

log = logging.getLogger("csrm")
MOST_BYTES = 10_000  # of a form
MOST_FIELDS = 20
DAGS = ("csrm_ingest", "csrm_refresh", "csrm_retrain", "csrm_cold_start", "csrm_rollout",
        "csrm_rollback", "csrm_drill")  # fmt: skip
HEADERS = {
    "Cache-Control": "no-store",
    "Referrer-Policy": "same-origin",  # with no-referrer browsers send forms with Origin: null
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "SAMEORIGIN",  # Airflow's own page frames it
}


async def guard(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
    """Let in who is logged in and may look at a market; no error's text leaves."""
    from csrm_tasks.board.page import CSP
    from csrm_tasks.errors import CsrmError

    try:
        user = await logged_in(request)
        if user is None:
            response = message(401, "Not logged in", "Log in to Airflow first.", login())
        elif not (readable := await asyncio.to_thread(readable_markets, user)):
            response = message(403, "Not allowed", "There is no market that you may look at.")
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


def message(status: int, title: str, text: str, login: str = "") -> Response:
    """Return a page that says one thing."""
    from fastapi.responses import HTMLResponse

    from csrm_tasks.board.page import message_page

    return HTMLResponse(message_page(title, text, ROOT, login), status)


def around(request: Request) -> Around:
    """Return what the page says of who looks."""
    from csrm_tasks.board.page import Around

    user, readable = request.state.csrm
    framed = request.headers.get("sec-fetch-dest") == "iframe"
    return Around(ROOT, AIRFLOW, user.get_name(), readable, framed)


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
    from csrm_tasks.board.board import verified

    market, release = request.path_params["market"], request.path_params["release"]
    settings = settings_of(request, market)
    gate = releases.gate_of(verified(settings, market), release)
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
    if body.count(b"&") >= MOST_FIELDS:
        raise Refused(413, "Too long", "A form has fewer fields than that.")
    fields = parse_qs(body.decode("utf-8", "replace"))
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
    question.answer(user, market, asked.release, chosen)
    return RedirectResponse(f"{ROOT}/markets/{market}?row={row.seq}", 303)


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
