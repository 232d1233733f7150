"""MLflow tells of moved aliases (its webhook), so that a hand's move is dealt with at once.

Whatever an event says, only :func:`.manage.reconcile` decides, by the ledger: an event is a reason
to look, and one that is forged, repeated or about our own move changes nothing. MLflow sends the
event's JSON, signed as ``v1,base64(HMAC-SHA256(secret, "{delivery}.{timestamp}.{body}"))``.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import logging
import os
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from csrm_tasks.errors import ConfigError, DataError, DeniedError
from csrm_tasks.markets import MarketConfig

if TYPE_CHECKING:
    from mlflow import MlflowClient

log = logging.getLogger("csrm")

SECRET = "CSRM_MLFLOW_WEBHOOK_SECRET"
MIN_SECRET = 16  # characters
NAME = "csrm"  # of the webhook in MLflow
ENTITY = "model_version_alias"
EVENTS = (f"{ENTITY}.created", f"{ENTITY}.deleted")
MAX_BYTES = 64 * 1024  # of an event
MAX_AGE = 300.0  # seconds between an event's time and ours, either way


def read_secret(env: Mapping[str, str] = os.environ) -> str:
    """Return the secret that MLflow signs with; raises :class:`ConfigError` where it is none."""
    secret = env.get(SECRET, "").strip()
    if len(secret) < MIN_SECRET:
        raise ConfigError(f"give a secret of at least {MIN_SECRET} characters in {SECRET}")
    return secret


def require_signature(secret: str, headers: Mapping[str, str], body: bytes, now: float) -> None:
    """Raise :class:`DeniedError` unless MLflow has signed ``body`` with ``secret`` just now.

    ``headers``: by names in lower case; ``now``: seconds since 1970.
    """
    delivery, at, given = (
        headers.get(f"x-mlflow-{name}", "") for name in ("delivery-id", "timestamp", "signature")
    )
    signed = f"{delivery}.{at}.".encode() + body
    made = base64.b64encode(hmac.new(secret.encode(), signed, hashlib.sha256).digest())
    # Bytes: compare_digest takes no text beyond ASCII. In constant time.
    if not hmac.compare_digest(given.encode(), b"v1," + made):
        raise DeniedError(f"the event is not signed with {SECRET}")
    if not at.isascii() or not at.isdigit() or abs(now - int(at)) > MAX_AGE:
        raise DeniedError("the event is old, or MLflow's clock and ours are far apart")


def moved(body: bytes, markets: Iterable[MarketConfig]) -> list[str]:
    """Return the markets whose model's aliases an event is about; none where it is not ours.

    Raises :class:`DataError` for what is no event of MLflow.
    """
    try:
        event = json.loads(body)
        entity, model = event["entity"], event["data"]["name"]
    except (ValueError, KeyError, TypeError, RecursionError) as e:
        raise DataError("this is no event of MLflow: JSON with entity and data.name") from e
    return [m.market for m in markets if entity == ENTITY and m.model_name == model]


def register(api: MlflowClient, url: str, secret: str) -> str:
    """Have MLflow tell ``url`` of moved aliases; says what was done. A second time it is updated.

    Raises :class:`ConfigError` where MLflow refuses the address.
    """
    from mlflow.exceptions import MlflowException

    given = {"url": url, "events": list(EVENTS), "secret": secret, "status": "ACTIVE"}
    known = _known(api)
    try:
        if known is None:
            api.create_webhook(NAME, description="csrm: aliases follow the ledger", **given)
            return f"MLflow tells {url} of moved aliases"
        api.update_webhook(known, **given)
        return f"MLflow tells {url} of moved aliases, as before or instead"
    except MlflowException as e:
        if e.error_code not in ("INVALID_PARAMETER_VALUE", "FEATURE_DISABLED"):
            raise
        raise ConfigError(f"MLflow does not take {url}: {' '.join(str(e).split())}") from e


def _known(api: MlflowClient) -> str | None:
    token = None
    while True:
        page = api.list_webhooks(page_token=token)
        for one in page:
            if one.name == NAME:
                return str(one.webhook_id)
        token = page.token
        if not token:
            return None
