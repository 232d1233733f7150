"""The door: a bearer token on every route but health, and a bound on what a body may weigh."""

from __future__ import annotations

import hmac
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from csrm_tasks.errors import ConfigError

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

KNOWN = "csrm.known"  # of the scope: the request brought the token
OPEN = ("/healthz", "/readyz")
MAX_BYTES = 4 * 1024 * 1024  # of a body: a thousand titles of the longest kind
MIN_TOKEN = 16  # characters


def read_token(env: Mapping[str, str] = os.environ) -> str:
    """Return the token from CSRM_SERVING_TOKEN, or the file CSRM_SERVING_TOKEN_FILE.

    Raises :class:`ConfigError` where there is none, or one that is too short to be a secret.
    """
    path = env.get("CSRM_SERVING_TOKEN_FILE")
    try:
        token = Path(path).read_text(encoding="utf-8") if path else env.get("CSRM_SERVING_TOKEN")
    except (OSError, UnicodeDecodeError) as e:
        raise ConfigError(f"CSRM_SERVING_TOKEN_FILE {path} cannot be read as text") from e
    token = (token or "").strip()
    if len(token) < MIN_TOKEN:
        raise ConfigError(
            f"give a token of at least {MIN_TOKEN} characters in CSRM_SERVING_TOKEN, or a file "
            "that holds it in CSRM_SERVING_TOKEN_FILE"
        )
    return token


class Guard:
    """ASGI middleware; what it refuses never reaches a route."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app = app
        self._expected = f"Bearer {token}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 401 or 413, or pass the request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        given = headers.get(b"authorization", b"")
        scope[KNOWN] = hmac.compare_digest(given, self._expected)  # in constant time
        if scope["path"] not in OPEN and not scope[KNOWN]:
            await _refuse(send, 401, "a bearer token is needed", (b"www-authenticate", b"Bearer"))
            return
        size = headers.get(b"content-length", b"0")
        if not size.isdigit() or int(size) > MAX_BYTES:
            await _refuse(send, 413, f"a body has at most {MAX_BYTES} bytes")
            return
        await self._app(scope, _bounded(receive), send)


def _bounded(receive: Receive) -> Receive:
    """Cut a body that does not say its length: a client that sends for ever is gone for us."""
    seen = 0

    async def wrapped() -> Message:
        nonlocal seen
        message = await receive()
        seen += len(message.get("body", b""))
        return {"type": "http.disconnect"} if seen > MAX_BYTES else message

    return wrapped


async def _refuse(send: Send, status: int, why: str, *more: tuple[bytes, bytes]) -> None:
    headers = [(b"content-type", b"application/json"), *more]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps({"error": why}).encode()})
