"""Servers of a benchmark, each in a process of its own; ours may be of an earlier checkout, too."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.previous import previous
from benchmarks.serving_world import MARKET
from tests.ports import reserve_port

BIN = Path(sys.executable).parent

# Run by the earlier checkout, by names that every one since 27ac4c9 has.
WORLD = """
import sys
from benchmarks.serving_world import Releases, route
from csrm_tasks.settings import load_settings
home, count = sys.argv[1], int(sys.argv[2])
settings = load_settings({"CSRM_HOME": home, "CSRM_MARKETS": f"{home}/markets"})
settings.home.mkdir(parents=True)
route(settings, 1, Releases(settings, [f"p{i}" for i in range(count)]).make(0))
"""


def ours_of(home: Path, token: str) -> dict[str, str]:
    """Return the environment of our service on an installation of its own."""
    return {
        "CSRM_HOME": str(home), "CSRM_MARKETS": f"{home}/markets", "CSRM_SERVING_TOKEN": token,
    }  # fmt: skip


@contextmanager
def earlier(home: Path, products: int, token: str) -> Iterator[int | None]:
    """Serve the benchmark's release by the earlier checkout; yields its port, None without one."""
    checkout = previous()
    if checkout is None:
        yield None
        return
    env = ours_of(home, token)
    checkout.run(WORLD, home, str(products), **env)
    port = reserve_port()
    command = [checkout.command("csrm"), "serve", "--market", MARKET]
    with server(command, port, "/readyz", checkout.environment() | env):
        yield port


@contextmanager
def server(command: list[str], port: int, ready: str, env: dict[str, str]) -> Iterator[int]:
    """Run a server until the block ends; yields its process id.

    The command is one of this environment, or a path.
    """
    child = subprocess.Popen(
        [str(BIN / command[0]), *command[1:], "--port", str(port)], env=os.environ | env,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        while not _ready(f"http://127.0.0.1:{port}{ready}"):
            if child.poll() is not None:
                raise RuntimeError(f"{command[0]} ended with {child.returncode}")
            time.sleep(0.1)
        yield child.pid
    finally:
        os.killpg(child.pid, signal.SIGTERM)
        child.wait()


def _ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(url) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
