"""Ports for the servers that tests start: nobody else is given one between asking and listening."""

from __future__ import annotations

import socket

_HELD: list[socket.socket] = []  # until this process ends


def reserve_port() -> int:
    """Return a free port of this machine that stays this process's own.

    Its socket is bound and never listens: Linux hands the port to nobody who asks for any port or
    connects from one, and lets a server listen that asks for this very one with ``SO_REUSEADDR``,
    as uvicorn, werkzeug and Go's servers do.
    """
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.bind(("127.0.0.1", 0))
    _HELD.append(held)
    return int(held.getsockname()[1])
