"""Who may do what on the release board, as Airflow's own auth manager says, and whose form it is.

401: nobody is logged in. 403: without permission, or a form that another site may have sent. Read
needs GET on ``csrm_rollout__{market}``, a decision POST on its runs (of ``csrm_rollback__{market}``
for the way back); approve and reject also a name in ``rollout.approvers``, where there are some.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

from airflow.configuration import conf

if TYPE_CHECKING:
    from airflow.api_fastapi.auth.managers.models.base_user import BaseUser
    from fastapi import Request

    from csrm_tasks.board.actions import Action
    from csrm_tasks.settings import Settings

PREFIX = "/csrm"
ADDRESS = urlsplit(conf.get("api", "base_url", fallback=None) or "")  # that browsers see
AIRFLOW = ADDRESS.path.rstrip("/")  # "" or "/prefix"
ROOT = f"{AIRFLOW}{PREFIX}"


class Refused(Exception):
    """An answer of one line: status, title, text."""

    def __init__(self, status: int, title: str, text: str) -> None:
        super().__init__(text)
        self.answer = (status, title, text)


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


def settings_of(request: Request, market: str) -> Settings:
    """Return where a market keeps its state; raises :class:`Refused` to who may not look at it."""
    from csrm_tasks.settings import load_settings

    user, readable = request.state.csrm
    if market in readable:
        return load_settings(market=market)
    if may(user, "GET", f"csrm_rollout__{market}"):
        raise Refused(404, "Not here", "There is no such market.")
    raise Refused(403, "Not allowed", "You may not look at this market's rollout.")


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

    host = request.headers.get("host", "")
    own = {f"{scheme}://{host}" for scheme in ("http", "https")}
    if ADDRESS.netloc:
        own |= {f"{ADDRESS.scheme}://{ADDRESS.netloc}"}
    fetched = request.headers.get("sec-fetch-site", "same-origin")
    if request.headers.get("origin") not in own or fetched != "same-origin":
        raise Refused(403, "Not allowed", "The form did not come from this page.")
    now = datetime.now(UTC).timestamp()
    if not forms.accepts(secret(), user.get_id(), market, now, form.get("token", "")):
        raise Refused(403, "Not allowed", "The form has expired, or is not yours: load it anew.")


def secret() -> str:
    """Return what form tokens are signed by; the same in each process of the API server."""
    from airflow.api_fastapi.auth.tokens import get_signing_key

    return conf.get("api_auth", "jwt_secret", fallback="") or get_signing_key("api", "secret_key")
