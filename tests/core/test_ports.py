"""A reserved port is nobody else's, and a server can listen at it."""

from __future__ import annotations

import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest

from tests.ports import reserve_port


def given() -> int:
    """Return a port that the kernel gave to who asked for any."""
    with socket.socket() as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def test_a_reserved_port_is_given_to_nobody_and_a_server_listens_at_it() -> None:
    mine = {reserve_port() for _ in range(200)}
    assert len(mine) == 200
    assert mine.isdisjoint(given() for _ in range(20_000))
    port = mine.pop()
    with ThreadingHTTPServer(("127.0.0.1", port), BaseHTTPRequestHandler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(HTTPError, match="501"):
            urlopen(f"http://127.0.0.1:{port}", timeout=10)
        server.shutdown()
