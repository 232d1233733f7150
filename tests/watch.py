"""Ending what a test process started, also when it is killed and runs no clean-up of its own."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any


@contextmanager
def if_killed(script: str, *args: str) -> Iterator[None]:
    """Have a shell run ``script`` with ``args`` if this process dies before the block ends.

    The shell waits for the end of a pipe that only this process holds open.
    """
    shell = subprocess.Popen(
        ["sh", "-c", f"read _; {script}", "sh", *args], stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        yield
    finally:
        shell.kill()
        shell.communicate()


@contextmanager
def running(command: Sequence[str], **how: Any) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server in a session of its own; SIGTERM ends it with the block, or with this process.

    ``how``: what Popen takes.
    """
    server = subprocess.Popen(command, start_new_session=True, **how)
    try:
        with if_killed('kill -TERM -- "-$1"', str(server.pid)):
            yield server
    finally:
        if server.poll() is None:
            os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)
