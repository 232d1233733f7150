"""What the orchestrators share: the graph they run, their servers, and the turns they take.

``python -m benchmarks.peers.orchestrator_NAME FILE``: FILE is JSON, as :class:`Task` has it. Says
its version once it is ready for a run; answers each line by the seconds from a run's trigger to its
end. Everything that it has started ends with its standard input.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

GRAPH = "CSRM_BENCHMARK_GRAPH"  # environment: FILE, for a peer's processes that load the graph
HOW = "CSRM_BENCHMARK_TASKS"  # of Prefect's: threads or processes
POLL = 0.1  # seconds between looks at whether a run has ended, for every contestant
READY = 300.0  # seconds until a server answers, on a machine that is busy with others
REFERENCE = "demo/step/0123456789abcdef"  # what an empty step returns: as long as an artifact's


@dataclass(frozen=True)
class Task:
    """What every orchestrator runs, and with what."""

    graph: dict[str, list[str]]  # task → those it reads, in an order in which they can run
    at_once: int  # steps
    database: str  # URL of an empty one: postgresql:// or sqlite:///
    folder: Path  # an empty one

    @classmethod
    def read(cls, path: str) -> Task:
        """Read the file that the benchmark wrote."""
        given = json.loads(Path(path).read_text(encoding="utf-8"))
        return cls(given["graph"], given["at_once"], given["database"], Path(given["folder"]))

    @property
    def name(self) -> str:
        """The database's name within its server."""
        return self.database.partition("?")[0].rpartition("/")[2]


def serve(version: str, run: Callable[[], None]) -> None:
    """Take one turn for each line of standard input; what libraries print goes elsewhere."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    run()  # what is imported or made by the first run of all is not measured
    print(json.dumps({"version": version}), file=answers, flush=True)
    for _ in sys.stdin:
        begun = time.perf_counter()
        run()
        print(json.dumps({"seconds": time.perf_counter() - begun}), file=answers, flush=True)


@contextmanager
def started(
    folder: Path, commands: Mapping[str, list[str]], **env: str
) -> Iterator[Callable[[], None]]:
    """Run servers for the block, each in a session of its own with its log in ``folder``.

    A command is a program of this peer's environment and its arguments. Yields a function that
    raises :class:`RuntimeError`, with the end of its log, where one of them has ended.
    """
    children: list[subprocess.Popen[bytes]] = []
    try:
        for name, (program, *arguments) in commands.items():
            with (folder / f"{name}.log").open("wb") as log:
                path = Path(sys.executable).parent / program
                children.append(subprocess.Popen(
                    [str(path), *arguments], env=os.environ | env, stdin=subprocess.DEVNULL,
                    stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
                ))  # fmt: skip
        yield lambda: _still_running(folder, commands, children)
    finally:
        for child in reversed(children):
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGTERM)
        for child in children:
            try:
                child.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()


def _still_running(
    folder: Path, names: Iterable[str], children: Iterable[subprocess.Popen[bytes]]
) -> None:
    for name, child in zip(names, children, strict=True):
        if child.poll() is not None:
            log = (folder / f"{name}.log").read_text(errors="replace")
            raise RuntimeError(f"{name} ended by itself ({child.returncode}):\n{log[-2000:]}")


def wait_for(
    done: Callable[[], bool],
    what: str,
    seconds: float = READY,
    running: Callable[[], None] = lambda: None,
) -> None:
    """Return once ``done()``; an :class:`OSError` means not yet. Raises ``TimeoutError``.

    ``running`` is asked each time: it raises where nothing can come any more.
    """
    end = time.monotonic() + seconds
    while True:
        running()
        try:
            if done():
                return
        except OSError:
            pass
        if time.monotonic() > end:
            raise TimeoutError(f"{what}: not after {seconds:.0f} s")
        time.sleep(POLL)


def ask(url: str, body: object = None) -> Any:
    """Return the JSON that a server of this machine answers; with a body by POST."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    opened = urllib.request.build_opener(urllib.request.ProxyHandler({})).open
    with opened(request, timeout=30) as answer:
        return json.loads(answer.read())


def free_port() -> int:
    """Return a port at which nothing listens now."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])
