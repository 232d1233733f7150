"""How long a large release takes to be ready, and what a second one beside it adds to memory."""

from __future__ import annotations

import secrets
import time
from pathlib import Path

from benchmarks.load import drive, post, run
from benchmarks.servers import ours_of, server
from benchmarks.serving_world import MARKET, Releases, route
from csrm_tasks.settings import load_settings
from tests.ports import reserve_port

ASKED = 500  # requests, over both releases


def ready_and_memory(home: Path, products: int, bodies: list[bytes]) -> dict[str, float]:
    """Serve one release of ``products``, then two of the same catalogue, half of sessions each.

    Returns ``ready_s_1m``, seconds from the start of the process to its first answer, and what two
    releases take over what one takes: ``memory_two_over_one`` of all that is resident once they are
    loaded, ``memory_two_over_one_asked`` after :data:`ASKED` requests of 100 products anywhere in
    the catalogue, when most of what is resident are pages of the mapped vectors, which the system
    takes back when it needs them, and ``memory_two_over_one_own`` of the process's own memory then.
    """
    token = secrets.token_hex(16)
    env = ours_of(home, token)
    settings = load_settings(env)
    settings.home.mkdir(parents=True)
    titles = [f"product {i % 977} of kind {i % 8191} {i}" for i in range(products)]
    releases = Releases(settings, [f"p{i}" for i in range(products)], titles)
    made = [releases.make(seed) for seed in range(2)]
    requests = [post("/score", body, token) for body in bodies]
    memory: dict[str, list[int]] = {"": [], "_asked": [], "_own": []}
    ready = 0.0
    for count in (1, 2):
        route(settings, count, *made[:count], also=count == 2)
        port = reserve_port()
        began = time.perf_counter()
        with server(["csrm", "serve", "--market", MARKET], port, "/readyz", env) as pid:
            ready = ready or time.perf_counter() - began
            memory[""].append(_resident(pid, "VmRSS"))
            load = run(drive(port, requests, 1, lambda seen: len(seen.seconds) < ASKED))
            if load.failed:
                raise RuntimeError(f"{load.failed} requests to {count} releases failed")
            memory["_asked"].append(_resident(pid, "VmRSS"))
            memory["_own"].append(_resident(pid, "RssAnon"))
    ratios = {f"memory_two_over_one{k}": two / one for k, (one, two) in memory.items()}
    return {"ready_s_1m": ready} | ratios


def _resident(pid: int, kind: str) -> int:
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
    line = next(line for line in status.splitlines() if line.startswith(f"{kind}:"))
    return int(line.split()[1]) * 1024
