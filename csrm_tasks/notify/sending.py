"""Sending a message: by mail (SMTP) or to a webhook (HTTP POST of JSON), within seconds.

An error says what kind it is and nothing more: a webhook's address is itself a secret.
"""

from __future__ import annotations

import json
import re
import smtplib
import ssl
import threading
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from email.message import EmailMessage
from email.message import Message as Headers
from email.utils import formatdate, make_msgid
from typing import IO, Any, Literal
from urllib.error import HTTPError
from urllib.request import HTTPRedirectHandler, Request, build_opener

from csrm_tasks.errors import ConfigError
from csrm_tasks.notify.messages import Message

SECONDS = 10.0  # of one answer of the server
PATIENCE = 15.0  # of all of it
ALL = 45.0  # with the notes in the routing store
PORTS = {"ssl": 465, "starttls": 587, "none": 25}
MAIL = ("smtp", "email")
SECRET_HEADER = re.compile(r"auth|token|key|secret|sign|cookie", re.IGNORECASE)


class NotSentError(Exception):
    """The server did not take the message; says how, and no address."""


@dataclass(frozen=True)
class Target:
    """Where messages go, as an Airflow connection says. Nothing secret is in its ``repr``."""

    kind: Literal["mail", "webhook"]
    host: str = field(default="", repr=False)
    port: int = 0
    login: str = field(default="", repr=False)
    password: str = field(default="", repr=False)
    sender: str = ""
    security: Literal["ssl", "starttls", "none"] = "ssl"
    to: tuple[str, ...] = ()
    url: str = field(default="", repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def secrets(self) -> set[str]:
        """What of it may stand in no message and no log."""
        named = {v for name, v in self.headers.items() if SECRET_HEADER.search(name)}
        return {v for v in (self.password, self.url, *named) if v}


def mail(
    host: str, port: int | None, login: str, password: str, extra: Mapping[str, Any],
    to: Sequence[str],
) -> Target:  # fmt: skip
    """Return a mail server, as Airflow's SMTP hook reads a connection.

    Raises :class:`ConfigError` without a host, a sender or anybody to write to.
    """
    plain, bare = (_is_on(extra.get(name)) for name in ("disable_ssl", "disable_tls"))
    security: Literal["ssl", "starttls", "none"] = (
        "ssl" if not plain else "none" if bare else "starttls"
    )
    sender = str(extra.get("from_email") or (login if "@" in login else ""))
    lacks = {"a host": host, "a sender (from_email in its extra)": sender}
    missing = next((name for name, value in lacks.items() if not value), None)
    if missing:
        raise ConfigError(f"the connection has no {missing.removeprefix('a ')}")
    if not to:
        raise ConfigError("a mail connection needs notify.to: name who is written to")
    return Target(
        "mail", host, port or PORTS[security], login, password, sender, security, tuple(to)
    )


def _is_on(value: object) -> bool:
    """Whether an extra is true; in a connection that is a URI all of them are text."""
    return str(value).strip().lower() in ("true", "1", "yes", "on")


def webhook(url: str, login: str, password: str, headers: Mapping[str, Any]) -> Target:
    """Return a webhook; a password alone is a bearer token, with a login it is basic access."""
    given = {str(name): str(value) for name, value in headers.items()}
    if password:
        basic = b64encode(f"{login}:{password}".encode()).decode()
        given["Authorization"] = f"Basic {basic}" if login else f"Bearer {password}"
    return Target("webhook", password=password, url=url, headers=given)


def send(target: Target, message: Message) -> None:
    """Send ``message``; raises :class:`NotSentError` after :data:`PATIENCE` seconds at most."""
    how = _by_mail if target.kind == "mail" else _by_webhook
    within(PATIENCE, lambda: how(target, message))


def _by_mail(target: Target, message: Message) -> None:
    letter = EmailMessage()
    letter["Subject"], letter["From"], letter["To"] = (
        message.subject, target.sender, ", ".join(target.to)
    )  # fmt: skip
    letter["Date"], letter["Message-ID"] = formatdate(), make_msgid(domain="csrm.invalid")
    letter["Auto-Submitted"] = "auto-generated"
    letter.set_content(message.text)
    context = ssl.create_default_context()
    if target.security == "ssl":
        server: smtplib.SMTP = smtplib.SMTP_SSL(
            target.host, target.port, timeout=SECONDS, context=context
        )
    else:
        server = smtplib.SMTP(target.host, target.port, timeout=SECONDS)
    with server:
        if target.security == "starttls":
            server.starttls(context=context)
        if target.login:
            server.login(target.login, target.password)
        server.send_message(letter)


class _NoRedirects(HTTPRedirectHandler):
    """A redirect would turn the POST into a GET, and take the token elsewhere."""

    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: Headers, newurl: str
    ) -> None:
        """Follow none."""


def _by_webhook(target: Target, message: Message) -> None:
    body = json.dumps(message.as_json()).encode()
    headers = {"Content-Type": "application/json", **target.headers}
    request = Request(target.url, data=body, headers=headers, method="POST")
    with build_opener(_NoRedirects).open(request, timeout=SECONDS) as answer:
        answer.read(1)


def within(seconds: float, call: Callable[[], object]) -> None:
    """Do ``call``, but wait no longer: a server that answers drop by drop holds up nobody.

    Raises :class:`NotSentError` with the kind of what ``call`` raised, or that it took too long.
    """
    raised: list[BaseException] = []

    def run() -> None:
        try:
            call()
        except Exception as e:  # noqa: BLE001 told in the thread that waits
            raised.append(e)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise NotSentError(f"no answer within {seconds:g} seconds")
    if raised:
        raise NotSentError(_kind(raised[0])) from None


def _kind(error: BaseException) -> str:
    """Return an error's kind without its text, which may hold addresses."""
    if isinstance(error, HTTPError):
        return f"it answers {error.code}"
    if isinstance(error, smtplib.SMTPResponseException):
        return f"{type(error).__name__}: it answers {error.smtp_code}"
    reason = getattr(error, "reason", None)
    return type(reason if isinstance(reason, Exception) else error).__name__
