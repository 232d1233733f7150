"""A mail server and a webhook that keep what they are given: the standard library's, and small."""

from __future__ import annotations

import json
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from email import message_from_bytes, policy
from email.message import EmailMessage
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, TypeVar


class MailServer(socketserver.ThreadingTCPServer):
    """Speaks as much SMTP as a client needs; ``refuses`` says no to the message."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Mail)
        self.letters: list[EmailMessage] = []
        self.to: list[str] = []
        self.logins: list[str] = []
        self.refuses = False

    @property
    def port(self) -> int:
        return int(self.server_address[1])


class _Mail(socketserver.StreamRequestHandler):
    server: MailServer

    def say(self, line: str) -> None:
        self.wfile.write(f"{line}\r\n".encode())

    def handle(self) -> None:
        self.say("220 sink")
        while line := self.rfile.readline().decode().strip():
            word = line.split()[0].upper()
            if word == "QUIT":
                self.say("221 bye")
                return
            getattr(self, f"on_{word.lower()}", self.on_other)(line)

    def on_ehlo(self, line: str) -> None:
        self.say("250-sink")
        self.say("250 AUTH PLAIN")

    def on_auth(self, line: str) -> None:
        self.server.logins.append(line)
        self.say("235 in")

    def on_rcpt(self, line: str) -> None:
        self.server.to.append(line)
        self.say("250 ok")

    def on_data(self, line: str) -> None:
        if self.server.refuses:
            self.say("554 not here, s3cret-host")
            return
        self.say("354 go")
        lines = []
        while (got := self.rfile.readline()) not in (b".\r\n", b""):
            lines.append(got[1:] if got.startswith(b"..") else got)
        letter: Any = message_from_bytes(b"".join(lines), policy=policy.default)
        self.server.letters.append(letter)
        self.say("250 taken")

    def on_other(self, line: str) -> None:
        self.say("250 ok")


class Webhook(ThreadingHTTPServer):
    """Takes JSON; answers ``code``. ``silent`` never answers."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Hook)
        self.bodies: list[dict[str, Any]] = []
        self.paths: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.code = 200
        self.silent = threading.Event()
        self.closing = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Hook(BaseHTTPRequestHandler):
    server: Webhook

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.server.silent.is_set():
            self.server.closing.wait(60)
            return
        self.server.bodies.append(json.loads(body))
        self.server.paths.append(self.path)
        self.server.headers.append(dict(self.headers.items()))
        self.send_response(self.server.code)
        if self.server.code == 302:
            self.send_header("Location", "/elsewhere")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Stay quiet."""


Server = TypeVar("Server", MailServer, Webhook)


@contextmanager
def serving(server: Server) -> Iterator[Server]:
    """Serve in a thread until the block ends."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        if isinstance(server, Webhook):
            server.closing.set()
        server.shutdown()
        thread.join()
        server.server_close()
