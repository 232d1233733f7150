"""HTTP clients on keep-alive connections, light enough not to be what is timed.

:func:`drive` is a closed loop: who waits for an answer asks nothing more, so a server that stalls
is asked less. :func:`drive_open` asks at a rate, whatever the answers do, and counts from when a
request was due, not from when it could be sent (no coordinated omission).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field
from itertools import cycle
from typing import Any

import numpy as np
import uvloop


@dataclass
class Load:
    """What the clients saw."""

    seconds: list[float] = field(default_factory=list)  # of each answered request
    failed: int = 0  # not 200, or no answer
    elapsed: float = 0.0
    last: bytes = b""  # body of the newest answer

    @property
    def rate(self) -> float:
        """Answered requests per second."""
        return len(self.seconds) / self.elapsed

    def quantile(self, share: float) -> float:
        """Quantile of the time to answer, in seconds."""
        return float(np.quantile(self.seconds, share))


def post(path: str, body: bytes, token: str = "") -> bytes:
    """Return the bytes of a request."""
    head = f"POST {path} HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n"
    head += f"Authorization: Bearer {token}\r\n" if token else ""
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def run(coroutine: Coroutine[Any, Any, Load]) -> Load:
    """Run clients on uvloop: on asyncio's own loop they would be slower than what they ask."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(coroutine)


async def drive(
    port: int, requests: list[bytes], clients: int, going: Callable[[Load], bool]
) -> Load:
    """Let ``clients`` ask one after another for as long as ``going`` says so."""

    async def starts(load: Load) -> AsyncIterator[float]:
        while going(load):
            yield time.perf_counter()

    return await _ask(port, requests, clients, starts)


async def drive_open(
    port: int, requests: list[bytes], clients: int, rate: float, seconds: float
) -> Load:
    """Ask ``rate`` times a second by ``clients`` connections; each takes what is due next."""
    began = time.perf_counter()
    due = (began + n / rate for n in range(int(rate * seconds)))

    async def starts(_: Load) -> AsyncIterator[float]:
        for at in due:
            if (early := at - time.perf_counter()) > 0:
                await asyncio.sleep(early)
            yield at

    return await _ask(port, requests, clients, starts)


async def _ask(
    port: int, requests: list[bytes], clients: int, starts: Callable[[Load], AsyncIterator[float]]
) -> Load:
    """Let each client ask once for each of its ``starts``, from when a request's time counts."""
    load, stream = Load(), cycle(requests)
    began = time.perf_counter()

    async def client() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        async for start in starts(load):
            try:
                writer.write(next(stream))
                status, load.last = await _answer(reader)
            except (OSError, asyncio.IncompleteReadError):
                load.failed += 1
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                continue
            load.seconds.append(time.perf_counter() - start)
            load.failed += status != 200
        writer.close()

    await asyncio.gather(*(client() for _ in range(clients)))
    load.elapsed = time.perf_counter() - began
    return load


async def _answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    head = await reader.readuntil(b"\r\n\r\n")
    fields = dict(line.lower().split(b":", 1) for line in head.split(b"\r\n")[1:] if b":" in line)
    return int(head.split(b" ", 2)[1]), await reader.readexactly(int(fields[b"content-length"]))


def for_seconds(seconds: float) -> Callable[[Load], bool]:
    """Return a condition that holds for so long."""
    end = time.perf_counter() + seconds
    return lambda _: time.perf_counter() < end
